"""Container logs in the CRI's format: "<RFC3339Nano> <stdout|stderr> <F|P> <line>".

A container never waits for its log, and nothing is lost silently: what cannot be written is counted, and one line
says how much, from when to when and why, as soon as writing works again. Until then only a timer tries: a write that
fails may take the filesystem long, and other containers share this process.
"""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from holdfast.linux.inject import fault
from holdfast.workers.shim.gap import STREAMS, Gap, Lost, timestamp

LINE_LIMIT: Final = 16 * 1024
RETRY_SECONDS: Final = 0.5
LINGERING: Final = 64
TAIL_BYTES: Final = 256 * 1024
_WINDOW: Final = LINE_LIMIT // 2
# O_NOFOLLOW: whoever may write to the log directory shall not choose which file of the host we append to.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_MODE: Final = 0o640
_TAG: Final = len("1970-01-01T00:00:00.000000000Z stdout ")
_AROUND: Final = _TAG + len("F \n")  # the bytes of a record that are not the container's


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
    `account` is told what is lost and not reported yet, whenever that changes.
    One that is `adopted` is opened when that is possible, and begins with cutting off a torn record.
    """

    def __init__(
        self,
        path: str,
        later: Callable[[float, Callable[[], None]], object],
        account: Callable[[Lost], None] = lambda _: None,
        *,
        adopted: bool = False,
    ) -> None:
        self._path = path
        self._later = later
        self._account = account
        self._fd = -1
        self._gap = Gap()
        self._open: set[str] = set()  # streams whose last record in the file is tagged P
        self._cut: set[str] = set()  # streams that are within a line of which something is lost, so all that follows
        self._torn: tuple[int, int, int] | None = None  # inode, its size without and with the torn record
        self._failing = False  # nothing is written until the timer, or a reopening, has made it work again
        self._stale = False  # the path's file is not the one that is open: reopening has failed
        self._armed = False
        self._closed = False
        try:
            self._renew()
            if adopted:
                self._examine()
        except OSError:
            if not adopted:
                raise

    @property
    def lost(self) -> Lost:
        """What is lost and not reported yet."""
        return self._gap.lost

    def reopen(self) -> None:
        """Write to the file that has the path's name now.

        Raises OSError, and then goes on with the old one and tries again by itself.
        """
        try:
            self._renew()
        except OSError:
            self._stale = True
            self._arm()
            raise
        self.flush()

    def close(self) -> None:
        """The container is done with. What is still to be said is said later, unless the file has been removed."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._gap and self._is_linked():
            _lingering.append(self)
            self._arm()
            if len(_lingering) > LINGERING:
                _lingering[0].give_up()
        else:
            self.give_up()

    def give_up(self) -> None:
        """Let go of the file. What cannot be said in the log is said on stderr."""
        if self in _lingering:
            _lingering.remove(self)
        if self._gap:
            sys.stderr.write(f"{self._path}: {self._gap.marker(time.time_ns()).decode()}")
            self._gap.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def append(self, stream: str, records: bytes, moment: int) -> None:
        """Write records of one stream, or count them as lost. Never raises."""
        if self._failing:
            self._lose(stream, records, moment)
            return
        if stream in self._cut:
            end = _end_of_line(records)
            if not self._gap:
                self._gap.because("the rest of a line")
            self._lose(stream, records[:end], moment)
            records = records[end:]
        if not records:
            return
        if self._gap and not self._cut and not self._report(moment):
            self._lose(stream, records, moment)
            return
        written = self._put(records)
        if written:
            self._note_end(stream, records[:written])
        if written < len(records):
            self._failing = True
            self._lose(stream, records[written:], moment)
            self._arm()

    def lose(self, stream: str, lines: int, size: int, why: str) -> None:
        """Have it said, before anything else is, that so much was lost."""
        self._gap.because(why)
        self._gap.add(stream, lines, size, time.time_ns())
        self._account(self._gap.lost)
        self._arm()

    def flush(self) -> None:
        """Try now what the timer would try later."""
        if self._gap:
            self._report(time.time_ns())

    def _lose(self, stream: str, records: bytes, moment: int) -> None:
        """A line counts when the first of its records is lost, and all that follows of it is lost with it."""
        if not records:
            return
        tags = b"".join(record[_TAG : _TAG + 1] for record in records[:-1].split(b"\n"))
        ends = tags.count(b"F")
        lines = ends + tags.endswith(b"P") - (stream in self._cut)
        self._gap.add(stream, lines, len(records) - len(tags) * _AROUND + ends, moment)
        if tags.endswith(b"P"):
            self._cut.add(stream)
        else:
            self._cut.discard(stream)
        self._account(self._gap.lost)

    def _report(self, moment: int) -> bool:
        """Say what was lost. Returns whether that could be written."""
        for stream in [stream for stream in STREAMS if stream in self._open and stream in self._gap]:
            end = timestamp(moment) + f" {stream} F \n".encode()  # of the line whose beginning is in the file
            if self._put(end) < len(end):
                break
            self._open.discard(stream)
        else:
            marker = self._gap.marker(moment)
            self._failing = self._put(marker) < len(marker)
            if not self._failing:
                self._gap.clear()
                self._account(self._gap.lost)
                return True
        self._failing = True
        self._arm()
        return False

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._later(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._armed = False
        if self._fd < 0 and self._closed:
            return
        if self._closed:
            if not self._is_linked() or self._report(time.time_ns()):
                self.give_up()
            return
        with contextlib.suppress(OSError):  # a filesystem that has failed may have been replaced by another one
            self._renew(make=self._stale or not self._is_linked())
        self.flush()
        if self._stale:
            self._arm()

    # -- the file

    def _renew(self, *, make: bool = True) -> None:
        """Open what has the path's name now, or make it. Raises OSError, with the old one still open."""
        try:
            fd = os.open(self._path, _FLAGS)
        except FileNotFoundError:
            if not make:
                raise
            fd = os.open(self._path, _FLAGS | os.O_CREAT, _MODE)
            with contextlib.suppress(OSError):  # a filesystem that knows no modes
                os.fchmod(fd, _MODE)  # whatever the umask is: log collectors are not root
        if self._fd >= 0:
            self._take_back()
            os.close(self._fd)
        self._fd = fd
        self._stale = False

    def _is_linked(self) -> bool:
        """Whether the open file has a name: what is written to one that has none is lost."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink > 0

    def _put(self, records: bytes) -> int:
        """Write whole records. Returns how many bytes of them are in a file that somebody can read."""
        written = self._write(records)
        if written < len(records) or self._is_linked():
            return written
        try:
            self._renew()
        except OSError as exc:
            self._gap.because(f"its file was removed, {_text(exc)}")
            return 0
        return self._write(records)

    def _write(self, records: bytes) -> int:
        """Returns how many bytes of whole records are in the file; a torn one is taken back."""
        done = 0
        try:
            fault("log", self._path)
            if self._torn is not None and not self._take_back():
                os.write(self._fd, b"\n")  # it may only be appended to: the torn record becomes a line of its own
                self._torn = None
            while done < len(records):
                done += os.write(self._fd, records[done:] if done else records)
            return done
        except OSError as exc:
            self._gap.because(_text(exc))
        whole = records.rfind(b"\n", 0, done) + 1
        if whole < done:
            info = os.fstat(self._fd)
            self._torn = (info.st_ino, info.st_size - (done - whole), info.st_size)
            self._take_back()
        return whole

    def _take_back(self) -> bool:
        """Cut off a torn record, which needs no space. Returns whether the file ends with a whole one."""
        if self._torn is None:
            return True
        inode, whole, torn = self._torn
        info = os.fstat(self._fd)
        if (info.st_ino, info.st_size) == (inode, torn):
            try:
                os.ftruncate(self._fd, whole)
            except OSError:
                return False
        self._torn = None
        return True

    def _note_end(self, stream: str, records: bytes) -> None:
        """Remember whether they end within a line."""
        if records[records.rfind(b"\n", 0, -1) + 1 + _TAG] == ord("P"):
            self._open.add(stream)
        else:
            self._open.discard(stream)

    def _examine(self) -> None:
        """See what a killed shim has left: a torn record behind the last newline, lines of which more is to come."""
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            tail = os.pread(fd, TAIL_BYTES, max(0, info.st_size - TAIL_BYTES))
        finally:
            os.close(fd)
        end = tail.rfind(b"\n") + 1
        if end < len(tail) and (end or len(tail) == info.st_size):
            self._torn = (info.st_ino, info.st_size - (len(tail) - end), info.st_size)
            self._take_back()
        for record in tail[:end].splitlines():
            for stream in STREAMS:
                if record[_TAG - len(stream) - 2 : _TAG] == f" {stream} ".encode():
                    self._note_end(stream, record + b"\n")


_lingering: Final[collections.deque[CriLog]] = collections.deque()  # of ended containers, with something left to say


def last_words() -> None:
    """This process ends."""
    for log in list(_lingering):
        log.flush()
        log.give_up()


def _end_of_line(records: bytes) -> int:
    """Where the line ends that the first of them belongs to."""
    at = 0
    while at < len(records):
        tag = records[at + _TAG]
        at = records.index(b"\n", at) + 1
        if tag == ord("F"):
            break
    return at


def _text(error: OSError) -> str:
    return error.strerror or str(error)
