"""The other end of streaming sessions: who asks for an exec, an attach or a port-forward, over WebSocket. No I/O.

exec and attach speak v5.channel.k8s.io: the first byte of a message is its channel; a message [255, n] ends channel n.
They make do with v4, which is all that runtimes before Kubernetes 1.30 speak, and in which stdin has no end.
A port-forward is SPDY/3.1 in the bytes of a WebSocket's messages (SPDY/3.1+portforward.k8s.io): a pair of streams for
each connection, so that each may be half closed, and is told its own error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import ConnectionState
from wsproto.utilities import ProtocolError as WebSocketError

from holdfast.streaming import spdy
from holdfast.streaming.session import STDERR, STDOUT, Ended, Outcome, ProtocolError, Received

COMMAND: Final = "v5.channel.k8s.io"
ENDLESS: Final = "v4.channel.k8s.io"
FORWARD: Final = "SPDY/3.1+portforward.k8s.io"
STDIN, ERROR, RESIZE, END = 0, 3, 4, 255  # channels of COMMAND
OUTPUTS: Final = {1: STDOUT, 2: STDERR}
LARGEST_PIECE: Final = 32 * 1024  # bytes of one message
LARGEST_ERROR: Final = 64 * 1024  # bytes of a status, of a connection's error, or of an answer that is no upgrade
INTERNAL: Final = "Internal error occurred: "  # what Kubernetes says before it
NORMAL: Final = 1000  # RFC 6455, 7.4.1


class Refused(Exception):
    """The server has answered, and not with an upgrade. Says what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message or f"HTTP status {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of STDOUT or STDERR."""

    stream: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A forwarded connection could not be made, or has broken; both its directions are over."""

    connection: int
    error: str


@dataclass(frozen=True, slots=True)
class Room:
    """The server takes more of this connection than before."""

    connection: int


ForwardEvent = Received | Ended | Failed | Room


class _WebSocket:
    """Pieces of messages in and out, once the upgrade is done: nothing may be sent before it is `open`."""

    def __init__(self, host: str, target: str, *protocols: str) -> None:
        self._protocols = protocols
        self._websocket = WSConnection(ConnectionType.CLIENT)
        request = events.Request(host, target, subprotocols=list(protocols))
        self._outgoing = bytearray(self._websocket.send(request))
        self.protocol: str | None = None  # that the server has chosen
        self._refusal: tuple[int, bytearray] | None = None
        self.open = False
        self.over = False

    def receive(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Pieces of messages, and whether each is the last of its message. Raises ProtocolError, Refused."""
        if self.over:
            return
        try:
            if data:
                self._websocket.receive_data(data)
            elif self._refusal is not None:
                raise self._refused()  # its body lasts until the end
            else:
                self.over = True
                return
            for event in self._websocket.events():
                if isinstance(event, events.Message):
                    piece = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                    yield piece, event.message_finished
                else:
                    self._handle(event)
        except WebSocketError as exc:
            raise ProtocolError(str(exc)) from exc

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.AcceptConnection():
                if event.subprotocol not in self._protocols:
                    known = ", ".join(self._protocols)
                    raise ProtocolError(f"the server does not speak {known}, but {event.subprotocol}")
                self.open, self.protocol = True, event.subprotocol
            case events.RejectConnection():
                self._refusal = event.status_code, bytearray()
                if not event.has_body:
                    raise self._refused()
            case events.RejectData():
                assert self._refusal is not None
                self._refusal[1].extend(event.data[: LARGEST_ERROR - len(self._refusal[1])])
                if event.body_finished:
                    raise self._refused()
            case events.Ping():
                self._outgoing += self._websocket.send(event.response())
            case events.CloseConnection():
                if self._websocket.state is ConnectionState.OPEN:  # wsproto's word for what it cannot read
                    raise ProtocolError(f"not a WebSocket's frame: {event.reason}")
                if self._websocket.state is ConnectionState.REMOTE_CLOSING:
                    self._outgoing += self._websocket.send(event.response())
                self.over = True

    def _refused(self) -> Refused:
        assert self._refusal is not None
        status, body = self._refusal
        return Refused(status, " ".join(body.decode(errors="replace").split()))

    def send(self, message: bytes) -> None:
        assert self._websocket.state is not ConnectionState.CONNECTING
        if self._websocket.state is ConnectionState.OPEN:
            self._outgoing += self._websocket.send(events.BytesMessage(message))

    def close(self) -> None:
        if self._websocket.state is ConnectionState.OPEN:
            self._outgoing += self._websocket.send(events.CloseConnection(NORMAL))

    def outgoing(self) -> bytes:
        found = bytes(self._outgoing)
        self._outgoing.clear()
        return found


