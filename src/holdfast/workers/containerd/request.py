"""What containerd asks of the program that it runs for each container: its command line and environment, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERBS: Final = ("start", "delete")
VALUED: Final = ("namespace", "address", "publish-binary", "id", "bundle", "socket")
PLAIN: Final = ("debug", "version", "v", "help", "h")
STATE: Final = "/run/holdfast-shim"


class UsageError(Exception):
    """The command line cannot be understood."""


@dataclass(frozen=True, slots=True)
class Request:
    """`address` is containerd's own socket, `events` the one to which events are forwarded, "" for nowhere."""

    verb: str
    id: str
    namespace: str
    address: str
    bundle: Path
    events: str
    state: Path


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    """(flags, verb) of "-flag value", "-flag=value" and "verb", with one dash or two. Raises UsageError."""
    flags: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            return flags, word
        name, equals, value = word.lstrip("-").partition("=")
        if name in VALUED:
            flags[name] = value if equals else next(words, "")
        elif name in PLAIN:
            flags[name] = value
        else:
            raise UsageError(f"unknown flag {word}")
    return flags, ""


def understand(flags: Mapping[str, str], verb: str, environment: Mapping[str, str], here: Path) -> Request:
    """`here` is the working directory, which is the bundle unless one is named. Raises UsageError."""
    if verb not in VERBS:
        raise UsageError(f"{verb!r} is neither start nor delete")
    for name in ("id", "namespace"):
        value = flags.get(name, "")
        if not value or "/" in value or value.startswith("."):
            raise UsageError(f"-{name}: {value!r} is no name")
    return Request(
        verb=verb,
        id=flags["id"],
        namespace=flags["namespace"],
        address=flags.get("address") or environment.get("GRPC_ADDRESS", ""),
        bundle=Path(flags.get("bundle") or here),
        events=environment.get("TTRPC_ADDRESS", ""),
        state=Path(environment.get("HOLDFAST_SHIM_STATE") or STATE),
    )
