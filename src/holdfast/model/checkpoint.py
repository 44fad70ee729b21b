"""What daemon and shim tell each other of a checkpoint: pure data."""

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Final

from holdfast.model.errors import Damaged

CRIU_TYPE: Final = "holdfast.io/criu"  # type_url of the options of a checkpoint, and of a task that is to be restored
FREEZE: Final = "holdfast.io/freeze"  # annotations of an Update: JSON {"tasks": ids, "seconds": lease, "again": bool}
THAW: Final = "holdfast.io/thaw"  # {"tasks": ids}
FORGET: Final = "holdfast.io/forget"  # without a value: gVisor's pod is to have as little to write as can be
STDIO_FILE: Final = "holdfast-stdio.json"  # beside CRIU's images: {"stdout": "file[1b:22215d]", ...}
IMAGES: Final = "checkpoint"  # the directory of CRIU's images, as in archives
_STREAMS: Final = frozenset({"stdin", "stdout", "stderr"})
_EXTERNAL: Final = re.compile(r"file\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]")


@dataclass(frozen=True, slots=True)
class CriuSettings:
    """`program` is the CRIU to use, `work` the directory for its logs.

    What is restored stands still for `held` seconds, unless it is thawed or frozen again before; with 0 it goes on at
    once.
    """

    program: str
    work: str
    tcp_established: bool = False
    held: float = 0.0

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "CriuSettings":
        """Raises Damaged."""
        try:
            found = cls(**json.loads(data))
            if not (isinstance(found.program, str) and isinstance(found.work, str)):
                raise TypeError("program and work are strings")
            found = replace(found, held=float(found.held))
        except (ValueError, TypeError) as exc:
            raise Damaged(f"cannot read what is asked of CRIU: {exc}") from exc
        return found


def decode_stdio(data: bytes) -> dict[str, str]:
    """By what name CRIU knows each of the container's streams. Comes from an archive: raises Damaged."""
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise Damaged(f"cannot read {STDIO_FILE}: {exc}") from exc
    if not isinstance(found, dict) or not found.keys() <= _STREAMS:
        raise Damaged(f"cannot read {STDIO_FILE}: it names no streams")
    for id in found.values():
        if not isinstance(id, str) or not _EXTERNAL.fullmatch(id):
            raise Damaged(f"cannot read {STDIO_FILE}: {id!r} is no file of CRIU's")
    if len(set(found.values())) < len(found):
        raise Damaged(f"cannot read {STDIO_FILE}: one file is two streams")
    return found
