"""Port-forward over a WebSocket: the two channels of each port, or a tunnel through which SPDY is spoken.

With channels the ports are known beforehand and each is connected to at once, once; the first message on each channel
is its port. There is no word for the end of one of them: the connection is closed when all are over.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from wsproto.frame_protocol import CloseReason

from holdfast.streaming.session import ForwardEvent, Gone, Opened, ProtocolError, Received
from holdfast.streaming.spdy_forward import SpdyForward
from holdfast.streaming.websocket import PIECE, Channels, Connection

MOST_PORTS: Final = 127  # two channels each, by one byte


class WebSocketForward:
    """See session.Forward. The connection to the n-th port, counted from 0, is n + 1."""

    def __init__(self, base64: bool, ports: Sequence[int]) -> None:
        self._channels = Channels(base64)
        self._ports = list(ports)
        self._live = set(range(1, len(ports) + 1))
        self._gone = False

    def begin(self) -> Iterator[ForwardEvent]:
        for at, port in enumerate(self._ports):
            self._channels.send(2 * at, port.to_bytes(2, "little"))
            self._channels.send(2 * at + 1, port.to_bytes(2, "little"))
        for at, port in enumerate(self._ports):
            yield Opened(at + 1, port)

    def receive(self, data: bytes) -> Iterator[ForwardEvent]:
        if self._gone:
            return
        try:
            for channel, body in self._channels.receive(data):
                connection = channel // 2 + 1
                if channel % 2 == 0 and connection in self._live:
                    yield Received(connection, body)
        except ProtocolError as exc:
            self._channels.connection.close(CloseReason.PROTOCOL_ERROR, str(exc))
            raise
        if self._channels.connection.gone:
            self._gone = True
            yield Gone()

    def consumed(self, connection: int, size: int) -> None:
        """A WebSocket has no windows."""

    def send(self, connection: int, data: bytes) -> None:
        if connection in self._live and data:
            self._channels.send(2 * connection - 2, data)

    def end(self, connection: int) -> None:
        self._live.discard(connection)
        if not self._live:
            self.finish()

    def fail(self, connection: int, error: str) -> None:
        if connection in self._live:
            self._channels.send(2 * connection - 1, error.encode(errors="backslashreplace"))
        self.end(connection)

    def finish(self) -> None:
        self._live.clear()
        self._channels.connection.close()

    def outgoing(self) -> bytes:
        return self._channels.connection.outgoing()

    @property
    def finished(self) -> bool:
        return self._gone


class Tunnel:
    """See session.Forward. The bytes of binary messages, however they are cut, are those of a SPDY connection."""

    def __init__(self) -> None:
        self._outer = Connection()
        self._inner = SpdyForward()
        self.begin, self.consumed = self._inner.begin, self._inner.consumed
        self.send, self.end, self.fail = self._inner.send, self._inner.end, self._inner.fail

    def receive(self, data: bytes) -> Iterator[ForwardEvent]:
        try:
            for part in self._outer.receive(data):
                if part.text:
                    raise ProtocolError("a text, where the bytes of SPDY belong")
                if part.data:
                    yield from self._inner.receive(part.data)
        except ProtocolError as exc:
            self._flush()
            self._outer.close(CloseReason.PROTOCOL_ERROR, str(exc))
            raise
        if self._outer.gone:
            yield from self._inner.receive(b"")

    def finish(self) -> None:
        self._inner.finish()
        self._flush()
        self._outer.close()

    def outgoing(self) -> bytes:
        self._flush()
        return self._outer.outgoing()

    @property
    def finished(self) -> bool:
        return self._outer.gone

    def _flush(self) -> None:
        data = self._inner.outgoing()
        for at in range(0, len(data), PIECE):
            self._outer.send(data[at : at + PIECE])