class Command:
    """One exec or attach, asked for at `target` of `host` (as its URL has them)."""

    def __init__(self, host: str, target: str) -> None:
        self._websocket = _WebSocket(host, target, COMMAND, ENDLESS)
        self._channel: int | None = None  # of the message that is being received
        self._status = bytearray()
        self.outgoing = self._websocket.outgoing
        self.close = self._websocket.close

    @property
    def open(self) -> bool:
        """Whether the server has agreed: nothing may be sent before."""
        return self._websocket.open

    @property
    def over(self) -> bool:
        """Whether nothing more will come. Without an Outcome by then, the connection was lost."""
        return self._websocket.over

    def receive(self, data: bytes) -> Iterator[Output | Outcome]:
        """What the server's next bytes mean; b"" is their end. Raises ProtocolError, Refused."""
        for piece, finished in self._websocket.receive(data):
            if self._channel is None and piece:
                self._channel, piece = piece[0], piece[1:]
            if self._channel in OUTPUTS and piece:
                yield Output(OUTPUTS[self._channel], piece)
            elif self._channel == ERROR:
                self._status += piece
                if len(self._status) > LARGEST_ERROR:
                    raise ProtocolError(f"a status of more than {LARGEST_ERROR} bytes")
                if finished and self._status:
                    yield outcome_of(bytes(self._status))
            if finished:
                self._channel = None

    def send(self, data: bytes) -> None:
        """Bytes for stdin."""
        for start in range(0, len(data), LARGEST_PIECE):
            self._websocket.send(bytes([STDIN]) + data[start : start + LARGEST_PIECE])

    def end_input(self) -> None:
        """Raises ProtocolError when the server knows no such thing: its command would wait for ever."""
        if self._websocket.protocol == ENDLESS:
            raise ProtocolError(f"the end of stdin cannot be told to a server that speaks only {ENDLESS}")
        self._websocket.send(bytes([END, STDIN]))

    def resize(self, width: int, height: int) -> None:
        self._websocket.send(bytes([RESIZE]) + json.dumps({"Width": width, "Height": height}).encode())


def outcome_of(status: bytes) -> Outcome:
    """How a command ended, from the Status that ends a session (metav1.Status as JSON). Raises ProtocolError."""
    try:
        found: dict[str, Any] = json.loads(status)
        if found.get("status") == "Success":
            return Outcome()
        if found.get("reason") == "NonZeroExitCode":
            causes = found["details"]["causes"]
            return Outcome(next(int(one["message"]) for one in causes if one["reason"] == "ExitCode"))
        return Outcome(error=str(found.get("message") or "no reason was told").removeprefix(INTERNAL))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as exc:
        raise ProtocolError(f"the status {status[:200]!r} cannot be read") from exc


class _Tunnelled:
    """What is known of one forwarded connection."""

    def __init__(self) -> None:
        self.room = spdy.WINDOW
        self.taken = 0  # bytes that the server has not been told of yet
        self.error = bytearray()
        self.ended = False  # we have


