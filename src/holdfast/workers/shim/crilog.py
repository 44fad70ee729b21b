"""Container logs in the CRI's format: "<RFC3339Nano> <stdout|stderr> <F|P> <line>".

A container never waits for its log, and nothing is lost silently: what cannot be written is counted, and one line
says how much, from when to when and why, as soon as writing works again.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

from holdfast.linux.inject import fault

LINE_LIMIT: Final = 16 * 1024
RETRY_SECONDS: Final = 1.0
TAIL_BYTES: Final = 256 * 1024
_WINDOW: Final = LINE_LIMIT // 2
# O_NOFOLLOW: whoever may write to the log directory shall not choose which file of the host we append to.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_MODE: Final = 0o640


def timestamp(moment: int) -> bytes:
    """RFC 3339 in UTC with nine digits, from ns since the epoch."""
    seconds, rest = divmod(moment, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


class Records:
    """Turns the bytes of one stream, in whatever pieces they come, into log records. No I/O.

    A line of more than LINE_LIMIT bytes becomes records tagged P, and its end one tagged F. What has no newline yet
    waits for it, at most LINE_LIMIT bytes.
    """

    def __init__(self, stream: str, rest: bytes = b"") -> None:
        self._full = f" {stream} F ".encode()
        self._partial = f" {stream} P ".encode()
        self._rest = rest

    @property
    def rest(self) -> bytes:
        """What waits for its newline."""
        return self._rest

    def feed(self, data: bytes, moment: int) -> bytes:
        """The records that are complete now, all with the time at which their bytes were read."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n")
        self._rest = data[end + 1 :]
        now = timestamp(moment)
        if end < 0:
            out = b""
        elif _are_short(data, end):
            full = now + self._full
            out = full + data[:end].replace(b"\n", b"\n" + full) + b"\n"
        else:
            out = self._long(data[:end], now)
        return out + self._cut(now) if len(self._rest) > LINE_LIMIT else out

    def finish(self, moment: int) -> bytes:
        """The stream has ended: what had no newline is a record tagged P."""
        rest, self._rest = self._rest, b""
        return timestamp(moment) + self._partial + rest + b"\n" if rest else b""

    def _long(self, body: bytes, now: bytes) -> bytes:
        full, partial = now + self._full, now + self._partial
        out: list[bytes] = []
        for line in body.split(b"\n"):
            start = 0
            while len(line) - start > LINE_LIMIT:
                out += (partial, line[start : start + LINE_LIMIT], b"\n")
                start += LINE_LIMIT
            out += (full, line[start:], b"\n")
        return b"".join(out)

    def _cut(self, now: bytes) -> bytes:
        """Portions of a line whose end has not come yet."""
        partial, rest = now + self._partial, self._rest
        out: list[bytes] = []
        start = 0
        while len(rest) - start > LINE_LIMIT:
            out += (partial, rest[start : start + LINE_LIMIT], b"\n")
            start += LINE_LIMIT
        self._rest = rest[start:]
        return b"".join(out)


def _are_short(data: bytes, end: int) -> bool:
    """Whether no line before `end` is over the limit: so it is when every half limit's worth of bytes has a newline.

    Far cheaper than looking at each line, and wrong only towards the slow path.
    """
    return all(data.find(b"\n", at, at + _WINDOW) >= 0 for at in range(0, end - _WINDOW + 1, _WINDOW))


class CriLog:
    """One log file, appended to by both streams of a container.

    `later(seconds, callback)` is the loop's timer: with it a loss is reported even if the container says nothing more.
    One that is `adopted` is opened when that is possible, and begins with cutting off a torn record.
    """

    def __init__(
        self, path: str, later: Callable[[float, Callable[[], None]], object], *, adopted: bool = False
    ) -> None:
        self._path = path
        self._later = later
        self._fd = -1
        self._lines = 0  # lost and not yet reported, as are the next four
        self._bytes = 0
        self._since = 0
        self._until = 0
        self._why = ""
        self._closed = False
        try:
            self.reopen()
            if adopted:
                self._mend()
        except OSError:
            if not adopted:
                raise

    @property
    def lost(self) -> tuple[int, int]:
        """(lines, bytes) that are lost and not yet reported."""
        return self._lines, self._bytes

    def reopen(self) -> None:
        """Write to the file that has the path's name now. Raises OSError, and then goes on with the old one."""
        try:
            fd = os.open(self._path, _FLAGS)
        except FileNotFoundError:
            fd = os.open(self._path, _FLAGS | os.O_CREAT, _MODE)
            os.fchmod(fd, _MODE)  # whatever the umask is: log collectors are not root
        self.close()
        self._fd = fd
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def append(self, records: bytes, moment: int) -> None:
        """Write records, or count them as lost. Never raises."""
        if self._lines and not self._report(moment):
            self._lose(records, moment)
            return
        written = self._put(records)
        if written < len(records):
            self._lose(records[written:], moment)

    def lose(self, lines: int, size: int, why: str, moment: int) -> None:
        """Say that so much was lost, now or as soon as it can be written."""
        if not self._lines:
            self._since = moment
            self._later(RETRY_SECONDS, self._retry)
        self._why, self._until = why, moment
        self._lines += max(lines, 1)
        self._bytes += size
        self._report(moment)

    def _mend(self) -> None:
        """Cut off what a killed shim has left behind the last newline."""
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            tail = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
            torn = len(tail) - (tail.rfind(b"\n") + 1)
            if torn and torn < len(tail):
                os.ftruncate(fd, size - torn)
        finally:
            os.close(fd)

    def _put(self, records: bytes) -> int:
        """Write whole records. Returns how many bytes of them are in the file; a torn one is cut off again."""
        done = 0
        try:
            fault("log", self._path)
            while done < len(records):
                done += os.write(self._fd, records[done:] if done else records)
            return done
        except OSError as exc:
            self._why = exc.strerror or str(exc)
        whole = records.rfind(b"\n", 0, done) + 1
        if whole < done:
            try:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (done - whole))  # needs no space
            except OSError:
                return whole
        return whole

    def _lose(self, records: bytes, moment: int) -> None:
        if not self._lines:
            self._since = moment
            self._later(RETRY_SECONDS, self._retry)
        self._until = moment
        self._lines += records.count(b"\n")
        self._bytes += len(records)

    def _retry(self) -> None:
        if not self._lines or self._closed:
            return
        if self._fd < 0:
            with contextlib.suppress(OSError):
                self.reopen()
        if not self._report(time.time_ns()):
            self._later(RETRY_SECONDS, self._retry)

    def _report(self, moment: int) -> bool:
        """Say what was lost. Returns whether that could be written."""
        text = b"%s stderr F holdfast: lost %d log lines (%d bytes) from %s to %s: %s\n" % (
            timestamp(moment),
            self._lines,
            self._bytes,
            timestamp(self._since),
            timestamp(self._until),
            self._why.encode(),
        )
        if self._put(text) < len(text):
            return False
        self._lines = self._bytes = 0
        return True
