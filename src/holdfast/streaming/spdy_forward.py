"""Port-forward over SPDY/3.1: for each connection two streams, one for the error and one for the data.

What makes two streams a pair is the same requestid; clients of before there was one open the data's stream next after
the error's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from holdfast.streaming import spdy_connection
from holdfast.streaming.session import Dropped, Ended, ForwardEvent, Gone, Opened, ProtocolError, Received
from holdfast.streaming.spdy import INTERNAL_ERROR, WINDOW, Data, SynStream

ERROR, DATA = "error", "data"
MOST_PAIRS: Final = 1000
LONGEST_ID: Final = 100


@dataclass(eq=False)
class _Pair:
    key: tuple[str, str]
    port: int
    streams: dict[str, int] = field(default_factory=dict)
    connection: int = 0  # once both streams are there
    early: bytearray = field(default_factory=bytearray)  # data that came before the stream for the error
    client_ended: bool = False
    ended: bool = False


class SpdyForward:
    """See session.Forward."""

    def __init__(self) -> None:
        self._connection = spdy_connection.Connection()
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._streams: dict[int, _Pair] = {}
        self._connections: dict[int, _Pair] = {}
        self._made = 0
        self._gone = self._finished = False

    def begin(self) -> Iterator[ForwardEvent]:
        return iter(())

    def receive(self, data: bytes) -> Iterator[ForwardEvent]:
        yield from self._connection.deliver(data, self._opened, self._received, self._reset)
        if self._connection.gone and not self._gone:
            self._gone = True
            yield Gone()

    def consumed(self, connection: int, size: int) -> None:
        if pair := self._connections.get(connection):
            self._connection.consumed(pair.streams[DATA], size)

    def send(self, connection: int, data: bytes) -> None:
        pair = self._connections.get(connection)
        if pair and not pair.ended and data:
            self._connection.send(pair.streams[DATA], data)

    def end(self, connection: int) -> None:
        pair = self._connections.get(connection)
        if pair and not pair.ended:
            # Both: a client closes his connection only when the error's stream has ended, too.
            pair.ended = True
            self._connection.send(pair.streams[DATA], b"", fin=True)
            self._end_error(pair)
            if pair.client_ended:
                self._forget(pair)

    def fail(self, connection: int, error: str) -> None:
        if pair := self._connections.get(connection):
            if not pair.ended:
                self._end_error(pair, error)
            self._connection.reset(pair.streams[DATA], INTERNAL_ERROR)
            self._forget(pair)

    def finish(self) -> None:
        self._connection.go_away()
        self._finished = True

    def outgoing(self) -> bytes:
        return self._connection.outgoing()

    @property
    def finished(self) -> bool:
        return self._gone or (self._finished and (self._connection.goodbye or not self._pairs))

    def _opened(self, frame: SynStream) -> Iterator[ForwardEvent]:
        kind, port = frame.headers.get("streamtype", ""), _port(frame.headers.get("port", ""))
        key = ("id", frame.headers.get("requestid", ""))
        if not key[1]:
            key = ("stream", str(frame.stream if kind == ERROR else frame.stream - 2))
        pair = self._pairs.get(key) or _Pair(key, port)
        known = kind in (ERROR, DATA) and port and len(key[1]) <= LONGEST_ID
        if not known or kind in pair.streams or pair.port != port or self._finished or self._too_many(key):
            self._connection.refuse(frame.stream)
            return
        self._connection.accept(frame.stream)
        pair.streams[kind] = frame.stream
        self._pairs[key] = self._streams[frame.stream] = pair
        pair.client_ended |= frame.fin and kind == DATA
        if len(pair.streams) == 2:
            self._made += 1
            pair.connection = self._made
            self._connections[pair.connection] = pair
            yield Opened(pair.connection, port)
            # Whoever hears this may have failed the connection by now, and has to hear no more of it.
            if pair.early and pair.connection in self._connections:
                yield Received(pair.connection, bytes(pair.early))
            pair.early.clear()
            if pair.client_ended and pair.connection in self._connections:
                yield Ended(pair.connection)

    def _too_many(self, key: tuple[str, str]) -> bool:
        return key not in self._pairs and len(self._pairs) >= MOST_PAIRS

    def _received(self, frame: Data) -> Iterator[ForwardEvent]:
        pair = self._streams.get(frame.stream)
        if pair is None or pair.streams.get(DATA) != frame.stream or pair.client_ended:
            self._connection.consumed(frame.stream, len(frame.data))
            return
        if pair.connection and frame.data:
            yield Received(pair.connection, frame.data)
        elif frame.data:
            pair.early += frame.data
            if len(pair.early) > WINDOW:
                raise ProtocolError(f"more than {WINDOW} bytes for port {pair.port} before the stream for its error")
        if frame.fin and frame.stream in self._streams:
            pair.client_ended = True
            if pair.ended:
                self._forget(pair)
            if pair.connection:
                yield Ended(pair.connection)

    def _reset(self, stream: int) -> Iterator[ForwardEvent]:
        pair = self._streams.get(stream)
        if pair is None:
            return
        kind = DATA if pair.streams.get(DATA) == stream else ERROR
        if kind == ERROR and pair.connection:
            # Nothing can be told of it any more; its data goes on.
            pair.streams[ERROR] = 0
            del self._streams[stream]
            return
        if kind == DATA and ERROR in pair.streams and not pair.ended:
            self._end_error(pair)
        if kind == ERROR and DATA in pair.streams:
            self._connection.refuse(pair.streams[DATA])
        self._forget(pair)
        if pair.connection:
            yield Dropped(pair.connection)

    def _end_error(self, pair: _Pair, error: str = "") -> None:
        if pair.streams[ERROR]:
            self._connection.send(pair.streams[ERROR], error.encode(errors="backslashreplace"), fin=True)

    def _forget(self, pair: _Pair) -> None:
        del self._pairs[pair.key]
        for stream in pair.streams.values():
            self._streams.pop(stream, None)
        self._connections.pop(pair.connection, None)


def _port(text: str) -> int:
    """1 to 65535; 0 for what is no port."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 0xFFFF else 0
