"""The unprivileged half of a port-forward: between the client's protocol and ports of the pod, in the pod's network.

Where that is gVisor's own, into which no namespace leads, it is in the host's, and goes to the pod's addresses.
"""

import contextlib
import errno
import os
import selectors
import socket
from collections.abc import Sequence
from typing import Final

from holdfast.streaming.session import (
    CommandEvent,
    Dropped,
    Ended,
    Forward,
    ForwardEvent,
    Gone,
    Opened,
    Received,
)
from holdfast.workers.outbox import Outbox
from holdfast.workers.shim.loop import Loop, watch
from holdfast.workers.streamer import line as lines
from holdfast.workers.streamer.client import Client

CHUNK: Final = 64 * 1024
WAITING_BYTES: Final = 1024 * 1024  # for a port that does not read; then the client is not read from
CONNECTIONS: Final = 512
LOOPBACK: Final = ("127.0.0.1", "::1")
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class Port:
    """One connection to a port, made as soon as possible. What comes for it meanwhile waits."""

    def __init__(self, owner: "Forwarding", number: int, port: int) -> None:
        self._owner = owner
        self._number = number
        self._port = port
        self._socket: socket.socket | None = None
        self._addresses = iter(owner.addresses)
        self._connected = False
        self._outbox = Outbox()
        self._input_ended = False
        self._output_ended = False

    @property
    def full(self) -> bool:
        return self._outbox.size >= WAITING_BYTES

    def connect(self, failure: str = "no address") -> None:
        """Try the next address."""
        self._let_go()
        host = next(self._addresses, None)
        if host is None:
            self._owner.fail(self._number, f"cannot connect to port {self._port} of the pod: {failure}")
            return
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found = self._socket.connect_ex((host, self._port))
        except (OSError, OverflowError) as exc:
            self.connect(getattr(exc, "strerror", None) or str(exc))
            return
        if found not in (0, errno.EINPROGRESS):
            self.connect(os.strerror(found))
            return
        self.watch()

    def put(self, data: bytes) -> None:
        self._outbox.put(data)
        self._write()

    def end(self) -> None:
        """No more comes from the client."""
        self._input_ended = True
        self._write()

    def close(self) -> None:
        self._let_go()

    def watch(self) -> None:
        """Have the selector look for what is of interest now."""
        if self._socket is None:
            return
        if self._connected:
            reads = not self._output_ended and not self._owner.client.full
            events = (_READ if reads else 0) | (_WRITE if self._outbox.size else 0)
        else:
            events = _WRITE
        watch(self._owner.loop.selector, self._socket, events, self._ready)

    def _ready(self, events: int) -> None:
        assert self._socket is not None
        error = 0 if self._connected else self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.connect(os.strerror(error))
        else:
            self._connected = True
            self._write()
            if events & _READ and self._socket is not None and not self._output_ended:
                self._read()
        self._owner.moved()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._broken(exc)
            return
        if data:
            self._owner.codec.send(self._number, data)
            return
        self._output_ended = True
        self._owner.codec.end(self._number)
        self._settle()

    def _write(self) -> None:
        if self._socket is None or not self._connected:
            return
        try:
            if taken := self._outbox.drain(self._socket.send):
                self._owner.codec.consumed(self._number, taken)
        except OSError as exc:
            self._broken(exc)
            return
        if self._input_ended and not self._outbox.size:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        self._settle()

    def _settle(self) -> None:
        if self._input_ended and self._output_ended and not self._outbox.size:
            self._owner.forget(self._number)

    def _broken(self, exc: OSError) -> None:
        self._owner.fail(self._number, f"the connection to port {self._port} of the pod has broken: {exc.strerror}")

    def _let_go(self) -> None:
        if self._socket is not None:
            watch(self._owner.loop.selector, self._socket, 0, self._ready)
            self._socket.close()
            self._socket = None


class Forwarding:
    """All connections of one client. Owns the line and his connection."""

    def __init__(
        self,
        loop: Loop,
        line: socket.socket,
        connection: socket.socket,
        codec: Forward,
        addresses: Sequence[str] = LOOPBACK,
    ) -> None:
        self.loop = loop
        self.codec = codec
        self.addresses = addresses
        self._line = line
        self._ports: dict[int, Port] = {}
        self.client = Client(loop, connection, codec, self._take, self.moved, self._gone)
        loop.selector.register(line, _READ, lambda _: self.client.end(""))  # the monitor is gone

    def moved(self) -> None:
        """Something was read or sent: send what there is for the client, and look at who may go on."""
        self.client.flush()
        self.client.hold(any(port.full for port in self._ports.values()))
        for port in list(self._ports.values()):
            port.watch()

    def fail(self, number: int, why: str) -> None:
        self.codec.fail(number, why)
        self.forget(number)

    def forget(self, number: int) -> None:
        if (port := self._ports.pop(number, None)) is not None:
            port.close()

    def _take(self, event: CommandEvent | ForwardEvent) -> None:
        match event:
            case Opened(number, port) if len(self._ports) >= CONNECTIONS:
                self.codec.fail(
                    number, f"cannot connect to port {port} of the pod: there are {CONNECTIONS} connections"
                )
            case Opened(number, port):
                self._ports[number] = Port(self, number, port)
                self._ports[number].connect()
            case Received(number, data):
                if (known := self._ports.get(number)) is not None:
                    known.put(data)
                else:
                    self.codec.consumed(number, len(data))
            case Ended(number) if number in self._ports:
                self._ports[number].end()
            case Dropped(number):
                self.forget(number)
            case Gone():
                self.client.end("")

    def _gone(self, why: str) -> None:
        if why:
            lines.tell(self._line, "words", text=why)
        self.loop.running = False
