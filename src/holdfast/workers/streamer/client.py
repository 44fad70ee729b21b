"""A session's client, in the process without privileges: what he sends becomes events, what is for him waits here."""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from holdfast.linux import sockets
from holdfast.streaming.session import Command, CommandEvent, Forward, ForwardEvent, ProtocolError
from holdfast.workers.outbox import Outbox
from holdfast.workers.shim.loop import Loop, Timer, watch

CHUNK: Final = 64 * 1024
WAITING_BYTES: Final = 1024 * 1024  # for a client that does not read; then what he would be sent is not read either
STALL_SECONDS: Final = 60.0  # at the end, for one that takes nothing of what is for him
LINGER_SECONDS: Final = 5.0  # and for one that has all, to hang up: hanging up first could take it from him
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class Client:
    """Owns the connection. `take` gets the events; `moved` is called when something was read or sent; `gone` once,
    at the end, with the reason if it is worth telling.
    """

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        codec: Command | Forward,
        take: Callable[[CommandEvent | ForwardEvent], None],
        moved: Callable[[], None],
        gone: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._codec = codec
        self._take = take
        self._moved = moved
        self._gone = gone
        self._outbox = Outbox()
        self._held = False
        self._ending = False
        self._shut = False
        self._over = False
        self._timer: Timer | None = None
        connection.setblocking(False)
        sockets.keep_alive(connection)
        self._active = time.monotonic()
        self._hangups = sockets.hangups(connection)

    @property
    def full(self) -> bool:
        """Whether so much waits for him that nothing more should come."""
        return self._outbox.size >= WAITING_BYTES

    def begin(self, answer: bytes, rest: bytes) -> None:
        """Send the answer to his request; `rest` is what he has sent behind it."""
        self._outbox.put(answer)
        for event in self._codec.begin():
            self._take(event)
        if rest:
            self._hear(rest)
        self.flush()
        if not self._over:
            self._moved()

    def end_when_idle(self, seconds: float) -> None:
        """As if he had gone, when nothing has passed in either direction for so long."""
        left = self._active + seconds - time.monotonic()
        if left > 0:
            self._loop.timers.add(left, lambda: self.end_when_idle(seconds))
        else:
            self.end(f"nothing has passed for {seconds:g} s")

    def hold(self, held: bool) -> None:
        """Do not read from him for now."""
        self._held = held
        if not self._over:
            self._watch()

    def flush(self) -> None:
        """Send what the codec has for him."""
        if self._over:
            return
        self._outbox.put(self._codec.outgoing())
        try:
            sent = self._outbox.drain(self._connection.send)
        except OSError:
            self.end("")
            return
        if sent:
            self._active = time.monotonic()
        if self._ending and (sent or self._has_all() is not self._shut):
            self._see_off()
        self._watch()

    def hang_up(self) -> None:
        """When he has all that is for him."""
        self._ending = True
        self._held = False
        self._see_off()
        self.flush()

    def end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._watch()
        self._hangups.close()
        self._connection.close()
        self._gone(why)

    def _has_all(self) -> bool:
        return not self._outbox.size and self._codec.finished

    def _see_off(self) -> None:
        """One step towards the end, and so much longer to wait for the next."""
        if self._timer is not None:
            self._timer.cancel()
        if self._has_all() and not self._shut:
            self._shut = True
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        seconds = STALL_SECONDS if self._outbox.size else LINGER_SECONDS
        self._timer = self._loop.timers.add(seconds, lambda: self.end(""))

    def _hear(self, data: bytes) -> None:
        self._active = time.monotonic()
        try:
            for event in self._codec.receive(data):
                self._take(event)
        except ProtocolError as exc:
            self.flush()  # what the codec has to say to that
            self.end(f"the client does not keep to the protocol: {exc}")
            return
        if not data:
            self.end("")

    def _ready(self, events: int) -> None:
        if events & _WRITE:
            self.flush()
        if events & _READ and not self._over and self._reads():
            try:
                data = self._connection.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if self._shut and data:
                return  # all has been said
            self._hear(data)
            self.flush()
        if not self._over:
            self._moved()

    def _reads(self) -> bool:
        return not self._held and self._outbox.size < 2 * WAITING_BYTES

    def _watch(self) -> None:
        """Have the selector look for what is of interest now."""
        selector, alive = self._loop.selector, not self._over
        reads = alive and self._reads()
        writes = alive and self._outbox.size > 0
        watch(selector, self._connection, reads * _READ | writes * _WRITE, self._ready)
        watch(selector, self._hangups, (alive and not reads) * _READ, lambda _: self.end(""))
