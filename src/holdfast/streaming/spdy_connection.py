"""The server's end of a SPDY connection: what concerns the connection is done here, what concerns streams is told.

Flow control is one-sided. The clients of Kubernetes (moby/spdystream: kubectl, crictl, and the proxies of kubelet and
API server) neither heed nor send WINDOW_UPDATE: nothing here waits for one, a peer that sends more than a window is
none the worse, and what holds him up is that his bytes are not read from the socket. Clients that keep to the draft
are told what was taken, for the stream and for the connection (draft 3.1, section 2.6.8).
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from holdfast.streaming.session import ProtocolError
from holdfast.streaming.spdy import (
    PIECE,
    REFUSED_STREAM,
    Data,
    Decoder,
    Encoder,
    Frame,
    GoAway,
    Ping,
    Reset,
    SynReply,
    SynStream,
    WindowUpdate,
)

StreamFrame = SynStream | Data | Reset
E = TypeVar("E")  # what a user of the connection tells in his turn
GOAWAY_OK, GOAWAY_PROTOCOL_ERROR = 0, 1


class Connection:
    """`goodbye`: the client opens no more streams (GOAWAY). `gone`: he sends nothing more at all."""

    def __init__(self) -> None:
        self.goodbye = False
        self.gone = False
        self._decoder, self._encoder = Decoder(), Encoder()
        self._outgoing = bytearray()
        self._last = 0  # the last stream that the client has opened

    def receive(self, data: bytes) -> Iterator[StreamFrame]:
        """What the client does with his streams; b"" is his end. Raises ProtocolError."""
        if not data:
            self.gone = True
        for frame in () if self.gone else self._decoder.receive(data):
            match frame:
                case SynStream(stream):
                    if stream % 2 == 0 or stream <= self._last:
                        raise ProtocolError(f"stream {stream} can not be opened by a client after {self._last}")
                    self._last = stream
                    yield frame
                case Data() | Reset():
                    yield frame
                case Ping(number) if number % 2:  # even numbers would be those of pings from here
                    self.write(frame)
                case GoAway():
                    self.goodbye = True
                case _:
                    pass

    def deliver(
        self,
        data: bytes,
        opened: Callable[[SynStream], Iterator[E]],
        received: Callable[[Data], Iterator[E]],
        reset: Callable[[int], Iterator[E]],
    ) -> Iterator[E]:
        """The same, each to whom it is for. A client that keeps to no protocol is told so before ProtocolError."""
        try:
            for frame in self.receive(data):
                match frame:
                    case SynStream():
                        yield from opened(frame)
                    case Data():
                        yield from received(frame)
                    case Reset():
                        yield from reset(frame.stream)
        except ProtocolError:
            self.go_away(GOAWAY_PROTOCOL_ERROR)
            raise

    def accept(self, stream: int) -> None:
        self.write(SynReply(stream))

    def refuse(self, stream: int) -> None:
        self.write(Reset(stream, REFUSED_STREAM))

    def consumed(self, stream: int, size: int) -> None:
        """So many bytes of a stream's data were taken."""
        if size:
            self.write(WindowUpdate(stream, size))
            self.write(WindowUpdate(0, size))

    def send(self, stream: int, data: bytes, fin: bool = False) -> None:
        """Data in pieces, the last of them the stream's end if that is asked for."""
        last = max(0, len(data) - 1) // PIECE * PIECE
        for at in range(0, last, PIECE):
            self.write(Data(stream, data[at : at + PIECE]))
        if data or fin:
            self.write(Data(stream, data[last:], fin))

    def reset(self, stream: int, status: int) -> None:
        self.write(Reset(stream, status))

    def go_away(self, status: int = GOAWAY_OK) -> None:
        self.write(GoAway(self._last, status))

    def write(self, frame: Frame) -> None:
        self._outgoing += self._encoder.encode(frame)

    def outgoing(self) -> bytes:
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data
