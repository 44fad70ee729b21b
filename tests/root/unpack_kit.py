"""The unpacker as the keeper runs it, for tests."""

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.workers import unpacker
from holdfast.workers.context import Context


def start(blob: Path, place: Path, lowers: Iterable[Path], deleted: Path | None = None) -> tuple[int, socket.socket]:
    """Fork an unpacker as the keeper would; (pid, our end of the result socket)."""
    for name in ("fs", "work", "merged"):
        (place / name).mkdir(parents=True)
    os.chmod(place / "fs", 0o755)
    args = {"target": str(place / "fs"), "work": str(place / "work"), "merged": str(place / "merged")}
    return _start([blob] if deleted is None else [blob, deleted], {**args, "lowers": [str(one) for one in lowers]})


def _start(sources: list[Path], args: dict[str, Any]) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair()
    blob, *others = [os.open(source, os.O_RDONLY) for source in sources]
    context = Context("unpack", args, [blob, theirs.fileno(), *others], None, *[lambda *_: None] * 3)
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            ours.close()
            unpacker.MEMORY_BYTES += _size()  # a keeper is small, and what runs tests is not
            unpacker.main(context)
            os._exit(0)
        os._exit(1)
    for descriptor in (blob, *others):
        os.close(descriptor)
    theirs.close()
    return pid, ours


def _size() -> int:
    """Of this process's address space, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def unpack(blob: Path, place: Path, lowers: Iterable[Path] = (), deleted: Path | None = None) -> dict[str, Any]:
    """Unpack a layer below `place`; what the unpacker said."""
    return _wait(*start(blob, place, lowers, deleted))


def unpack_volume(blob: Path, directory: Path) -> dict[str, Any]:
    args = {"target": str(directory), "work": "", "merged": "", "lowers": [], "volume": True}
    return _wait(*_start([blob], args))


def _wait(pid: int, ours: socket.socket) -> dict[str, Any]:
    with ours:
        said = bytearray()
        while data := ours.recv(65536):
            said += data
    _, status = os.waitpid(pid, 0)
    assert (status, bool(said)) == (0, True), "the unpacker died without a word"
    message: dict[str, Any] = json.loads(said)
    return message
