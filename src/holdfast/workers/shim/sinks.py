"""Where else containerd's clients have output go: to a file, file://PATH, or to a program, binary://PATH?key=value.

Such a program reads stdout from descriptor 3 and stderr from 4 until their end, and says at 5 that it is ready. That
is not waited for: what is written meanwhile stays in the pipe.
"""

import contextlib
import fcntl
import os
import select
import sys
import traceback
from collections.abc import Mapping
from typing import Final

from holdfast.linux.inject import fault
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.pump import enlarge
from holdfast.workers.shim.spawn import spawn

FILE_SCHEME: Final = "file://"
PROGRAM_SCHEME: Final = "binary://"
LOWEST: Final = 6  # above those that the program is given
PATIENCE: Final = 86_400.0
PAUSE: Final = 1.0
PAUSE_LONGEST: Final = 30.0


def enlarged_pipe() -> tuple[int, int]:
    """(read end, write end) of a pipe of 1 MiB, or of what this user may have (pipe(7))."""
    ends = os.pipe2(os.O_CLOEXEC)
    enlarge(ends[0])
    return ends


class File:
    """A file to which output is appended as it comes. What it cannot take is counted, and said in it later."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        self._lost = 0
        self._why = ""

    def take(self, data: bytes) -> None:
        try:
            if self._lost:
                self._write(f"\nholdfast: lost {self._lost} bytes of output: {self._why}\n".encode())
                self._lost = 0
            self._write(data)
        except OSError as exc:
            self._lost += len(data)
            self._why = exc.strerror or str(exc)

    def _write(self, data: bytes) -> None:
        while data:
            fault("write", self._path)
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        if self._fd >= 0:
            self.take(b"")
            os.close(self._fd)
            self._fd = -1


class Program:
    """A program that takes the output. One that ends before its input does is run again, with what it has not read.

    `ends` are the write ends by number, 1 and 2, for whoever takes them out; they are then his to close.
    """

    def __init__(self, loop: Loop, uri: str, environment: Mapping[str, str]) -> None:
        from urllib.parse import parse_qsl, urlsplit  # which no shim of holdfastd needs

        parts = urlsplit(uri)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        self._command = [parts.path, *(word for pair in pairs for word in pair if word)]
        self._loop = loop
        self._environment = environment
        self._sources: list[int] = []
        self._said = -1  # kept, as who says that he is ready into a pipe that nobody reads is killed
        self.ends: dict[int, int] = {}
        for number in (1, 2):
            source, self.ends[number] = enlarged_pipe()
            self._sources.append(_high(source))
        try:
            pid = self._run()
        except OSError:
            self.close()
            raise
        loop.start(self._tend(pid), _report)

    def close(self) -> None:
        """The program goes on until it has read all there is; it is not run again."""
        for fd in (*self._sources, *self.ends.values()):
            os.close(fd)
        self._sources.clear()
        self.ends.clear()
        self._forget()

    def _forget(self) -> None:
        if self._said >= 0:
            os.close(self._said)
            self._said = -1

    def _run(self) -> int:
        """Returns its pid. Raises OSError."""
        with contextlib.ExitStack() as closing:
            null = _high(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            closing.callback(os.close, null)
            self._said, ready = map(_high, os.pipe2(os.O_CLOEXEC))
            closing.callback(os.close, ready)
            stdout, stderr = self._sources
            fds = {0: null, 1: null, 2: null, 3: stdout, 4: stderr, 5: ready}
            return spawn(self._command, env=self._environment, fds=fds)

    async def _tend(self, pid: int) -> None:
        pause = PAUSE
        while True:
            if pid and (status := await self._loop.exited(pid, PATIENCE)) is None:
                continue
            self._forget()
            if not self._sources or all(map(_is_over, self._sources)):
                return
            if pid:
                print(f"{self._command[0]} ended with {status}, and is run again", file=sys.stderr)  # noqa: T201
            await self._loop.sleep(pause)
            pause = min(pause * 2, PAUSE_LONGEST)
            if not self._sources:
                return
            try:
                pid = self._run()
            except OSError as exc:
                print(f"cannot run {self._command[0]}: {exc.strerror}", file=sys.stderr)  # noqa: T201
                pid = 0


def _high(fd: int) -> int:
    """The same descriptor under a number that the program is not given anything under."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    os.close(fd)
    return copy


def _is_over(fd: int) -> bool:
    """Whether a pipe has nobody who writes, and nothing to read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return all(event & select.POLLHUP and not event & select.POLLIN for _, event in poll.poll(0) or [(fd, 0)])


def _report(_: object, error: Exception | None) -> None:
    if error is not None:
        traceback.print_exception(error)
