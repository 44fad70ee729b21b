"""What is done to a container from outside: a command in it, or a connection from the host to it. Hooks and probes."""

import asyncio
import ssl
from typing import Final

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from holdfast.agent.pod.containers import Container, ExecAction, Grpc, Handler, HttpGet, Probe, TcpSocket
from holdfast.agent.sync.convert import in_brackets, port_of
from holdfast.agent.sync.runtime import Runtime
from holdfast.model.errors import DeadlineExceeded

AGENT: Final = "kube-probe/holdfast"
HEADER_LIMIT: Final = 16 * 1024  # bytes of a status line and headers
HEALTH: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = 1
SAID: Final = 1024  # bytes of a command's output in a message


async def perform(
    action: Probe | Handler, container: Container, container_id: str, address: str, runtime: Runtime, seconds: int
) -> str:
    """ "" when it succeeded within `seconds`, else why not.

    Raises HoldfastError when the runtime cannot tell, Missing for a port without a number.
    """
    if action.exec is not None:
        return await _execute(action.exec, container_id, runtime, seconds)
    if isinstance(action, Handler) and action.sleep is not None:
        await asyncio.sleep(min(action.sleep.seconds, seconds))
        return ""
    asked = action.grpc if isinstance(action, Probe) else None
    there = action.http_get or action.tcp_socket or asked
    assert there is not None
    own = "" if isinstance(there, Grpc) else there.host
    if not (host := own or address):
        return "the pod has no address"
    try:
        async with asyncio.timeout(seconds):
            if isinstance(there, HttpGet):
                return await _http(there, container, host)
            if isinstance(there, Grpc):
                return await _health(there, host)
            return await _tcp(there, container, host)
    except TimeoutError:
        return f"no answer within {seconds} s"
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as exc:
        return str(exc) or type(exc).__name__


async def _execute(action: ExecAction, container_id: str, runtime: Runtime, seconds: int) -> str:
    try:
        found = await runtime.execute(container_id, action.command, seconds)
    except DeadlineExceeded:
        return f"the command has not ended within {seconds} s"
    if not found.exit_code:
        return ""
    said = (found.stdout + found.stderr)[:SAID].decode(errors="replace").strip()
    return f"the command ended with {found.exit_code}{': ' if said else ''}{said}"


async def _tcp(action: TcpSocket, container: Container, host: str) -> str:
    _, writer = await asyncio.open_connection(host, port_of(container, action.port))
    writer.transport.abort()
    return ""


async def _http(action: HttpGet, container: Container, host: str) -> str:
    """Any answer from 200 to 399 is a success; no redirection is followed, no certificate is checked."""
    port = port_of(container, action.port)
    secured = None
    if action.scheme == "HTTPS":
        secured = ssl.create_default_context()
        secured.check_hostname = False
        secured.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=secured, limit=HEADER_LIMIT)
    try:
        writer.write(request(action, f"{in_brackets(host)}:{port}"))
        await writer.drain()
        line = (await reader.readuntil(b"\n")).decode("latin-1").strip()
    finally:
        writer.transport.abort()  # an end in good order may take a server longer than its answer
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdecimal():
        return f"no HTTP: {line[:80]!r}"
    return "" if 200 <= int(code) < 400 else f"HTTP status {rest}"


async def _health(action: Grpc, host: str) -> str:
    """The request has a text as its only field, the answer a number: as the wrappers of these do."""
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(f"{in_brackets(host)}:{action.port}", options=options) as channel:
        check = channel.unary_unary(HEALTH, StringValue.SerializeToString, Int32Value.FromString)
        try:
            found = await check(StringValue(value=action.service))
        except grpc.aio.AioRpcError as exc:
            return f"{exc.code().name}: {exc.details()}"
    return "" if found.value == SERVING else f"the status is {found.value}, and not {SERVING} (SERVING)"


def request(action: HttpGet, host: str) -> bytes:
    """Raises ValueError for what would be more than one request."""
    path = action.path if action.path.startswith("/") else f"/{action.path}"
    headers = {"Host": host, "User-Agent": AGENT, "Accept": "*/*", "Connection": "close"}
    given = {one.name.title(): one.value for one in action.http_headers}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (headers | given).items() if value)]
    if any(sign in line for line in lines for sign in "\r\n\0") or " " in path:
        raise ValueError("a path or header has a space or the end of a line in it")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