class Forward:
    """One port-forward with all its connections, asked for at `target` of `host`."""

    def __init__(self, host: str, target: str) -> None:
        self._websocket = _WebSocket(host, target, FORWARD)
        self._decoder, self._encoder = spdy.Decoder(), spdy.Encoder()
        self._connections: dict[int, _Tunnelled] = {}
        self._next = 1  # a client's streams are odd; a connection has two, and its number is that of its data stream
        self.outgoing = self._websocket.outgoing
        self.close = self._websocket.close

    @property
    def open(self) -> bool:
        return self._websocket.open

    @property
    def over(self) -> bool:
        return self._websocket.over

    def receive(self, data: bytes) -> Iterator[ForwardEvent]:
        """As Command.receive."""
        for piece, _ in self._websocket.receive(data):
            for frame in self._decoder.receive(piece):
                yield from self._handle(frame)

    def _handle(self, frame: spdy.Frame) -> Iterator[ForwardEvent]:
        match frame:
            case spdy.Data():
                yield from self._data(frame)
            case spdy.Reset():
                number, told = self._find(frame.stream)
                if told is not None:
                    del self._connections[number]
                    yield Failed(number, told.error.decode(errors="replace") or "it was reset")
            case spdy.WindowUpdate():
                number, found = self._find(frame.stream)
                if found is not None and number == frame.stream:
                    found.room += frame.more
                    yield Room(number)
            case spdy.Ping():
                if frame.number % 2 == 0:  # the server's own
                    self._send(frame)
            case spdy.GoAway():
                self._websocket.over = True
            case _:
                pass

    def _data(self, frame: spdy.Data) -> Iterator[ForwardEvent]:
        number, found = self._find(frame.stream)
        if found is None:
            return
        if number != frame.stream:  # its error stream
            found.error += frame.data
            if len(found.error) > LARGEST_ERROR:
                raise ProtocolError(f"an error of more than {LARGEST_ERROR} bytes")
            if frame.fin and found.error:
                self.drop(number)
                yield Failed(number, found.error.decode(errors="replace"))
            return
        if frame.data:
            yield Received(number, frame.data)
        if frame.fin:
            yield Ended(number)

    def _find(self, stream: int) -> tuple[int, _Tunnelled | None]:
        """By either of its streams: the error stream is the one before the data stream."""
        number = stream if stream in self._connections else stream + 2
        return number, self._connections.get(number)

    def connect(self, port: int) -> int:
        """Begin a connection to a port of the pod; its number."""
        told, number = self._next, self._next + 2
        self._next += 4
        common = {"port": str(port), "requestid": str(told)}
        self._send(spdy.SynStream(told, {"streamtype": "error", **common}))
        self._send(spdy.Data(told, b"", fin=True))  # nothing is said there by us
        self._send(spdy.SynStream(number, {"streamtype": "data", **common}))
        self._connections[number] = _Tunnelled()
        return number

    def room(self, connection: int) -> int:
        """How many bytes the server takes of this connection now; what is sent for one that is over is dropped."""
        found = self._connections.get(connection)
        return max(0, found.room) if found is not None else LARGEST_PIECE

    def send(self, connection: int, data: bytes) -> None:
        if (found := self._connections.get(connection)) is not None:
            found.room -= len(data)
            for start in range(0, len(data), LARGEST_PIECE):
                self._send(spdy.Data(connection, data[start : start + LARGEST_PIECE]))

    def consumed(self, connection: int, size: int) -> None:
        """So many bytes of what was received have gone where they belong: more of them may come."""
        if (found := self._connections.get(connection)) is not None:
            found.taken += size
            if found.taken >= spdy.WINDOW // 2:
                self._send(spdy.WindowUpdate(connection, found.taken))
                found.taken = 0

    def end(self, connection: int) -> None:
        """Nothing more will be sent; the other direction goes on."""
        found = self._connections.get(connection)
        if found is not None and not found.ended:
            found.ended = True
            self._send(spdy.Data(connection, b"", fin=True))

    def drop(self, connection: int) -> None:
        """Both directions have ended, or are of no use any more."""
        if self._connections.pop(connection, None) is not None:
            self._send(spdy.Reset(connection, spdy.CANCEL))

    def _send(self, frame: spdy.Frame) -> None:
        self._websocket.send(self._encoder.encode(frame))
