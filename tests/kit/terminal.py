"""A program on a terminal of its own, as a person has it: typed at, looked at, and the terminal's size changed."""

import contextlib
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from types import TracebackType
from typing import Any, Self

SECONDS = 60.0
END = b"\0no more of it\0"


class Terminal:
    """`said` is all that the program has written. It is killed if it is still there at the end."""

    def __init__(
        self, command: Sequence[str], columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = ["setsid", "--ctty", *command]
        self._size = columns, rows
        self._environment = environment
        self._seen = 0
        self.said = b""

    def __enter__(self) -> Self:
        self._master, self._slave = pty.openpty()
        self.resize(*self._size)
        self.before = self.settings()
        self.process = subprocess.Popen(
            self._command, stdin=self._slave, stdout=self._slave, stderr=self._slave, env=self._environment
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def settings(self) -> list[Any]:
        """As tcgetattr(3) has them."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, rows: int) -> None:
        ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            with contextlib.suppress(BlockingIOError):
                self.said += os.read(self._master, 65536)
        return bool(ready)

    def expect(self, wanted: str) -> str:
        """What was written before `wanted`; what comes after it is for the next time."""
        deadline = time.monotonic() + SECONDS
        while (at := self.said.find(wanted.encode(), self._seen)) < 0:
            left = deadline - time.monotonic()
            assert left > 0 and (self._read(min(left, 0.2)) or self.process.poll() is None or self._read(0)), (
                f"waited in vain for {wanted!r}, after {self.said[self._seen :][-500:]!r}"
            )
        found, self._seen = self.said[self._seen : at], at + len(wanted.encode())
        return found.decode(errors="replace")

    def end(self) -> int:
        """Its exit status, once it has ended and all was read."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end, after {self.said[self._seen :][-500:]!r}"
            self._read(0.05)
        while self._read(0):
            pass
        os.write(self._slave, END)  # what a program writes is handed on a moment later, and in its order
        while END not in self.said:
            assert self._read(deadline - time.monotonic()), f"no end comes after {self.said[-500:]!r}"
        self.said = self.said.replace(END, b"")
        return int(self.process.returncode)
