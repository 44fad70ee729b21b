"""The server's end of a WebSocket (RFC 6455) after its handshake, and Kubernetes' channels in its messages. No I/O.

A message is handed on as it arrives, in parts: however long it is, no more of it is here than the caller has read.
"""

import binascii
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wsproto.connection import SERVER, ConnectionState
from wsproto.connection import Connection as Protocol
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from holdfast.streaming.session import ProtocolError

PIECE: Final = 64 * 1024  # bytes of a message that is made here
CLOSE: Final = 255  # the channel that says which channel has ended (version 5)


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a message; a text is its UTF-8."""

    data: bytes
    text: bool
    last: bool


class Connection:
    """`gone`: the client sends nothing more. Pings and a close are answered here."""

    def __init__(self) -> None:
        self.gone = False
        self._protocol = Protocol(SERVER)
        self._outgoing = bytearray()

    def receive(self, data: bytes) -> Iterator[Part]:
        """Parts of messages; b"" is the client's end. Raises ProtocolError."""
        if self.gone or not data:
            self.gone = True
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            match event:
                case TextMessage():
                    yield Part(event.data.encode(), True, event.message_finished)
                case BytesMessage():
                    yield Part(bytes(event.data), False, event.message_finished)
                case Ping():
                    self._send(event.response())
                case CloseConnection():
                    # wsproto's word for a close that has come, and for one that must be sent for what has come.
                    if self._protocol.state not in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
                        raise ProtocolError(f"not a WebSocket's frame: {event.reason}")
                    self.gone = True
                    self._send(event.response())
                case _:
                    pass

    def send(self, message: bytes | str) -> None:
        self._send(BytesMessage(message) if isinstance(message, bytes) else TextMessage(message))

    def close(self, code: CloseReason = CloseReason.NORMAL_CLOSURE, reason: str = "") -> None:
        self._send(CloseConnection(code, reason))

    def outgoing(self) -> bytes:
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def _send(self, event: Event) -> None:
        """Nothing follows a close (RFC 6455, section 5.5.1)."""
        answer = self._protocol.state is ConnectionState.REMOTE_CLOSING and isinstance(event, CloseConnection)
        if answer or self._protocol.state is ConnectionState.OPEN:
            self._outgoing += self._protocol.send(event)


class Channels:
    """Messages of which the first byte is a channel's number; with `base64` a digit, and the rest of them encoded."""

    def __init__(self, base64: bool) -> None:
        self.connection = Connection()
        self._base64 = base64
        self._channel: int | None = None  # of the message that is under way
        self._undecoded = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Channel and bytes; those of CLOSE are the number of another. Raises ProtocolError."""
        for part in self.connection.receive(data):
            body = part.data
            if self._channel is None and body:
                self._channel, body = body[0] - (ord("0") if self._base64 else 0), body[1:]
            if self._channel is None:
                continue  # an empty message
            channel = self._channel
            if part.last:
                self._channel = None
            body = self._decoded(body, part.last) if self._base64 else body
            if body:
                yield channel, body

    def send(self, channel: int, data: bytes) -> None:
        """One message at least, also of no bytes."""
        for at in range(0, len(data) or 1, PIECE):
            body = data[at : at + PIECE]
            self.connection.send(f"{channel}{b64encode(body).decode()}" if self._base64 else bytes([channel]) + body)

    def _decoded(self, body: bytes, last: bool) -> bytes:
        whole = self._undecoded + body
        cut = len(whole) // 4 * 4
        self._undecoded = b"" if last else whole[cut:]
        try:
            return binascii.a2b_base64(whole if last else whole[:cut], strict_mode=True)
        except binascii.Error as exc:
            raise ProtocolError(f"a message is not in base64: {exc}") from exc
