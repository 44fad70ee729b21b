"""Who is attached to a container: each has FIFOs of his own, and gets a copy of its output as soon as it comes.

    <bundle>/attach/<name>/stdout, stderr    made by the reader, who has them open before he asks for his copy

Nobody is ever waited for. What a FIFO cannot take is counted, and said in it as soon as it has room again. Whoever
closes his end is detached; at the container's end the FIFOs are closed behind the last of its output.
"""

import contextlib
import errno
import os
import re
import select
import selectors
import stat
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.ttrpc.server import FAILED_PRECONDITION, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, CallError
from holdfast.workers.shim.gap import STREAMS
from holdfast.workers.shim.loop import Loop, said
from holdfast.workers.shim.pump import enlarge

ATTACH: Final = "holdfast.io/attach"  # the annotation of Update that names the directory
DIRECTORY: Final = "attach"
LIMIT: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_RESOLVE: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_XDEV


class Attached:
    """The readers of one container's output."""

    def __init__(self, loop: Loop, bundle: Path) -> None:
        self._loop = loop
        self._bundle = bundle
        self._ends: dict[int, _End] = {}  # by descriptor
        self._epoll: select.epoll | None = None  # says who has gone, and where there is room that had run out
        self._over = False

    def __bool__(self) -> bool:
        return bool(self._ends)

    def add(self, directory: str) -> None:
        """Send copies to the FIFOs in a directory; asked twice, it is done once. Raises CallError."""
        parent, _, name = directory.rpartition("/")
        if parent != str(ours := self._bundle / DIRECTORY) or _NAME.fullmatch(name) is None:
            raise CallError(INVALID_ARGUMENT, f"cannot attach: {directory!r} is no directory in {ours}")
        if self._over:
            raise CallError(FAILED_PRECONDITION, "cannot attach: its output has ended")
        attached = {end.name for end in self._ends.values()}
        if name in attached:
            return
        if len(attached) >= LIMIT:
            raise CallError(RESOURCE_EXHAUSTED, f"cannot attach: {LIMIT} are attached already")
        try:
            found = self._open(name)
        except OSError as exc:
            raise CallError(FAILED_PRECONDITION, f"cannot attach: {said(exc)}") from exc
        if not found:
            raise CallError(FAILED_PRECONDITION, f"cannot attach: nobody reads a FIFO in {directory}")

    def find(self) -> None:
        """Go on for those who were attached when what copied for them was killed. What it had in hand may be lost."""
        try:
            names = sorted(os.listdir(self._bundle / DIRECTORY))
        except OSError:
            return
        for name in names:
            with contextlib.suppress(OSError):
                self._open(name, unsure=True)

    def send(self, stream: str, data: bytes) -> None:
        """A copy for each who reads this stream. Never waits, never raises."""
        for end in self._ends.values():
            if end.stream == stream and end.take(data):
                self._await(end, select.EPOLLOUT)

    def finish(self) -> None:
        """That was all. Who has a loss to be told of sees his end behind that."""
        self._over = True
        for end in [end for end in self._ends.values() if not end.behind]:
            self._drop(end)

    def _open(self, name: str, *, unsure: bool = False) -> bool:
        """Returns whether anybody reads there. Raises OSError for what should not be there."""
        found: list[_End] = []
        bundle = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for stream in STREAMS:
                path = f"{DIRECTORY}/{name}/{stream}"
                with contextlib.suppress(FileNotFoundError):
                    if (fd := _open_fifo(bundle, path)) >= 0:
                        found.append(_End(fd, name, stream, unsure=unsure))
        except OSError:
            for end in found:
                os.close(end.fd)
            raise
        finally:
            os.close(bundle)
        for end in found:
            self._add(end)
        return bool(found)

    def _add(self, end: "_End") -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.selector.register(self._epoll, selectors.EVENT_READ, self._ready)
        self._ends[end.fd] = end
        self._epoll.register(end.fd, select.EPOLLOUT if end.behind and not end.tell() else 0)

    def _drop(self, end: "_End") -> None:
        assert self._epoll is not None
        del self._ends[end.fd]
        self._epoll.unregister(end.fd)
        os.close(end.fd)
        if not self._ends:
            self._loop.selector.unregister(self._epoll)
            self._epoll.close()
            self._epoll = None

    def _await(self, end: "_End", event: int) -> None:
        """EPOLLOUT or nothing; that its reader has gone is always told."""
        assert self._epoll is not None
        self._epoll.modify(end.fd, event)

    def _ready(self, _: int) -> None:
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0):
            end = self._ends[fd]
            if events & select.EPOLLERR:
                self._drop(end)
            elif end.tell():
                self._await(end, 0)
                if self._over:
                    self._drop(end)


class _End:
    """The end for writing of one FIFO."""

    __slots__ = ("fd", "lost", "name", "stream", "unsure")

    def __init__(self, fd: int, name: str, stream: str, *, unsure: bool) -> None:
        self.fd = fd
        self.name = name
        self.stream = stream
        self.lost = 0
        self.unsure = unsure  # whether something is lost of which nobody knows how much

    @property
    def behind(self) -> bool:
        """Whether there is something to be said before anything else."""
        return self.unsure or self.lost > 0

    def take(self, data: bytes) -> bool:
        """Write what there is room for, and count the rest. Returns whether room has run out just now."""
        was_behind = self.behind
        if not was_behind:
            with contextlib.suppress(OSError):  # it is full, or its reader has gone, of which the epoll tells
                data = data[os.write(self.fd, data) :]
        self.lost += len(data)
        return self.behind and not was_behind

    def tell(self) -> bool:
        """Say what was lost, as lines of their own whatever comes before. Returns whether there was room for that."""
        words = ["output may be lost here: what copied it was killed"] if self.unsure else []
        if self.lost:
            words.append(f"lost {self.lost} bytes of output: the reader was too slow")
        try:
            os.write(self.fd, "".join(f"\r\nholdfast: {text}\r\n" for text in words).encode())
        except OSError:
            return False
        self.lost, self.unsure = 0, False
        return True


def _open_fifo(directory: int, path: str) -> int:
    """A FIFO that somebody has open for reading; -1 when nobody has. Raises OSError."""
    try:
        fd = files.openat2(directory, path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY, _RESOLVE)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return -1
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a FIFO", path)
    enlarge(fd)
    return fd
