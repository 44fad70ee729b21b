"""Where the daemon is called: the socket of the CRI, the address of streams, the socket for events of foreign shims."""

import functools
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import grpc

from holdfast.config import Config
from holdfast.cri.boundary import Boundary
from holdfast.cri.image_service import ImageService
from holdfast.cri.node_service import NodeService
from holdfast.cri.runtime_service import RuntimeService
from holdfast.lifecycle.sessions import Sessions
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.linux import sockets
from holdfast.model.errors import Unavailable
from holdfast.proto.node_pb2_grpc import add_NodeServicer_to_server
from holdfast.proto.runtime_v1_pb2_grpc import add_ImageServiceServicer_to_server, add_RuntimeServiceServicer_to_server
from holdfast.runtime.told import Forwarded, Told
from holdfast.streaming.server import Address, Server
from holdfast.ttrpc.endpoint import Endpoint

log = logging.getLogger(__name__)

MESSAGE_BYTES: Final = 16 * 1024 * 1024 + 1024 * 1024  # ExecSync's 16 MiB a stream is cut to fit, see CRI
GRPC_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
GRACE_SECONDS: Final = 5.0


async def listen(
    stack: AsyncExitStack,
    path: Path,
    boundary: Boundary,
    runtime: RuntimeService,
    images: ImageService,
    node: NodeService,
) -> None:
    """Serve on the socket, which only its owner may open. Raises Unavailable when it cannot be had."""
    server = grpc.aio.server(interceptors=(boundary,), options=GRPC_OPTIONS)
    add_RuntimeServiceServicer_to_server(runtime, server)  # type: ignore[no-untyped-call]
    add_ImageServiceServicer_to_server(images, server)  # type: ignore[no-untyped-call]
    add_NodeServicer_to_server(node, server)  # type: ignore[no-untyped-call]
    path.unlink(missing_ok=True)  # of a run that was killed; the lock says that it is over
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as exc:
        raise Unavailable(f"cannot listen on {path}: {exc}") from exc
    await server.start()
    os.chmod(path, 0o600)
    stack.push_async_callback(in_thread, path.unlink, missing_ok=True)
    stack.push_async_callback(server.stop, GRACE_SECONDS)


async def stream(
    stack: AsyncExitStack, config: Config, sessions: Sessions, shown: dict[str, object], background: Background
) -> None:
    """Listen for those who come with a token; what that lacks is waited for, and all else is served meanwhile."""
    host, _, port = config.streaming_address.rpartition(":")
    server = Server(sessions, Address(host.strip("[]"), int(port), config.streaming_tls_cert, config.streaming_tls_key))
    sessions.offer = server.offer
    stack.push_async_callback(server.close)

    async def begin() -> None:
        await server.listen()
        shown["streaming"] = server.base()
        if text := server.warning():
            shown["streaming_warning"] = text

    try:
        await begin()
    except Unavailable:
        background.see_through("stream server", begin)


async def hear(stack: AsyncExitStack, path: Path, hint: Callable[[str], None], background: Background) -> None:
    """Listen to what foreign shims tell. Exits are hints; an OOM kill is seen at the cgroup anyway."""

    def tell(told: Told) -> None:
        log.info("told of %s of %s %s", told.kind, told.container_id, told.exec_id)
        if told.kind == "TaskExit" and not told.exec_id:
            hint(told.container_id)

    if len(os.fsencode(path)) > sockets.PATH_LIMIT:
        log.warning("%s is too long for foreign shims to connect to: their exits are noticed without it", path)
    endpoint = Endpoint(Forwarded(tell).handle)
    stack.push_async_callback(endpoint.close)
    begin = functools.partial(endpoint.listen, path)
    try:
        await begin()
    except OSError:  # hints can wait, and all else is served meanwhile
        background.see_through("socket of foreign shims", begin)
