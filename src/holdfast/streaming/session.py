"""What a streaming session says and is told, whichever protocol its client speaks: events in, acts out. No I/O.

A codec of this package turns a client's bytes into these events, and the acts into bytes for him:

    exec and attach    spdy_command, websocket_command: a Command
    port-forward       spdy_forward, websocket_forward: a Forward

`upgrade.accept` finds the codec that a client's HTTP request asks for, and the answer that he awaits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

EXEC, ATTACH, FORWARD = "exec", "attach", "forward"
STDOUT, STDERR = "stdout", "stderr"


class ProtocolError(Exception):
    """The client does not speak the protocol; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, its body apart. Names of headers are in lower case; a name may come more than once."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The streams that were asked for in the CRI. With a terminal there is no stderr."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


# -- exec and attach


@dataclass(frozen=True, slots=True)
class Ready:
    """Each stream that was asked for is there: the process can begin. Comes once, before any other event but Gone."""


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for stdin."""

    data: bytes


@dataclass(frozen=True, slots=True)
class InputEnded:
    """No more of them will come, though the session goes on."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The client's terminal has this many columns and rows."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The client has said that he takes no more part."""


CommandEvent = Ready | Input | InputEnded | Resize | Gone


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended: with the process's exit code, or because of `error`, for a person to read."""

    code: int = 0
    error: str = ""


class Command(Protocol):
    """One exec or attach. `receive` and `send` may be called in any order; whoever calls them bounds what waits."""

    def begin(self) -> Iterator[CommandEvent]:
        """What is so without a byte of the client: where he has no streams to open, it is Ready. Once, first of all."""

    def receive(self, data: bytes) -> Iterator[CommandEvent]:
        """What the client's next bytes mean; b"" is the end of what he sends. To be read to its end.

        Raises ProtocolError.
        """

    def consumed(self, size: int) -> None:
        """So many bytes of Input have gone where they belong: more of them may come (SPDY's windows)."""

    def send(self, stream: str, data: bytes) -> None:
        """Bytes of STDOUT or STDERR. What the client has not asked for is dropped."""

    def finish(self, outcome: Outcome) -> None:
        """The end of all streams, and how it came, in the words of the version that the client speaks. Once."""

    def outgoing(self) -> bytes:
        """What is to be sent to the client now; it is then his."""

    @property
    def finished(self) -> bool:
        """Whether, once `outgoing` was sent, nothing more need pass in either direction.

        After `finish` the client's goodbye is awaited by reading on, for a bounded time: a socket that is closed with
        bytes in it that nobody has read loses the end of what was sent.
        """


# -- port-forward: one connection to a port of the pod is one number, never used again


@dataclass(frozen=True, slots=True)
class Opened:
    """The client wants a connection to this port."""

    connection: int
    port: int


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes for it."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """No more of them will come; the other direction goes on."""

    connection: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The client has no more use for the connection in either direction."""

    connection: int


ForwardEvent = Opened | Received | Ended | Dropped | Gone


class Forward(Protocol):
    """One port-forward with all its connections. Calls for one that is over do nothing."""

    def begin(self) -> Iterator[ForwardEvent]:
        """As Command.begin: where the ports are named beforehand, they are Opened."""

    def receive(self, data: bytes) -> Iterator[ForwardEvent]:
        """As Command.receive."""

    def consumed(self, connection: int, size: int) -> None: ...

    def send(self, connection: int, data: bytes) -> None: ...

    def end(self, connection: int) -> None:
        """Nothing more comes from the port; what the client still sends is taken."""

    def fail(self, connection: int, error: str) -> None:
        """The connection could not be made, or has broken: told to the client in words, and both directions end."""

    def finish(self) -> None:
        """The end of all, from here."""

    def outgoing(self) -> bytes: ...

    @property
    def finished(self) -> bool:
        """As Command.finished."""
