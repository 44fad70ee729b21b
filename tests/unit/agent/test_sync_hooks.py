"""What is done to a container from outside, and what is asked of a real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from kit.pods import simple

from holdfast.agent.pod.containers import ExecAction, Grpc, Handler, HttpGet, HttpHeader, Probe, Sleep, TcpSocket
from holdfast.agent.pod.scalars import HostPort, Port, Seconds
from holdfast.agent.sync import hooks
from holdfast.model.errors import DeadlineExceeded, Unavailable
from holdfast.proto import runtime_v1_pb2 as pb

(CONTAINER,) = simple().spec.containers


@dataclass
class Runtime:
    """That executes nothing, and answers at once."""

    answer: pb.ExecSyncResponse | Exception

    async def execute(self, container_id: str, command: Any, seconds: int) -> pb.ExecSyncResponse:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def perform(action: Probe | Handler, runtime: Any = None, address: str = "127.0.0.1", seconds: int = 5) -> str:
    return await hooks.perform(action, CONTAINER, "id", address, runtime, seconds)


Serve = Callable[[bytes], Awaitable[Port]]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """A server that says the same to everybody; b"" is one that says nothing."""
    servers = []

    async def begin(answer: bytes) -> Port:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError):
                await reader.readuntil(b"\r\n\r\n")
                if not answer:
                    await reader.read()
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        servers.append(server)
        return Port(str(server.sockets[0].getsockname()[1]))

    yield begin
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n", "HTTP status 404 Not Found"),
        (b"HTTP/1.1 199 X\r\n", "HTTP status 199 X"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP: 'SSH-2.0-OpenSSH'"),
        (b"x" * 40_000 + b"\n", "limit"),
        (b"HTTP/1.1 2", "bytes read"),
    ],
)
async def test_http(serve: Serve, answer: bytes, said: str) -> None:
    found = await perform(Handler(http_get=HttpGet(await serve(answer))))
    assert said in found
    assert bool(found) is bool(said)


async def test_who_says_nothing_is_waited_for_as_long_as_is_said(serve: Serve) -> None:
    port = await serve(b"")
    assert await perform(Handler(http_get=HttpGet(port)), seconds=1) == "no answer within 1 s"
    assert await perform(Handler(tcp_socket=TcpSocket(port))) == ""


async def test_nobody_there() -> None:
    assert "Connect call failed" in await perform(Handler(tcp_socket=TcpSocket(Port("1"))))
    assert "Connect call failed" in await perform(Handler(http_get=HttpGet(Port("1"))))
    assert await perform(Handler(tcp_socket=TcpSocket(Port("1"))), address="") == "the pod has no address"
    assert "no port named" in await perform(Handler(tcp_socket=TcpSocket(Port("web"))))


def test_one_request_and_no_more() -> None:
    headers = (HttpHeader("host", "example.org"), HttpHeader("Accept", ""), HttpHeader("X-A", "b"))
    text = hooks.request(HttpGet(Port("80"), "up?a=b", http_headers=headers), "h:80").decode()
    assert text.startswith("GET /up?a=b HTTP/1.1\r\nHost: example.org\r\n")
    assert "X-A: b\r\n" in text
    assert "Accept" not in text
    assert text.endswith("\r\n\r\n")
    for path, header in (("/a b", "c"), ("/a\r\nGET /", "c"), ("/", "c\r\nHost: d")):
        with pytest.raises(ValueError, match="space or the end of a line"):
            hooks.request(HttpGet(Port("80"), path, http_headers=(HttpHeader("X", header),)), "h")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (pb.ExecSyncResponse(exit_code=0, stdout=b"fine"), ""),
        (pb.ExecSyncResponse(exit_code=3, stderr=b"out of luck\n"), "the command ended with 3: out of luck"),
        (pb.ExecSyncResponse(exit_code=1, stdout=b"\xff" * 9000), "the command ended with 1: " + "\ufffd" * 1024),
        (DeadlineExceeded("late"), "the command has not ended within 5 s"),
    ],
)
async def test_commands(answer: Any, said: str) -> None:
    assert await perform(Probe(exec=ExecAction(("true",))), Runtime(answer)) == said


async def test_a_runtime_that_does_not_answer_has_no_result() -> None:
    with pytest.raises(Unavailable):
        await perform(Probe(exec=ExecAction(("true",))), Runtime(Unavailable("gone")))


@pytest.mark.parametrize(
    ("service", "status", "said"),
    [
        ("", 1, ""),
        ("db", 1, ""),
        ("db", 2, "the status is 2, and not 1 (SERVING)"),
        ("other", 1, "NOT_FOUND: of no service"),
    ],
)
async def test_grpc(service: str, status: int, said: str) -> None:
    async def check(asked: StringValue, context: Any) -> Int32Value:
        if asked.value not in ("", "db"):
            await context.abort(grpc.StatusCode.NOT_FOUND, "of no service")
        return Int32Value(value=status)

    handler = grpc.unary_unary_rpc_method_handler(check, StringValue.FromString, Int32Value.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await perform(Probe(grpc=Grpc(HostPort(port), service))) == said
    finally:
        await server.stop(None)
    assert "UNAVAILABLE" in await perform(Probe(grpc=Grpc(HostPort(port))))


async def test_a_pause_is_no_longer_than_it_may_be() -> None:
    async with asyncio.timeout(20):
        assert await perform(Handler(sleep=Sleep(Seconds(1000))), seconds=1) == ""
