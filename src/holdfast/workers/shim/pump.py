"""Moving bytes: from a descriptor to a sink, or from one descriptor to another. Never waits."""

import contextlib
import errno
import fcntl
import os
import selectors
import sys
import termios
from collections.abc import Callable
from typing import Final

from holdfast.workers.shim.loop import Loop, void

PIPE_BYTES: Final = 1024 * 1024
CHUNK: Final = 64 * 1024
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE

Sink = Callable[[bytes], None]
Announce = Callable[[int], None]


class Pump:
    """Moves what a descriptor has to say to a sink, one portion a turn. Owns the descriptor."""

    def __init__(self, loop: Loop, source: int, sink: Sink, announce: Announce = void) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._announce = announce  # is told how much will be read, before it is
        os.set_blocking(source, False)
        loop.selector.register(source, _READ, self._readable)

    def drain(self) -> None:
        """Take what is there now: at most what the pipe can hold, as somebody may go on writing."""
        left = 2 * PIPE_BYTES
        while left > 0 and (taken := self._take()) > 0:
            left -= taken

    def close(self) -> None:
        if self._source >= 0:
            self._loop.selector.unregister(self._source)
            os.close(self._source)
            self._source = -1

    def _readable(self, _: int) -> None:
        if self._take() == 0:
            self.close()

    def _take(self) -> int:
        """How many bytes were taken; 0 at the end, -1 when there is nothing now."""
        if self._source < 0:
            return -1
        size = max(1, min(_readable_bytes(self._source), CHUNK))
        self._announce(size)
        try:
            data = os.read(self._source, size)
        except BlockingIOError:
            self._announce(0)
            return -1
        except OSError as exc:
            if exc.errno == errno.EIO:  # a terminal whose other side has been hung up
                return 0
            raise
        if data:
            self._sink(data)
        else:
            self._announce(0)
        return len(data)


class Copier:
    """Copies from one descriptor to another with one portion in between: a target that is full stops the source.

    Owns both. At the end of the source, or after `finish` when it has nothing more, the target is closed.
    """

    def __init__(self, loop: Loop, source: int, target: int) -> None:
        self._selector = loop.selector
        self._source = source
        self._target = target
        self._portion = b""
        self._full = False
        self._finishing = False
        for fd in (source, target):
            os.set_blocking(fd, False)
        self._selector.register(source, _READ, self._ready)

    def finish(self) -> None:
        """Copy what is there, and close both once it is delivered."""
        self._finishing = True
        self._ready(0)

    def close(self) -> None:
        if self._source >= 0:
            self._selector.unregister(self._target if self._full else self._source)
            os.close(self._source)
            os.close(self._target)
            self._source = -1

    def _ready(self, _: int) -> None:
        while self._source >= 0 and (self._portion or self._read()) and self._write() and self._finishing:
            pass

    def _read(self) -> bool:
        """Whether there is a portion to write now."""
        try:
            self._portion = os.read(self._source, CHUNK)
        except BlockingIOError:
            if self._finishing:
                self.close()
            return False
        except OSError:  # EIO: a terminal whose other side has been hung up
            self._portion = b""
        if not self._portion:
            self.close()
        return bool(self._portion)

    def _write(self) -> bool:
        """Whether the portion is gone. While it is not, the target is watched instead of the source."""
        try:
            self._portion = self._portion[os.write(self._target, self._portion) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return False
        if bool(self._portion) is not self._full:
            self._full = not self._full
            self._selector.unregister(self._source if self._full else self._target)
            waiting, event = (self._target, _WRITE) if self._full else (self._source, _READ)
            self._selector.register(waiting, event, self._ready)
        return not self._full


def enlarge(pipe: int) -> None:
    """To 1 MiB, or as it is when this user's pipes have reached pipe-user-pages-soft (pipe(7))."""
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _readable_bytes(fd: int) -> int:
    """FIONREAD of ioctl_tty(2) and pipe(7)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
