"""Image references as people type them, and in full. Pure."""

import re
from dataclasses import dataclass
from typing import Final

from holdfast.model.errors import InvalidArgument

DEFAULT_HOST: Final = "docker.io"
REGISTRY_OF: Final = {"docker.io": "registry-1.docker.io"}
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(:[0-9]{1,5})?")
_PART: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LENGTH: Final = 255  # of host and repository together, as registries have it


@dataclass(frozen=True, slots=True)
class Reference:
    """host/repository, and a tag or a digest or both."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def registry(self) -> str:
        """The host to talk to."""
        return REGISTRY_OF.get(self.host, self.host)

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """busybox, library/busybox:1, localhost:5000/x@sha256:... in full. Raises InvalidArgument that shows the text."""
    rest, _, digest = text.partition("@")
    first, slash, others = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, rest = first, others
    else:
        host = DEFAULT_HOST
    if host == "index.docker.io":
        host = DEFAULT_HOST
    repository, _, tag = rest.partition(":")
    if host == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    well_formed = (
        len(host) + 1 + len(repository) <= _LENGTH
        and _HOST.fullmatch(host)
        and all(_PART.fullmatch(part) for part in repository.split("/"))
        and (not tag or _TAG.fullmatch(tag))
        and (":" not in rest or tag)
        and ("@" not in text or is_digest(digest))
    )
    if not well_formed:
        raise InvalidArgument(f"image: {text[:300]!r} is not a reference")
    return Reference(host, repository, tag if tag or digest else "latest", digest)
