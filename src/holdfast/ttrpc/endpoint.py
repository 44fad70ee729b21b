"""A ttrpc server on asyncio, for a daemon that is told things by many: unary calls, each answered in its time."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError, Message

from holdfast.linux import sockets
from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REMOTE_OPEN, REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode
from holdfast.ttrpc.server import INTERNAL, UNIMPLEMENTED, CallError

log = logging.getLogger(__name__)

CONNECTIONS: Final = 1024
OUTSTANDING: Final = 64  # calls of one connection: it is not read from until some of them are answered
UNSENT_BYTES: Final = 1024 * 1024

Handle = Callable[[str, str, bytes], Awaitable[Message]]


class Endpoint:
    """Listens at a path that only its owner may connect to. `handle(service, method, payload)` may raise CallError."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Raises OSError."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), sock=sockets.listen(path)
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for one in list(self.connections):
            one.abort()


class _Connection(asyncio.Protocol):
    """One client. Whoever does not keep to the protocol, or does not read its answers, is cut off."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = Decoder()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer: socket.socket = transport.get_extra_info("socket")
        if sockets.peer_uid(peer) != os.geteuid() or len(self._endpoint.connections) >= CONNECTIONS:
            transport.abort()
            return
        self._endpoint.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._endpoint.connections.discard(self)
        for task in self._calls.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except (ProtocolError, DecodeError) as exc:
            log.warning("a client is cut off: %s", exc)
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, frame: Frame) -> None:
        if frame.kind != REQUEST or frame.stream_id % 2 == 0 or frame.stream_id in self._calls:
            raise ProtocolError(f"frame of kind {frame.kind} on stream {frame.stream_id} is out of place")
        request = ttrpc_pb2.Request.FromString(frame.payload)
        work = self._serve(frame.stream_id, request, bool(frame.flags & REMOTE_OPEN))
        self._calls[frame.stream_id] = asyncio.get_running_loop().create_task(work, name=f"ttrpc {request.method}")
        if len(self._calls) == OUTSTANDING and self._transport is not None:
            self._transport.pause_reading()

    async def _serve(self, stream_id: int, request: ttrpc_pb2.Request, streams: bool) -> None:
        try:
            response = await self._answer(request, streams)
        finally:
            if len(self._calls) == OUTSTANDING and self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
            del self._calls[stream_id]
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(encode(Frame(stream_id, RESPONSE, response.SerializeToString())))
        if self._transport.get_write_buffer_size() > UNSENT_BYTES:
            self.abort()

    async def _answer(self, request: ttrpc_pb2.Request, streams: bool) -> ttrpc_pb2.Response:
        try:
            if streams:
                raise CallError(UNIMPLEMENTED, "streams are not served")
            reply = await self._endpoint.handle(request.service, request.method, request.payload)
            return ttrpc_pb2.Response(payload=reply.SerializeToString())
        except CallError as exc:
            return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=exc.code, message=str(exc)))
        except Exception as exc:  # one bad call is that call's trouble
            log.exception("cannot answer %s", request.method)
            return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=INTERNAL, message=str(exc)))
