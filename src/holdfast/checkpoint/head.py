"""The head of a sealed archive: what it is of, and each of its parts with length and digest. Pure."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from holdfast.checkpoint import layout
from holdfast.checkpoint.layout import Kind
from holdfast.model.errors import InvalidArgument

FORMAT: Final = "holdfast.checkpoint"
VERSION: Final = 1
PARTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Part:
    """A file in an archive; `sha256` in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Head:
    """What an archive says of itself. `about` is its writer's, JSON; {} for those that others have written."""

    kind: Kind
    about: dict[str, Any]
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def encode(head: Head) -> bytes:
    parts = [asdict(one) for one in head.parts]
    stated = {"format": FORMAT, "version": VERSION, "kind": head.kind, "about": head.about, "parts": parts}
    return json.dumps(stated).encode()


def parse(data: bytes) -> Head:
    """Read a head that anybody may have written. Raises InvalidArgument."""
    try:
        found = json.loads(data)
        stated = (found["format"], found["version"], found["kind"])
        if stated[:2] != (FORMAT, VERSION):
            raise InvalidArgument(f"it is {stated[0]!r} of version {stated[1]!r}, not {FORMAT!r} of version {VERSION}")
        if stated[2] not in ("container", "pod") or len(found["parts"]) > PARTS:
            raise InvalidArgument(f"it is of kind {stated[2]!r} with {len(found['parts'])} parts")
        return Head(stated[2], dict(found["about"]), tuple(_listed(one, stated[2]) for one in found["parts"]))
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"its head is malformed: {exc}") from exc


def _listed(one: dict[str, Any], kind: Kind) -> Part:
    part = Part(**one)
    if not (isinstance(part.name, str) and type(part.bytes) is int and isinstance(part.sha256, str)) or part.bytes < 0:
        raise TypeError(f"{one} is no part")
    if not layout.permits(kind, part.name):
        raise InvalidArgument(f"no {kind} archive has a {part.name!r}")
    return part
