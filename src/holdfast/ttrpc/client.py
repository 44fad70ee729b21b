"""A ttrpc client on asyncio: many unary calls at once over one unix socket."""

import asyncio
import itertools
import socket
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode

M = TypeVar("M", bound=Message)

CHUNK: Final = 256 * 1024
NS: Final = 1_000_000_000


class TtrpcError(Exception):
    """The server's answer is an error; `code` is a gRPC status number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLost(ConnectionError):
    """The connection ended before the answer came; what became of the call is not known."""


class Client:
    """One connection. Made by `over`, closed by `close` or by the peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._streams = itertools.count(1, 2)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._why = ""
        self._task = asyncio.get_running_loop().create_task(self._read(), name="ttrpc client")

    @classmethod
    async def over(cls, connection: socket.socket) -> "Client":
        """A client over a connected, non-blocking unix socket."""
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        return cls(reader, writer)

    @property
    def closed(self) -> bool:
        return bool(self._why)

    async def call(
        self, service: str, method: str, request: Message, reply: type[M], seconds: float | None = None
    ) -> M:
        """One call. Raises TtrpcError, ConnectionLost, or TimeoutError after `seconds`."""
        if self._why:
            raise ConnectionLost(self._why)
        envelope = ttrpc_pb2.Request(service=service, method=method, payload=request.SerializeToString())
        if seconds is not None:
            envelope.timeout_nano = int(seconds * NS)
        stream = next(self._streams)
        future = self._waiting[stream] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode(Frame(stream, REQUEST, envelope.SerializeToString())))
            async with asyncio.timeout(seconds):
                payload = await future
        finally:
            self._waiting.pop(stream, None)
        response = ttrpc_pb2.Response.FromString(payload)
        if response.status.code:
            raise TtrpcError(response.status.code, response.status.message)
        return reply.FromString(response.payload)

    def close(self) -> None:
        self._end("closed")
        self._task.cancel()

    async def _read(self) -> None:
        decoder = Decoder()
        why = "the server has hung up"
        try:
            while data := await self._reader.read(CHUNK):
                for frame in decoder.feed(data):
                    self._take(frame)
        except (OSError, ProtocolError, DecodeError) as exc:
            why = str(exc)
        finally:
            self._end(why)

    def _take(self, frame: Frame) -> None:
        future = self._waiting.get(frame.stream_id)
        if frame.kind == RESPONSE and future is not None and not future.done():
            future.set_result(frame.payload)

    def _end(self, why: str) -> None:
        if self._why:
            return
        self._why = why
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionLost(why))
