"""Where a process's stdin, stdout and stderr go: a log, somebody's FIFO, a terminal, or nowhere.

log        the process writes to a FIFO of 1 MiB in the bundle, opened read-write for it: with nobody at the other
           end it sees neither EPIPE nor EOF (fifo(7)), whoever dies. The shim reads it and writes the CRI log.
FIFO       a path given by the caller is opened the same way and is the process's own; nothing is copied.
file, program   what else containerd's clients ask for (shim.sinks), through a pipe.
terminal   the OCI runtime sends the master over a socket; what it says is copied to the log or to a FIFO. The shim
           keeps the other side open too, so that a terminal nobody has open at the moment is quiet, not at its end.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from holdfast.linux import files, null, sockets
from holdfast.workers.shim.flight import FLIGHT
from holdfast.workers.shim.gap import STREAMS
from holdfast.workers.shim.loop import Loop, void
from holdfast.workers.shim.output import Output
from holdfast.workers.shim.pump import Announce, Copier, Pump, Sink, enlarge
from holdfast.workers.shim.sinks import FILE_SCHEME, PROGRAM_SCHEME, File, Program, enlarged_pipe

LOG_SCHEME: Final = "cri://"
CONSOLE: Final = "console.sock"
TIOCGPTPEER: Final = 0x5441


class Stdio:
    """The three streams of one process.

    `fds` are what the OCI runtime is to inherit; `given` closes them once it has. `kept` are what the keeper is to
    hold copies of, by name: "stdout", "stderr", "stdin", "tty".
    """

    def __init__(self, loop: Loop, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is that of a program that takes the output; with one, stdin ends when its writer goes."""
        self._loop = loop
        self.directory = directory
        self._environment = environment
        self._files: dict[str, File] = {}
        self._programs: dict[str, Program] = {}
        self._pumps: list[Pump] = []
        self._copiers: list[Copier] = []
        self._own_fifos: list[Path] = []
        self._stdin = -1
        self._master = -1
        self._slave = -1
        self._input: Copier | None = None  # to a terminal
        self._sink: Sink = void  # from it
        self._announce: Announce = void
        self._ends: dict[int, int] = {}  # FIFOs that wait for it
        self._socket: socket.socket | None = None
        self._directory_fd = -1
        self.output = Output(loop, directory)
        self.fds: dict[int, int] = {}
        self.kept: dict[str, int] = {}

    def open(self, stdin: str, stdout: str, stderr: str) -> None:
        """Without a terminal. Raises OSError."""
        self._open_input(stdin)
        for number, name, target in ((1, "stdout", stdout), (2, "stderr", stderr)):
            if target.startswith(LOG_SCHEME):
                self.fds[number] = self._open_log(name, target.removeprefix(LOG_SCHEME))
            elif target.startswith(FILE_SCHEME):
                reader, self.fds[number] = enlarged_pipe()
                self._pumps.append(Pump(self._loop, reader, self._file(target).take))
            else:
                self.fds[number] = self._open_end(number, target) if target else null.open_own()
        self._leave_programs()

    def give(self, uid: int, gid: int) -> None:
        """Have what the process writes to and reads from belong to these: it may open it again (/dev/stdout)."""
        for fd in self.fds.values():
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, uid, gid)

    def close(self) -> None:
        """Let go of everything, and of the FIFOs that are our own."""
        self.given()
        self.close_stdin()
        if self._input is not None:
            self._input.close()
        for pump in self._pumps:
            pump.close()
        for copier in self._copiers:
            copier.close()
        for file in self._files.values():
            file.close()
        for program in self._programs.values():
            program.close()
        self.output.close()
        if self._socket is not None:
            self._close_socket()
        for fd in (self._master, self._slave, *self._ends.values()):
            if fd >= 0:
                os.close(fd)
        self._ends.clear()
        self._master = self._slave = -1
        for path in self._own_fifos:
            path.unlink(missing_ok=True)

    def given(self) -> None:
        """The process has its ends: close ours of them."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def close_stdin(self) -> None:
        """End of input for the process, once nobody else has the FIFO open for writing either. No more can open it."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1
        self.kept.pop("stdin", None)
        if (fifo := self.directory / "stdin") in self._own_fifos:
            fifo.unlink(missing_ok=True)
        if self._input is not None:
            self._input.finish()

    def finish(self) -> None:
        """The process has ended: take what it has left behind and complete its log."""
        self.close_stdin()
        for pump in self._pumps:
            pump.drain()
        for copier in self._copiers:
            copier.finish()
        self.output.finish()

    def resize(self, width: int, height: int) -> None:
        """Raises OSError ENOTTY without a terminal."""
        if self._master < 0:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    # -- with a terminal

    def open_terminal(self, stdin: str, stdout: str) -> str:
        """Listen for the terminal that the OCI runtime will send. Returns the path for --console-socket."""
        for number in (0, 1, 2):
            self.fds[number] = null.open_own()
        if stdout.startswith(LOG_SCHEME):
            self._sink, self._announce = self.output.take("stdout", stdout.removeprefix(LOG_SCHEME))
        elif stdout.startswith(FILE_SCHEME):
            self._sink = self._file(stdout).take
        elif stdout:
            self._ends[1] = self._open_end(1, stdout)
            self._leave_programs()
        if stdin:
            self._own(stdin)
            self._ends[0] = self.kept["stdin"] = open_fifo(stdin, os.O_RDWR)
        self._socket = sockets.listen(self.directory / CONSOLE)
        self._socket.setblocking(False)
        # runc refuses a socket path of more than 107 bytes, which a bundle's may well be.
        self._directory_fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/{os.getpid()}/fd/{self._directory_fd}/{CONSOLE}"

    def take_terminal(self) -> None:
        """The OCI runtime has sent the terminal: connect it. Raises OSError when it has not."""
        assert self._socket is not None
        peer, _ = self._socket.accept()
        with peer:
            _, received = sockets.receive(peer, 4096, 1)
        if not received:
            raise OSError(errno.EBADMSG, "no terminal came over the console socket")
        self._close_socket()
        self._connect(received[0])

    def _connect(self, master: int) -> None:
        self._master = self.kept["tty"] = master
        self._slave = fcntl.ioctl(self._master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        source = _duplicate(self._master)  # an epoll knows a descriptor once, and each direction needs its own entry
        if 1 in self._ends:
            self._copiers.append(Copier(self._loop, source, self._ends.pop(1)))
        else:
            self._pumps.append(Pump(self._loop, source, self._sink, self._announce))
        if 0 in self._ends:
            self._input = Copier(self._loop, self._ends.pop(0), _duplicate(self._master))

    def _close_socket(self) -> None:
        assert self._socket is not None
        self._socket.close()
        self._socket = None
        os.unlink(CONSOLE, dir_fd=self._directory_fd)
        os.close(self._directory_fd)

    # -- without one

    def _open_input(self, stdin: str) -> None:
        """The process reads from a FIFO of which we keep the other end open until CloseIO.

        As containerd's clients do not always say that, what they write is copied, and ends with their writing.
        """
        if not stdin:
            self.fds[0] = null.open_own()
            return
        if self._environment is not None:
            self.fds[0], writer = os.pipe2(os.O_CLOEXEC)
            self._input = Copier(self._loop, open_fifo(stdin, os.O_RDONLY), writer)
            return
        self._own(stdin)
        both = open_fifo(stdin, os.O_RDWR)  # so that neither of the next two waits for the other
        try:
            self.fds[0] = open_fifo(stdin, os.O_RDONLY)
            self._stdin = self.kept["stdin"] = open_fifo(stdin, os.O_WRONLY)
        finally:
            os.close(both)

    def _open_log(self, name: str, path: str) -> int:
        """A FIFO whose content becomes log records. Returns the process's end."""
        fifo = self.directory / name
        fifo.unlink(missing_ok=True)
        self._own(str(fifo))
        writer = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        enlarge(writer)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.kept[name] = reader
        self._pumps.append(Pump(self._loop, reader, *self.output.take(name, path)))
        return writer

    def _file(self, target: str) -> File:
        if target not in self._files:
            self._files[target] = File(target.removeprefix(FILE_SCHEME))
        return self._files[target]

    def _open_end(self, number: int, target: str) -> int:
        """What is written to: a program's pipe, or a FIFO."""
        if not target.startswith(PROGRAM_SCHEME):
            return open_fifo(target, os.O_RDWR)
        if target not in self._programs:
            self._programs[target] = Program(self._loop, target, self._environment or {})
        return self._programs[target].ends.pop(number)

    def _leave_programs(self) -> None:
        """What nobody will write to is at its end."""
        for program in self._programs.values():
            for fd in program.ends.values():
                os.close(fd)
            program.ends.clear()

    # -- of a process that has had another shim

    def claim(self) -> None:
        """Take over the files that a dead shim has made here."""
        for name in ("stdin", *STREAMS, CONSOLE, FLIGHT):
            if (path := self.directory / name).exists():
                self._own_fifos.append(path)

    def adopt(self, paths: tuple[str, str, str], terminal: bool, held: Mapping[str, int]) -> None:
        """Connect to a process that runs, or has run. `held` is what the keeper has, its descriptors now ours.

        Raises OSError for what cannot be had; the rest is connected.
        """
        self.claim()
        stdin, *outputs = paths
        failed: OSError | None = None
        if not terminal and "stdin" in held:
            try:
                self._stdin = self.kept["stdin"] = open_fifo(stdin, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as exc:  # nobody reads it any more
                failed = exc if exc.errno != errno.ENXIO else None
        for name, target in zip(STREAMS, outputs, strict=True):
            if not target.startswith(LOG_SCHEME) or (terminal and name == "stderr"):
                continue
            sink, announce = self.output.resume(name, target.removeprefix(LOG_SCHEME))
            if terminal:
                self._sink, self._announce = sink, announce
                continue
            try:
                reader = open_fifo(str(self.directory / name), os.O_RDONLY)
            except OSError as exc:
                failed = exc
                continue
            self.kept[name] = reader
            self._pumps.append(Pump(self._loop, reader, sink, announce))
        self.output.attached.find()
        if terminal and "tty" in held:
            if outputs[0] and not outputs[0].startswith(LOG_SCHEME):
                self._ends[1] = open_fifo(outputs[0], os.O_RDWR)
            if stdin and os.path.exists(stdin):  # it was not closed
                self._ends[0] = self.kept["stdin"] = open_fifo(stdin, os.O_RDWR)
            self._connect(held["tty"])
        elif terminal:
            failed = OSError(errno.EIO, "its terminal is gone: nobody has held it")
        if failed is not None:
            raise failed

    def _own(self, path: str) -> None:
        """Make a FIFO that is to be in our directory; one that is somewhere else is the caller's."""
        fifo = Path(path)
        if fifo.parent == self.directory and not fifo.exists():
            files.fifo(fifo)
            self._own_fifos.append(fifo)


def owner_of(name: str, args: Mapping[str, Any]) -> dict[str, str] | None:
    """Under containerd: what a program that takes the output of a container, or of an exec, is told of it."""
    namespace = args.get("namespace")
    return {"CONTAINER_ID": name, "CONTAINER_NAMESPACE": namespace} if namespace else None


def open_fifo(path: str, flags: int) -> int:
    """Open a FIFO, and nothing but a FIFO. Never waits if opened read-write or if its other side is open."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a FIFO", path)
    os.set_blocking(fd, True)
    return fd


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
