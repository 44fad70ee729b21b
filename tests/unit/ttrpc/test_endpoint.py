"""The asyncio server, over a real socket: answers in whatever order, and whoever misbehaves is alone with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message

from holdfast.linux import sockets
from holdfast.proto import task_pb2
from holdfast.ttrpc.client import Client, TtrpcError
from holdfast.ttrpc.codec import REQUEST, Frame, encode
from holdfast.ttrpc.endpoint import OUTSTANDING, Endpoint
from holdfast.ttrpc.server import INTERNAL, NOT_FOUND, CallError


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[Endpoint, asyncio.Event]]:
    """Echoes ids; "wait" is answered when the event is set, "none" is not found, "bug" fails."""
    gate = asyncio.Event()

    async def handle(service: str, method: str, payload: bytes) -> Message:
        asked = task_pb2.StateRequest.FromString(payload)
        if asked.id == "wait":
            await gate.wait()
        if asked.id == "none":
            raise CallError(NOT_FOUND, "there is no such task")
        if asked.id == "bug":
            raise ValueError("a bug")
        return task_pb2.StateResponse(id=asked.id, bundle=f"{service}/{method}")

    endpoint = Endpoint(handle)
    await endpoint.listen(path)
    try:
        yield endpoint, gate
    finally:
        await endpoint.close()


async def ask(client: Client, id: str, seconds: float = 5.0) -> task_pb2.StateResponse:
    return await client.call("a.B", "C", task_pb2.StateRequest(id=id), task_pb2.StateResponse, seconds)


async def test_nobody_waits_for_a_call_that_waits(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as (_, gate):
        client = await Client.connect(tmp_path / "s")
        slow = asyncio.get_running_loop().create_task(ask(client, "wait"))
        assert [(await ask(client, str(number))).id for number in range(5)] == list("01234")
        assert (await ask(client, "x")).bundle == "a.B/C"
        gate.set()
        assert (await slow).id == "wait"
        client.close()


@pytest.mark.parametrize(("id", "code"), [("none", NOT_FOUND), ("bug", INTERNAL)])
async def test_errors_have_their_code(tmp_path: Path, id: str, code: int) -> None:
    async with serving(tmp_path / "s") as _:
        client = await Client.connect(tmp_path / "s")
        with pytest.raises(TtrpcError) as told:
            await ask(client, id)
        assert told.value.code == code
        assert (await ask(client, "next")).id == "next"
        client.close()


@pytest.mark.parametrize(
    "said", [b"\xff" * 64, encode(Frame(2, REQUEST, b"")), encode(Frame(1, REQUEST, b"\xff\xff\xff"))]
)
async def test_whoever_talks_nonsense_is_cut_off(tmp_path: Path, said: bytes) -> None:
    async with serving(tmp_path / "s") as _:
        good = await Client.connect(tmp_path / "s")
        reader, writer = await asyncio.open_unix_connection(sock=sockets.connect(tmp_path / "s"))
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert (await ask(good, "x")).id == "x"
        good.close()


async def test_one_that_asks_without_end_is_not_read_further(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as (endpoint, gate):
        client = await Client.connect(tmp_path / "s")
        calls = [asyncio.get_running_loop().create_task(ask(client, "wait", 30)) for _ in range(OUTSTANDING)]
        while not endpoint.connections:
            await asyncio.sleep(0)
        (connection,) = endpoint.connections
        while len(connection._calls) < OUTSTANDING:
            await asyncio.sleep(0)
        late = asyncio.get_running_loop().create_task(ask(client, "late", 30))
        other = await Client.connect(tmp_path / "s")
        assert (await ask(other, "other")).id == "other"
        assert not late.done()
        gate.set()
        assert (await late).id == "late"
        await asyncio.gather(*calls)
        client.close()
        other.close()
