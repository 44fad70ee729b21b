"""A ttrpc server on selectors, for single-threaded workers. A call may be answered at once or later; nothing blocks.

Handlers register with the caller's selector as `data(events)` callbacks, as the worker's own descriptors do.
"""

import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError, Message

from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REMOTE_OPEN, REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode

CHUNK: Final = 64 * 1024
UNSENT_LIMIT: Final = 8 * 1024 * 1024
CONNECTIONS: Final = 128
NS: Final = 1_000_000_000

INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13


class CallError(Exception):
    """The answer to a call is this gRPC status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """One request. The first `answer` or `fail` counts; what comes later, or for a client that has gone, does nothing.

    `deadline` is on time.monotonic(), None for none. When it passes the client is told so by the server; what the
    call has set going goes on.
    """

    __slots__ = ("_connection", "_stream_id", "deadline", "metadata", "method", "payload", "service")

    def __init__(self, connection: "Connection", stream_id: int, request: ttrpc_pb2.Request) -> None:
        self._connection: Connection | None = connection
        self._stream_id = stream_id
        self.service = request.service
        self.method = request.method
        self.payload = request.payload
        self.metadata = [(pair.key, pair.value) for pair in request.metadata]
        self.deadline = time.monotonic() + request.timeout_nano / NS if request.timeout_nano > 0 else None

    @property
    def open(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._connection is not None and not self._connection.closed

    def answer(self, reply: Message) -> None:
        self._send(ttrpc_pb2.Response(payload=reply.SerializeToString()))

    def fail(self, code: int, message: str) -> None:
        self._send(ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=message)))

    def _send(self, response: ttrpc_pb2.Response) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.answer(self._stream_id, response.SerializeToString())


class Connection:
    """One client: frames in, answers out."""

    def __init__(self, server: "Server", peer: socket.socket) -> None:
        self._server = server
        self._peer = peer
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._streams: set[int] = set()  # whose answers are outstanding
        self.closed = False
        peer.setblocking(False)
        server.selector.register(peer, selectors.EVENT_READ, self._ready)

    def answer(self, stream_id: int, response: bytes) -> None:
        self._streams.discard(stream_id)
        if self.closed:
            return
        self._unsent += encode(Frame(stream_id, RESPONSE, response))
        if len(self._unsent) > UNSENT_LIMIT:
            self.close()  # it asks and asks, and does not read
            return
        self._flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._server.selector.unregister(self._peer)
            self._peer.close()
            self._server.forget(self)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if not events & selectors.EVENT_READ or self.closed:
            return
        try:
            data = self._peer.recv(CHUNK)
            if not data:
                self.close()
                return
            for frame in self._decoder.feed(data):
                self._take(frame)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError, DecodeError):
            self.close()

    def _take(self, frame: Frame) -> None:
        """Hand over one request. Raises ProtocolError or DecodeError for what no client of ours would send."""
        if frame.kind != REQUEST or frame.stream_id % 2 == 0 or frame.stream_id in self._streams:
            raise ProtocolError(f"frame of kind {frame.kind} on stream {frame.stream_id} is out of place")
        call = Call(self, frame.stream_id, ttrpc_pb2.Request.FromString(frame.payload))
        self._streams.add(frame.stream_id)
        if frame.flags & REMOTE_OPEN:
            call.fail(UNIMPLEMENTED, "streams are not served")
            return
        self._server.take(call)

    def _flush(self) -> None:
        if self._unsent:
            try:
                sent = self._peer.send(self._unsent)
                del self._unsent[:sent]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._server.selector.get_key(self._peer).events != wanted:
            self._server.selector.modify(self._peer, wanted, self._ready)


class Server:
    """Accepts on a listening socket and hands each request to `handle`.

    The owner of the selector calls `expire()` when `next_deadline()` has come.
    """

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, handle: Callable[[Call], None]
    ) -> None:
        self.selector = selector
        self._handle = handle
        self._listener = listener
        self._connections: set[Connection] = set()
        self._deadlines: list[tuple[float, int, Call]] = []
        self._number = itertools.count()
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def take(self, call: Call) -> None:
        if call.deadline is not None:
            heapq.heappush(self._deadlines, (call.deadline, next(self._number), call))
        self._handle(call)

    def next_deadline(self) -> float | None:
        """When, on time.monotonic(), the next unanswered call runs out of time."""
        while self._deadlines and not self._deadlines[0][2].open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        """Tell the clients whose time is up."""
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            call = heapq.heappop(self._deadlines)[2]
            call.fail(DEADLINE_EXCEEDED, f"{call.method} has not ended in time; it goes on")

    def forget(self, connection: Connection) -> None:
        """A connection has closed: there is room for another."""
        if len(self._connections) == CONNECTIONS:
            self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._connections.discard(connection)

    def _accept(self, _: int) -> None:
        try:
            peer, _address = self._listener.accept()
        except OSError:
            return
        self._connections.add(Connection(self, peer))
        if len(self._connections) == CONNECTIONS:
            self.selector.unregister(self._listener)  # further clients wait in its backlog
