"""The client against a server of its own, over a real socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.proto import task_pb2, ttrpc_pb2
from holdfast.ttrpc.client import Client, ConnectionLost, TtrpcError
from holdfast.ttrpc.codec import RESPONSE, Decoder, Frame, encode

Handle = Callable[[Frame, asyncio.StreamWriter], Awaitable[None]]


def ask(name: str = "x") -> task_pb2.StateRequest:
    return task_pb2.StateRequest(id=name)


@asynccontextmanager
async def serving(path: Path, handle: Handle) -> AsyncIterator[Client]:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                await handle(frame, writer)
        writer.close()
        await writer.wait_closed()
        over.set()

    async with await asyncio.start_unix_server(serve, path):
        client = await Client.connect(path)
        yield client
        client.close()
        await over.wait()


async def echo(frame: Frame, writer: asyncio.StreamWriter) -> None:
    request = ttrpc_pb2.Request.FromString(frame.payload)
    asked = task_pb2.StateRequest.FromString(request.payload)
    reply = task_pb2.StateResponse(id=asked.id, bundle=f"{request.service}/{request.method}/{request.timeout_nano}")
    response = ttrpc_pb2.Response(payload=reply.SerializeToString())
    writer.write(encode(Frame(frame.stream_id, RESPONSE, response.SerializeToString())))


async def test_calls_are_told_apart_on_odd_streams(tmp_path: Path) -> None:
    seen: list[Frame] = []

    async def backwards(frame: Frame, writer: asyncio.StreamWriter) -> None:
        seen.append(frame)
        if len(seen) == 5:
            for one in reversed(seen):
                await echo(one, writer)

    async with serving(tmp_path / "s", backwards) as client:
        calls = (client.call("a.B", "C", ask(str(number)), task_pb2.StateResponse, 5) for number in range(5))
        replies = await asyncio.gather(*calls)
    assert [reply.id for reply in replies] == ["0", "1", "2", "3", "4"]
    assert replies[0].bundle == "a.B/C/5000000000"
    assert [frame.stream_id for frame in seen] == [1, 3, 5, 7, 9]


async def test_an_error_status_is_raised_with_its_code(tmp_path: Path) -> None:
    async def refuse(frame: Frame, writer: asyncio.StreamWriter) -> None:
        response = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="no such task"))
        writer.write(encode(Frame(frame.stream_id, RESPONSE, response.SerializeToString())))

    async with serving(tmp_path / "s", refuse) as client:
        with pytest.raises(TtrpcError, match="no such task") as caught:
            await client.call("s", "m", ask(), task_pb2.StateResponse)
    assert caught.value.code == 5


async def test_a_deadline_ends_one_call_and_not_the_connection(tmp_path: Path) -> None:
    held: list[Frame] = []

    async def slow(frame: Frame, writer: asyncio.StreamWriter) -> None:
        if not held:
            held.append(frame)
            return
        await echo(held[0], writer)  # too late: nobody waits for it
        await echo(frame, writer)

    async with serving(tmp_path / "s", slow) as client:
        with pytest.raises(TimeoutError):
            await client.call("s", "m", ask("first"), task_pb2.StateResponse, 0.01)
        assert (await client.call("s", "m", ask("second"), task_pb2.StateResponse, 5)).id == "second"


@pytest.mark.parametrize("last_words", [b"", b"not a frame at all"])
async def test_a_lost_connection_ends_all_calls(tmp_path: Path, last_words: bytes) -> None:
    async def hang_up(frame: Frame, writer: asyncio.StreamWriter) -> None:
        writer.write(last_words)
        writer.close()

    async with serving(tmp_path / "s", hang_up) as client:
        calls = (client.call("s", "m", ask(), task_pb2.StateResponse) for _ in range(3))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 3
        assert client.closed
        with pytest.raises(ConnectionLost):
            await client.call("s", "m", ask(), task_pb2.StateResponse)


async def test_an_answer_that_is_none(tmp_path: Path) -> None:
    async def nonsense(frame: Frame, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Frame(frame.stream_id, RESPONSE, b"\xff\xff")))

    async with serving(tmp_path / "s", nonsense) as client:
        with pytest.raises(TtrpcError, match="cannot read the answer to m"):
            await client.call("s", "m", ask(), task_pb2.StateResponse)


async def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 60] * 3)
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_PATH)
    try:
        async with serving(Path(f"/proc/self/fd/{here}/s"), echo):
            client = await Client.connect(deep / "s")
            assert (await client.call("s", "m", ask("far"), task_pb2.StateResponse)).id == "far"
            client.close()
    finally:
        os.close(here)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Client.connect(tmp_path / "s")
