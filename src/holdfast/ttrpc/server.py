"""A ttrpc server on selectors, for single-threaded workers. Calls may be answered at once or later."""

import selectors
import socket
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError, Message

from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode

CHUNK: Final = 256 * 1024
UNSENT_LIMIT: Final = 16 * 1024 * 1024

INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13


class CallError(Exception):
    """The answer to a call is this gRPC status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """One request. `answer` or `fail` it once; answering a client that has gone does nothing."""

    def __init__(self, connection: "Connection", stream_id: int, service: str, method: str, payload: bytes) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self.service = service
        self.method = method
        self.payload = payload

    def answer(self, reply: Message) -> None:
        self._send(ttrpc_pb2.Response(payload=reply.SerializeToString()))

    def fail(self, code: int, message: str) -> None:
        self._send(ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=message)))

    def _send(self, response: ttrpc_pb2.Response) -> None:
        self._connection.send(encode(Frame(self._stream_id, RESPONSE, response.SerializeToString())))


class Connection:
    """One client: frames in, answers out, neither ever blocking."""

    def __init__(self, server: "Server", peer: socket.socket) -> None:
        self._server = server
        self._peer = peer
        self._decoder = Decoder()
        self._unsent = bytearray()
        peer.setblocking(False)
        server.selector.register(peer, selectors.EVENT_READ, self._readable)

    def send(self, data: bytes) -> None:
        if self._peer.fileno() < 0:
            return
        self._unsent += data
        if len(self._unsent) > UNSENT_LIMIT:
            self.close()  # it asks and does not read
            return
        self._flush()

    def close(self) -> None:
        if self._peer.fileno() >= 0:
            self._server.selector.unregister(self._peer)
            self._peer.close()

    def _readable(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if not events & selectors.EVENT_READ or self._peer.fileno() < 0:
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
        if frame.kind != REQUEST:
            raise ProtocolError(f"frame of kind {frame.kind} where a request was expected")
        request = ttrpc_pb2.Request.FromString(frame.payload)
        self._server.handle(Call(self, frame.stream_id, request.service, request.method, request.payload))

    def _flush(self) -> None:
        try:
            sent = self._peer.send(self._unsent)
            del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._server.selector.modify(self._peer, wanted, self._readable)


class Server:
    """Accepts on a listening socket and hands each request to `handle`, on the caller's selector."""

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, handle: Callable[[Call], None]
    ) -> None:
        self.selector = selector
        self.handle = handle
        self._listener = listener
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            peer, _address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        Connection(self, peer)
