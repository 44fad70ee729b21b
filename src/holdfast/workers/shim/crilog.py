"""Container logs in the CRI's format: "<RFC3339Nano> <stream> <F|P> <line>".

A container never waits for its log, and no line is lost silently: what cannot be written is counted, and one line
says how much and from when to when as soon as writing works again.
"""

import os
import time
from typing import Final

LINE_LIMIT: Final = 16 * 1024
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK


def timestamp(moment: int) -> bytes:
    """RFC 3339 in UTC with nine digits, from ns since the epoch."""
    seconds, rest = divmod(moment, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


class CriLog:
    """One log file, written by both streams of a container."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._pending: dict[bytes, bytes] = {}
        self._lost_lines = 0
        self._lost_bytes = 0
        self._lost_from = b""
        self._lost_to = b""
        self.reopen()

    def reopen(self) -> None:
        """Write to the file that has the path's name now. Raises OSError, and then goes on with the old one."""
        fd = os.open(self._path, _FLAGS, 0o640)
        self.close()
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, stream: bytes, data: bytes) -> None:
        """Take bytes as they were read; whole lines are written, the rest waits for its end."""
        data = self._pending.pop(stream, b"") + data
        *lines, rest = data.split(b"\n")
        now = timestamp(time.time_ns())
        full, partial = b" ".join((now, stream, b"F ")), b" ".join((now, stream, b"P "))
        out: list[bytes] = []
        for line in lines:
            while len(line) > LINE_LIMIT:
                out += (partial, line[:LINE_LIMIT], b"\n")
                line = line[LINE_LIMIT:]
            out += (full, line, b"\n")
        while len(rest) > LINE_LIMIT:
            out += (partial, rest[:LINE_LIMIT], b"\n")
            rest = rest[LINE_LIMIT:]
        if rest:
            self._pending[stream] = rest
        if out:
            self._append(b"".join(out), now)

    def finish(self, stream: bytes) -> None:
        """The stream has ended: what had no newline is written as a partial line."""
        if rest := self._pending.pop(stream, b""):
            now = timestamp(time.time_ns())
            self._append(b" ".join((now, stream, b"P ")) + rest + b"\n", now)

    def _append(self, data: bytes, now: bytes) -> None:
        """All of it or nothing: a torn line is cut off again, which needs no space."""
        if self._lost_lines and not self._put(self._marker(now)):
            self._count(data, now)
            return
        self._lost_lines = self._lost_bytes = 0
        if not self._put(data):
            self._count(data, now)

    def _put(self, data: bytes) -> bool:
        try:
            before = os.fstat(self._fd).st_size
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            try:
                os.ftruncate(self._fd, before)
            except (OSError, UnboundLocalError):
                return False
            return False
        return True

    def _count(self, data: bytes, now: bytes) -> None:
        if not self._lost_lines:
            self._lost_from = now
        self._lost_to = now
        self._lost_lines += data.count(b"\n")
        self._lost_bytes += len(data)

    def _marker(self, now: bytes) -> bytes:
        text = b"holdfast: %d lines (%d bytes) could not be written to this log from %s to %s"
        lost = text % (self._lost_lines, self._lost_bytes, self._lost_from, self._lost_to)
        return b" ".join((now, b"stderr", b"F ")) + lost + b"\n"
