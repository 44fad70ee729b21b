"""Port-forwards of a real streamer, into a network namespace with real servers in it."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from shim_kit import ShimKit
from stream_kit import Forwarder, StreamKit, listening, network, until

from holdfast.linux import namespace, process
from holdfast.runtime.keeper import Keeper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    with network(tmp_path) as path:
        yield path


@pytest.fixture
async def kit(state: Path, tmp_path: Path) -> AsyncIterator[StreamKit]:
    keeper = await Keeper.connect(state)
    made = StreamKit(ShimKit(tmp_path, "crun", tmp_path), keeper, None)
    yield made
    await made.ended()
    await keeper.aclose()


@asynccontextmanager
async def serving(net: Path, serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A server in the namespace, which ends with all that it serves. Yields its port."""
    served: set[asyncio.Task[None] | None] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with contextlib.closing(writer):
            await serve(reader, writer)

    listener = await listening(net, host)
    async with await asyncio.start_server(one, sock=listener):
        yield listener.getsockname()[1]
        tasks = [task for task in served if task is not None and task.cancel()]
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, and then say so."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"over")
    writer.close()
    await writer.wait_closed()


async def test_there_and_back_and_both_ends(kit: StreamKit, net: Path) -> None:
    async with serving(net, echo) as port:
        client = await kit.forward(net)
        error, data = await client.open(port)
        await client.send(data, b"hello")
        await client.read(lambda: client.data[data] == b"hello")
        await client.send(data, b"", fin=True)
        await client.read(lambda: data in client.ended)
        assert client.head.startswith(b"HTTP/1.1 101 ")
        assert (client.data[data], client.data[error]) == (b"helloover", b"")
        assert error in client.ended


async def test_the_other_loopback_address(kit: StreamKit, net: Path) -> None:
    async with serving(net, echo, "::1") as port:
        client = await kit.forward(net)
        _, data = await client.open(port)
        await client.send(data, b"hello", fin=True)
        await client.read(lambda: data in client.ended)
        assert client.data[data] == b"helloover"


async def test_nobody_listens(kit: StreamKit, net: Path) -> None:
    client = await kit.forward(net)
    error, data = await client.open(9)
    await client.read(lambda: error in client.ended)
    assert client.data[error] == b"cannot connect to port 9 of the pod: Connection refused"
    await client.read(lambda: data in client.reset)


async def test_over_a_websocket_with_the_ports_named_beforehand(kit: StreamKit, net: Path) -> None:
    async with serving(net, echo) as port, serving(net, echo, "::1") as other:
        with open(net) as file:
            client = await kit.session(
                "forward", "w1", [file.fileno()], subprotocol="v4.channel.k8s.io", ports=[port, other, 9]
            )
        for channel in (0, 2):
            await client.send(channel, b"hello")
        await client.read(lambda: all(len(client.channels.get(channel, b"")) > 2 for channel in (0, 2, 5)))
        assert [client.channels[channel][2:] for channel in (0, 2)] == [b"hello"] * 2
        assert b"port 9 of the pod: Connection refused" in client.channels[5]


async def test_a_server_that_answers_before_the_clients_end(kit: StreamKit, net: Path) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"it is late")
        writer.close()
        await writer.wait_closed()

    async with serving(net, speak) as port:
        client = await kit.forward(net)
        _, data = await client.open(port)
        await client.read(lambda: data in client.ended)
        assert client.data[data] == b"it is late"


async def test_twenty_at_once_much_each(kit: StreamKit, net: Path) -> None:
    block = os.urandom(1 << 16)

    async def one(client: Forwarder, stream: int) -> None:
        for _ in range(16):
            await client.send(stream, block)
        await client.send(stream, b"", fin=True)

    async with serving(net, echo) as port:
        client = await kit.forward(net)
        streams = [(await client.open(port))[1] for _ in range(20)]

        async def write() -> None:
            for stream in streams:  # frames of one are not torn apart by another's
                await one(client, stream)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await client.read(lambda: client.ended >= set(streams))
    expected = hashlib.sha256(block * 16 + b"over").digest()
    assert {hashlib.sha256(client.data[stream]).digest() for stream in streams} == {expected}


async def test_one_that_stalls_holds_up_no_other(kit: StreamKit, net: Path) -> None:
    over = asyncio.Event()

    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    async with serving(net, stall) as slow, serving(net, echo) as quick:
        client = await kit.forward(net)
        _, stalled = await client.open(slow)
        await client.send(stalled, bytes(900_000))
        _, data = await client.open(quick)
        await client.send(data, b"hello", fin=True)
        await client.read(lambda: data in client.ended)
        assert client.data[data] == b"helloover"
        over.set()


async def test_a_connection_that_the_client_drops(kit: StreamKit, net: Path) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        assert await reader.read() == b""
        ended.set()
        writer.close()

    async with serving(net, listen) as port:
        client = await kit.forward(net)
        _, data = await client.open(port)
        await client.read(lambda: client.data[data])
        await client.drop(data)
        async with asyncio.timeout(10):
            await ended.wait()


@pytest.mark.parametrize("how", ["the client goes", "SIGTERM"])
async def test_it_ends_and_lets_go_of_the_network(kit: StreamKit, net: Path, how: str) -> None:
    async with serving(net, echo) as port:
        client = await kit.forward(net)
        _, data = await client.open(port)
        await client.send(data, b"hello")
        await client.read(lambda: client.data[data])
        frames, monitor = kit.frames(), kit.workers[-1].pid
        inode = namespace.namespace_id(net)
        where = [pid for pid in (monitor, frames) if namespace.namespace_id(f"/proc/{pid}/ns/net") == inode]
        assert where == [frames]
        for one in Path(f"/proc/{monitor}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by now
                assert not os.readlink(one).startswith("net:")
        if how == "SIGTERM":
            os.kill(monitor, signal.SIGTERM)
            await client.read(lambda: False)
        else:
            client.socket.close()
        await until(lambda: process.state(frames) in ("", "Z"), "it to end")
