"""What is between a container and its log at this moment, written where the death of the shim does not take it.

A file beside the FIFOs, on the volatile filesystem, so that nothing but the kernel has to live on. For each stream it
says how many bytes are about to be read, or are read and not in the log yet, and keeps what waits for its newline.
The shim that adopts the pod goes on with the one and says in the log how much the other was.
"""

import os
import struct
from pathlib import Path
from typing import Final

from holdfast.workers.shim.crilog import LINE_LIMIT
from holdfast.workers.shim.gap import STREAMS, Lost

FLIGHT: Final = "log.flight"
_HEAD: Final = struct.Struct("=II")  # bytes announced, bytes of the rest that follows
_SLOT: Final = 8 + 2 * LINE_LIMIT
_LOST: Final = struct.Struct("=4Q")  # what the log could not take and has not reported
_LOST_AT: Final = len(STREAMS) * _SLOT


class Flight:
    """The file of one container. A filesystem that is full costs the account, not the log."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / FLIGHT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._rests = dict.fromkeys(STREAMS, b"")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def announce(self, stream: str, size: int) -> None:
        """So many bytes are about to be read."""
        self._write(STREAMS.index(stream) * _SLOT, _HEAD.pack(size, len(self._rests[stream])))

    def landed(self, stream: str, rest: bytes) -> None:
        """They are in the log or accounted for, but for a `rest` without its newline."""
        at = STREAMS.index(stream) * _SLOT
        if rest:
            self._write(at + _HEAD.size, rest)
        self._rests[stream] = rest
        self._write(at, _HEAD.pack(0, len(rest)))

    def account(self, lost: Lost) -> None:
        """So much the log has had to count as lost and has not said yet."""
        self._write(_LOST_AT, _LOST.pack(*lost))

    def left(self, stream: str) -> tuple[int, bytes]:
        """What a dead shim had announced of a stream, and the rest that waits for its newline."""
        data = os.pread(self._fd, _SLOT, STREAMS.index(stream) * _SLOT)
        announced, size = _HEAD.unpack(data[: _HEAD.size]) if len(data) >= _HEAD.size else (0, 0)
        rest = self._rests[stream] = data[_HEAD.size : _HEAD.size + size]
        return announced, rest

    def left_lost(self) -> Lost:
        """What a dead shim's log had lost and not said."""
        data = os.pread(self._fd, _LOST.size, _LOST_AT)
        return _LOST.unpack(data) if len(data) == _LOST.size else (0, 0, 0, 0)

    def _write(self, at: int, data: bytes) -> None:
        try:
            os.pwrite(self._fd, data, at)
        except OSError:
            return
