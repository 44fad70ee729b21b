"""Exec and attach over a WebSocket: channels for stdin, stdout, stderr, the error, and the terminal's size.

Nothing has to be opened: the process can begin with the connection. Only version 5 can say that stdin has ended.
"""

from collections.abc import Iterator

from wsproto.frame_protocol import CloseReason

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
    Wanted,
)
from holdfast.streaming.status import Sizes, told
from holdfast.streaming.websocket import CLOSE, Channels

STDIN_CHANNEL, STDOUT_CHANNEL, STDERR_CHANNEL, ERROR_CHANNEL, RESIZE_CHANNEL = range(5)
FIRST_WITH_CLOSE = 5
CLOSES_STDIN = bytes([STDIN_CHANNEL])


class WebSocketCommand:
    """See session.Command."""

    def __init__(self, version: int, base64: bool, wanted: Wanted) -> None:
        self._version = version
        self._channels = Channels(base64)
        self._outputs = {STDOUT: STDOUT_CHANNEL} if wanted.stdout else {}
        if wanted.stderr and not wanted.tty:
            self._outputs[STDERR] = STDERR_CHANNEL
        self._stdin, self._tty = wanted.stdin, wanted.tty
        self._sizes = Sizes()
        self._gone = self._finished = False

    def begin(self) -> Iterator[CommandEvent]:
        if self._version < FIRST_WITH_CLOSE:
            # What tells older clients that the session is there: something on the lowest channel that they read. Those
            # of version 5 do not wait for it, and kubectl up to 1.33 complains when it comes too soon.
            self._channels.send(min(self._outputs.values(), default=ERROR_CHANNEL), b"")
        yield Ready()

    def receive(self, data: bytes) -> Iterator[CommandEvent]:
        if self._gone:
            return
        try:
            for channel, body in self._channels.receive(data):
                yield from self._received(channel, body)
        except ProtocolError as exc:
            self._channels.connection.close(CloseReason.PROTOCOL_ERROR, str(exc))
            raise
        if self._channels.connection.gone:
            self._gone = True
            yield Gone()

    def consumed(self, size: int) -> None:
        """A WebSocket has no windows."""

    def send(self, stream: str, data: bytes) -> None:
        if stream in self._outputs and data:
            self._channels.send(self._outputs[stream], data)

    def finish(self, outcome: Outcome) -> None:
        if words := told(outcome, self._version):
            self._channels.send(ERROR_CHANNEL, words)
        self._channels.connection.close()
        self._finished = True

    def outgoing(self) -> bytes:
        return self._channels.connection.outgoing()

    @property
    def finished(self) -> bool:
        return self._finished and self._gone

    def _received(self, channel: int, body: bytes) -> Iterator[CommandEvent]:
        """What other channels carry is passed over: a client closes them, too, when he leaves."""
        if channel == STDIN_CHANNEL and self._stdin:
            yield Input(body)
        elif channel == RESIZE_CHANNEL and self._tty:
            yield from self._sizes.receive(body)
        elif channel == CLOSE and self._version >= FIRST_WITH_CLOSE and body == CLOSES_STDIN and self._stdin:
            self._stdin = False
            yield InputEnded()
