"""The unprivileged half of an exec or attach: between the client's protocol and FIFOs.

Nothing waits for the sick: while the client does not read, output is left in its FIFO once 1 MiB waits for him; while
stdin's FIFO is full he is not read from.
"""

import os
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Final

from holdfast.streaming.session import (
    Command,
    CommandEvent,
    ForwardEvent,
    Gone,
    Input,
    InputEnded,
    Outcome,
    Ready,
    Resize,
)
from holdfast.workers.outbox import Outbox
from holdfast.workers.shim.loop import Loop, Timer, watch
from holdfast.workers.streamer import line as lines
from holdfast.workers.streamer.client import Client

CHUNK: Final = 64 * 1024
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
# After the end: what is then in a FIFO has come from the process; what comes later, from children that it has left.
LAST_BYTES: Final = 2 * 1024 * 1024
READY_SECONDS: Final = 30.0  # for the client to open his streams
QUIET_SECONDS: Final = 0.5
QUIET_TERMINAL: Final = 10.0  # a terminal is hung up with its process, and the FIFO with the terminal: wait for that


class Frames:
    """Owns the line, the client's connection and the FIFOs: `stdin` is -1 for none."""

    def __init__(
        self,
        loop: Loop,
        line: socket.socket,
        connection: socket.socket,
        codec: Command,
        stdin: int,
        outputs: Mapping[str, int],
        *,
        terminal: bool,
    ) -> None:
        self._loop = loop
        self._line = line
        self._codec = codec
        self._stdin = stdin
        self._outputs = dict(outputs)
        self._quiet_seconds = QUIET_TERMINAL if terminal else QUIET_SECONDS
        self._inbox = Outbox()  # for stdin
        self._input_ended = False
        self._ready = False  # the client is
        self._begun = False  # the process has
        self._outcome: Outcome | None = None
        self._quiet: Timer | None = None
        self._last = LAST_BYTES
        self.client = Client(loop, connection, codec, self._take, self._moved, self._gone)
        loop.selector.register(line, _READ, self._told)
        loop.timers.add(READY_SECONDS, self._look_whether_ready)

    # -- from the client

    def _take(self, event: CommandEvent | ForwardEvent) -> None:
        match event:
            case Ready():
                self._ready = True
                lines.tell(self._line, "ready")
            case Input(data):
                self._inbox.put(data)
                self._write()
            case InputEnded():
                self._input_ended = True
                self._write()
            case Resize(width, height):
                lines.tell(self._line, "resize", width=width, height=height)
            case Gone():
                self.client.end("")

    def _write(self) -> None:
        """To stdin what it takes; the client hears of what it has taken, and is not read from while it is full."""
        taken = 0
        if self._stdin >= 0 and self._begun and self._outcome is None:
            try:
                taken = self._inbox.drain(lambda part: os.write(self._stdin, part))
            except OSError:  # nobody reads it any more
                self._close_stdin()
        if self._stdin < 0 or self._outcome is not None:
            taken += self._inbox.clear()
        if taken:
            self._codec.consumed(taken)
        if self._input_ended and not self._inbox.size and self._stdin >= 0 and self._begun:
            self._close_stdin()
            lines.tell(self._line, "input ended")
        if self._stdin >= 0:
            watch(self._loop.selector, self._stdin, _WRITE if self._inbox.size and self._begun else 0, self._writable)
        self.client.hold(bool(self._inbox.size))

    def _writable(self, _: int) -> None:
        self._write()
        self._moved()
        self.client.flush()

    def _close_stdin(self) -> None:
        watch(self._loop.selector, self._stdin, 0, self._writable)
        os.close(self._stdin)
        self._stdin = -1

    def _gone(self, why: str) -> None:
        if why:
            lines.tell(self._line, "words", text=why)
        self._loop.running = False

    def _look_whether_ready(self) -> None:
        if not self._ready:
            self.client.end("the client has not opened its streams")

    # -- to the client

    def _moved(self) -> None:
        """Read from the FIFOs if there is room for it."""
        for stream, fd in self._outputs.items():
            reader = self._reader(stream, fd)
            watch(self._loop.selector, fd, _READ if self._begun and not self.client.full else 0, reader)

    def _reader(self, stream: str, fd: int) -> Callable[[int], None]:
        return lambda _: self._read(stream, fd)

    def _read(self, stream: str, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if data:
            self._codec.send(stream, data)
        else:
            self._close_output(stream)
        if self._outcome is not None:
            self._last -= len(data)
            self._await_quiet()
        self.client.flush()
        self._moved()

    def _close_output(self, stream: str) -> None:
        fd = self._outputs.pop(stream)
        watch(self._loop.selector, fd, 0, self._writable)
        os.close(fd)

    # -- the end

    def _told(self, _: int) -> None:
        match lines.hear_order(self._line):
            case Outcome() as outcome:
                self._loop.selector.unregister(self._line)
                self._outcome = outcome
                self._write()
                self._await_quiet()
            case True:
                self._begun = True
                self._write()
                self._moved()
            case False:
                self._loop.selector.unregister(self._line)
                self.client.end("")

    def _await_quiet(self) -> None:
        """Everything that was written before the end is told before the end is."""
        if self._quiet is not None:
            self._quiet.cancel()
        if self._outcome is None:
            return
        if not self._outputs or self._last <= 0 or not self._begun:
            self._conclude(self._outcome)
        else:
            seconds = QUIET_SECONDS if self._outcome.error else self._quiet_seconds
            self._quiet = self._loop.timers.add(seconds, self._quiet_now)

    def _quiet_now(self) -> None:
        if self.client.full:  # it is he who is quiet
            self._await_quiet()
        else:
            self._last = 0
            self._await_quiet()

    def _conclude(self, outcome: Outcome) -> None:
        for stream in list(self._outputs):
            self._close_output(stream)
        self._codec.finish(outcome)
        self.client.hang_up()
