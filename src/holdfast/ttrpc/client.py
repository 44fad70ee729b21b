"""A ttrpc client on asyncio: many unary calls at once over one unix socket."""

import asyncio
import itertools
import os
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.linux import sockets
from holdfast.linux.patience import patience
from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode

M = TypeVar("M", bound=Message)

NS: Final = 1_000_000_000
LAST_STREAM: Final = 0xFFFF_FFFF
INTERNAL: Final = 13


class TtrpcError(Exception):
    """The server's answer is an error; `code` is a gRPC status number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLost(ConnectionError):
    """The connection ended before the answer came; what became of the call is not known."""


class Client(asyncio.Protocol):
    """One connection, made by `connect`; it ends with `close`, or when the server hangs up."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._streams = itertools.count(1, 2)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._why = ""

    @classmethod
    async def connect(cls, path: str | os.PathLike[str]) -> "Client":
        """Connect to a unix socket, of whatever length its path is. Raises OSError; EAGAIN when its backlog is full."""
        # connect(2) on a unix socket ends at once or, with the server's backlog full, would block: never wait here.
        connection = sockets.connect(path, timeout=0)
        try:
            _, client = await asyncio.get_running_loop().create_unix_connection(cls, sock=connection)
        except BaseException:
            connection.close()
            raise
        return client

    @property
    def closed(self) -> bool:
        return bool(self._why)

    async def call(
        self, service: str, method: str, request: Message, reply: type[M], seconds: float | None = None
    ) -> M:
        """One call. Raises TtrpcError, ConnectionLost, or TimeoutError after `seconds`.

        The server is told the deadline as well; an answer that comes later is dropped.
        """
        if self._why or self._transport is None:
            raise ConnectionLost(self._why or "not connected")
        envelope = ttrpc_pb2.Request(service=service, method=method, payload=request.SerializeToString())
        if seconds is not None:
            envelope.timeout_nano = max(1, int(seconds * NS))
        stream = next(self._streams)
        if stream > LAST_STREAM:
            self._end("all stream ids are used up")
            raise ConnectionLost(self._why)
        data = encode(Frame(stream, REQUEST, envelope.SerializeToString()))
        future = self._waiting[stream] = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(data)
            async with patience(seconds):
                payload = await future
        finally:
            self._waiting.pop(stream, None)
        try:
            response = ttrpc_pb2.Response.FromString(payload)
            if response.status.code:
                raise TtrpcError(response.status.code, response.status.message)
            return reply.FromString(response.payload)
        except DecodeError as exc:
            raise TtrpcError(INTERNAL, f"cannot read the answer to {method}: {exc}") from exc

    def close(self) -> None:
        self._end("closed")

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                future = self._waiting.get(frame.stream_id)
                if frame.kind == RESPONSE and future is not None and not future.done():
                    future.set_result(frame.payload)
        except ProtocolError as exc:
            self._end(str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc or "the server has hung up"))

    def _end(self, why: str) -> None:
        if self._why:
            return
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionLost(why))
