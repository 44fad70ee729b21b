"""Where a process's stdin, stdout and stderr go: named pipes that outlive their readers, a terminal, or nowhere.

A container's FIFOs are opened read-write for it: with nobody at the other end it sees neither EPIPE nor EOF (fifo(7)).
"""

import contextlib
import errno
import fcntl
import os
import selectors
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast.linux import files, sockets
from holdfast.workers.shim.crilog import CriLog

PIPE_BYTES: Final = 1024 * 1024
CHUNK: Final = 256 * 1024
LOG_SCHEME: Final = "cri://"
_NULL: Final = "/dev/null"

Sink = Callable[[bytes], None]


def fifo_pair(path: Path) -> tuple[int, int]:
    """Make a FIFO. Returns (our end to read, not blocking; the container's end, opened read-write)."""
    files.fifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    writer = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Refused when this user's pipes have reached pipe-user-pages-soft (pipe(7)); a smaller one does as well.
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


class Pump:
    """Moves what a descriptor has to say to a sink, as it comes; `drain` takes all there is at the end."""

    def __init__(self, selector: selectors.BaseSelector, source: int, sink: Sink, finish: Callable[[], None]) -> None:
        self._selector = selector
        self._source = source
        self._sink = sink
        self._finish = finish
        os.set_blocking(source, False)
        selector.register(source, selectors.EVENT_READ, self._readable)

    def _readable(self, _: int) -> None:
        if not self._take():
            self.close()

    def _take(self) -> bool:
        """Take one portion. Returns False at the end: of a pipe, or of a terminal that nobody has open (EIO)."""
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return True
        except OSError as exc:
            if exc.errno == errno.EIO:
                return False
            raise
        if data:
            self._sink(data)
        return bool(data)

    def drain(self) -> None:
        """Take what is there now; the end of a log is the exit and a drained pipe, not EOF."""
        if self._source < 0:
            return
        waiting = struct.pack("i", 0)
        while self._source >= 0 and struct.unpack("i", fcntl.ioctl(self._source, termios.FIONREAD, waiting))[0]:
            if not self._take():
                break
        self.close()

    def close(self) -> None:
        if self._source >= 0:
            self._selector.unregister(self._source)
            os.close(self._source)
            self._source = -1
            self._finish()


class Outlet:
    """Writes to somebody's FIFO without ever waiting for him; what does not fit waits here, within a bound."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._unsent = bytearray()

    def __call__(self, data: bytes) -> None:
        self._unsent += data[: max(0, 4 * PIPE_BYTES - len(self._unsent))]
        try:
            while self._unsent:
                del self._unsent[: os.write(self._fd, self._unsent[:65536])]
        except BlockingIOError:
            return

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Stdio:
    """The three streams of one process. `fds` are for the OCI runtime to inherit; close them once it runs."""

    def __init__(self, selector: selectors.BaseSelector, directory: Path) -> None:
        self._selector = selector
        self._directory = directory
        self._pumps: list[Pump] = []
        self._outlets: list[Outlet] = []
        self._paths: list[Path] = []
        self._stdin = -1
        self._console: socket.socket | None = None
        self._stdin_path = ""
        self._sinks: tuple[Sink, Callable[[], None]] | None = None
        self.log: CriLog | None = None
        self.master = -1
        self.fds: dict[int, int] = {}
        self.kept: dict[str, int] = {}  # by key: what the keeper is to hold copies of

    # -- set-up

    def open_container(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        """FIFOs in the bundle, their output going to a CRI log, to FIFOs of the caller, or nowhere."""
        if terminal:
            self._open_console(stdout, stdin)
            return
        self._open_input(stdin)
        for number, name, target in ((1, "stdout", stdout), (2, "stderr", stderr)):
            if not target:
                self._null(number)
                continue
            reader, writer = fifo_pair(self._path(name))
            self.fds[number] = writer
            self.kept[name] = reader
            sink, finish = self._sink(target, name.encode())
            self._pumps.append(Pump(self._selector, reader, sink, finish))

    def open_exec(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        """The caller's FIFOs themselves: nothing is copied, except for a terminal."""
        if terminal:
            self._open_console(stdout, stdin)
            return
        for number, path, flags in (
            (0, stdin, os.O_RDONLY | os.O_NONBLOCK),
            (1, stdout, os.O_RDWR),
            (2, stderr, os.O_RDWR),
        ):
            if path:
                self.fds[number] = os.open(path, flags | os.O_CLOEXEC)
                os.set_blocking(self.fds[number], True)
            else:
                self._null(number)

    def _open_input(self, stdin: str) -> None:
        """The container reads from a FIFO of which we keep the other end open until CloseIO."""
        if not stdin:
            self._null(0)
            return
        path = self._path("stdin")
        files.fifo(path)
        both = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # so that neither of the next two waits for the other
        self.fds[0] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._stdin = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.close(both)
        if stdin != str(path):
            self._feed(stdin, self._stdin)

    def _feed(self, source: str, target: int) -> None:
        """Copy from somebody's FIFO into ours. Ours has 64 KiB and blocks nobody: what does not fit is read later."""
        os.set_blocking(target, False)
        fd = os.open(source, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

        def forward(data: bytes) -> None:
            try:
                os.write(target, data)
            except BlockingIOError:
                return

        self._pumps.append(Pump(self._selector, fd, forward, lambda: None))

    def _open_console(self, stdout: str, stdin: str) -> None:
        for number in (0, 1, 2):
            self._null(number)
        path = self._path("console.sock")
        self._console = sockets.listen(path)
        self._console.setblocking(False)
        self._sinks = self._sink(stdout, b"stdout") if stdout else ((lambda _: None), (lambda: None))
        self._stdin_path = stdin

    @property
    def console(self) -> str:
        """The path for --console-socket; "" without a terminal."""
        return str(self._directory / "console.sock") if self._console is not None else ""

    def take_console(self) -> None:
        """Receive the terminal that the OCI runtime has sent. Raises OSError when it has not."""
        assert self._console is not None and self._sinks is not None
        with self._console.accept()[0] as peer:
            _, (self.master, *_) = sockets.receive(peer, 4096)
        self._console.close()
        self.kept["tty"] = self.master
        self._pumps.append(Pump(self._selector, os.dup(self.master), *self._sinks))
        if self._stdin_path and self._stdin_path != str(self._directory / "stdin"):
            self._feed(self._stdin_path, self.master)

    def _sink(self, target: str, stream: bytes) -> tuple[Sink, Callable[[], None]]:
        if target.startswith(LOG_SCHEME):
            if self.log is None:
                self.log = CriLog(target.removeprefix(LOG_SCHEME))
            log = self.log
            return (lambda data: log.write(stream, data)), (lambda: log.finish(stream))
        outlet = Outlet(target)
        self._outlets.append(outlet)
        return outlet, outlet.close

    def _null(self, number: int) -> None:
        self.fds[number] = os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)

    def _path(self, name: str) -> Path:
        path = self._directory / name
        path.unlink(missing_ok=True)
        self._paths.append(path)
        return path

    # -- afterwards

    def given(self) -> None:
        """The process has its ends: close ours of them."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        """End of input for the process."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def drain(self) -> None:
        """The process has ended: take what it has left, finish its log."""
        for pump in self._pumps:
            pump.drain()
        if self.log is not None:
            self.log.close()

    def close(self) -> None:
        """Let go of everything, and of the FIFOs' names."""
        self.given()
        self.close_stdin()
        self.drain()
        if self._console is not None:
            self._console.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        for outlet in self._outlets:
            outlet.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
