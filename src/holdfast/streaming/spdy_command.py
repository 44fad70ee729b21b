"""Exec and attach over SPDY/3.1, versions 1 to 4 of the protocol: a stream for each direction, opened by the client."""

from collections.abc import Iterator

from holdfast.streaming import spdy_connection
from holdfast.streaming.session import (
    STDERR,
    STDOUT,
    CommandEvent,
    Gone,
    Input,
    InputEnded,
    Outcome,
    ProtocolError,
    Ready,
    Resize,
    Wanted,
)
from holdfast.streaming.spdy import WINDOW, Data, SynStream
from holdfast.streaming.status import FIRST_WITH_RESIZE, Sizes, told

ERROR, STDIN, RESIZE = "error", "stdin", "resize"


class SpdyCommand:
    """See session.Command. Ready when each stream that was asked for, and the one for the error, is open."""

    def __init__(self, version: int, wanted: Wanted) -> None:
        self._version = version
        self._connection = spdy_connection.Connection()
        self._awaited = {ERROR} | {name for name in (STDIN, STDOUT, STDERR) if getattr(wanted, name)}
        if wanted.tty:
            self._awaited -= {STDERR}
            self._awaited |= {RESIZE} if version >= FIRST_WITH_RESIZE else set()
        self._number: dict[str, int] = {}  # of a stream that this side may still write to
        self._sends: dict[int, str] = {}  # what the client may still write to
        self._stdin = 0
        self._sizes = Sizes()
        self._ready = self._gone = self._finished = False
        # What came before Ready: a client need not wait for the answer to each stream that he opens.
        self._early, self._early_end = bytearray(), False
        self._early_size: Resize | None = None

    def begin(self) -> Iterator[CommandEvent]:
        return iter(())

    def receive(self, data: bytes) -> Iterator[CommandEvent]:
        yield from self._connection.deliver(data, self._opened, self._received, self._reset)
        if self._connection.gone:
            yield from self._leave()

    def consumed(self, size: int) -> None:
        self._connection.consumed(self._stdin, size)

    def send(self, stream: str, data: bytes) -> None:
        if stream in self._number and data:
            self._connection.send(self._number[stream], data)

    def finish(self, outcome: Outcome) -> None:
        # The error first: clients of version 1 read no further once stdout and stderr have ended.
        for name, number in sorted(self._number.items(), key=lambda one: one[0] != ERROR):
            self._connection.send(number, told(outcome, self._version) if name == ERROR else b"", fin=True)
        self._number.clear()
        self._connection.go_away()
        self._finished = True

    def outgoing(self) -> bytes:
        return self._connection.outgoing()

    @property
    def finished(self) -> bool:
        left = self._gone or self._connection.goodbye or not self._sends
        return self._finished and left

    def _opened(self, frame: SynStream) -> Iterator[CommandEvent]:
        name = frame.headers.get("streamtype", "")
        if name not in self._awaited or self._finished:
            self._connection.refuse(frame.stream)
            return
        self._awaited.remove(name)
        self._connection.accept(frame.stream)
        self._number[name] = frame.stream
        self._sends[frame.stream] = name
        self._stdin = frame.stream if name == STDIN else self._stdin
        if frame.fin:
            yield from self._ended(frame.stream)
        if not self._awaited:
            self._ready = True
            yield Ready()
            if self._early_size:
                yield self._early_size
            if self._early:
                yield Input(bytes(self._early))
                self._early.clear()
            if self._early_end:
                yield InputEnded()

    def _received(self, frame: Data) -> Iterator[CommandEvent]:
        name = self._sends.get(frame.stream)
        if name == STDIN and frame.data:
            yield from self._input(frame.data)
        else:
            self._connection.consumed(frame.stream, len(frame.data))
        if name == RESIZE:
            for size in self._sizes.receive(frame.data):
                if self._ready and not self._gone:
                    yield size
                else:
                    self._early_size = size
        if frame.fin:
            yield from self._ended(frame.stream)

    def _input(self, data: bytes) -> Iterator[CommandEvent]:
        if self._ready and not self._gone:
            yield Input(data)
        elif not self._gone:
            self._early += data
            if len(self._early) > WINDOW:
                raise ProtocolError(f"more than {WINDOW} bytes of stdin before {', '.join(sorted(self._awaited))} came")

    def _ended(self, stream: int) -> Iterator[CommandEvent]:
        """The client sends no more on it."""
        if self._sends.pop(stream, "") != STDIN or self._gone:
            return
        if self._ready:
            yield InputEnded()
        self._early_end = True

    def _reset(self, stream: int) -> Iterator[CommandEvent]:
        """The client is through with it in both directions."""
        name = next((name for name, number in self._number.items() if number == stream), "")
        yield from self._ended(stream)
        self._number.pop(name, None)
        if name == ERROR:  # what a client closes when he leaves; he would not learn how it ends
            yield from self._leave()

    def _leave(self) -> Iterator[CommandEvent]:
        if not self._gone:
            self._gone = True
            self._number.clear()
            yield Gone()
