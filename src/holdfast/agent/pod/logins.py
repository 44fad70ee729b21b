"""Who a pod is to a registry: what its imagePullSecrets say for the repository of an image. Pure.

Source: Kubernetes, "Pull an Image from a Private Registry" and "Images" (config.json: which entries match, and that the
longer ones are tried first).
"""

import base64
import binascii
import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_VERSIONS: Final = ("/v1", "/v2")  # of an API, at the end of how registries were written once

Entries = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: str = field(repr=False)


def logins(image: str, secrets: Iterable[Mapping[str, bytes]]) -> list[Login]:
    """In the order in which they are to be tried. What cannot be read in a secret is nobody's."""
    host, path = repository(image)
    found: list[tuple[str, Login]] = []
    for secret in secrets:
        for key, entry in _entries(secret).items():
            login = _login(entry)
            if login is not None and _matches(key, host, path):
                found.append((key, login))
    found.sort(key=lambda one: len(_bare(one[0])), reverse=True)
    return list(dict.fromkeys(login for _, login in found))


def repository(image: str) -> tuple[str, str]:
    """Host and path: "busybox:1" is ("docker.io", "/library/busybox")."""
    name = image.partition("@")[0]
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = HUB[0], name
    head, _, last = rest.rpartition("/")
    rest = f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0]
    return (HUB[0], f"/library/{rest}") if first in HUB and "/" not in rest else (first, f"/{rest}")


def _entries(secret: Mapping[str, bytes]) -> Entries:
    """By registry: of the type dockerconfigjson, or of the older dockercfg."""
    readers: dict[str, Callable[[Any], Any]] = {
        ".dockerconfigjson": lambda found: found["auths"],
        ".dockercfg": lambda found: found,
    }
    for key, read in readers.items():
        if key in secret:
            try:
                found = read(json.loads(secret[key]))
            except (ValueError, KeyError, TypeError):
                return {}
            return found if isinstance(found, dict) else {}
    return {}


def _login(entry: object) -> Login | None:
    if not isinstance(entry, dict):
        return None
    user, password = entry.get("username", ""), entry.get("password", "")
    if isinstance(both := entry.get("auth"), str) and both:
        try:
            user, _, password = base64.b64decode(both).decode().strip("\0 \n").partition(":")
        except (binascii.Error, ValueError):
            return None
    return Login(user, password) if user and isinstance(user, str) and isinstance(password, str) else None


def _bare(key: str) -> str:
    key = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for version in _VERSIONS:
        key = key.removesuffix(version)
    return key


def _matches(key: str, host: str, path: str) -> bool:
    """Each label of the host may be a pattern; a path is that of the repository or one above it."""
    wanted, _, below = _bare(key).partition("/")
    if wanted in HUB:
        wanted = HUB[0]
    (name, _, port), (its_name, _, its_port) = wanted.partition(":"), host.partition(":")
    labels, its_labels = name.split("."), its_name.split(".")
    return (
        port == its_port
        and len(labels) == len(its_labels)
        and all(fnmatch.fnmatchcase(its, one) for its, one in zip(its_labels, labels, strict=True))
        and f"{path}/".startswith(f"/{below}/" if below else "/")
    )
