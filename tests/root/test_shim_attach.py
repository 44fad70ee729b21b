"""Attached to real containers: who reads gets everything, who does not holds up nobody; and their stdin."""

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from google.protobuf.empty_pb2 import Empty
from shim_kit import Container, ShimKit, busybox_rootfs, until

from holdfast.linux import files
from holdfast.proto import task_pb2
from holdfast.runtime.task import V2, Status, TaskClient
from holdfast.ttrpc.client import Client, TtrpcError
from holdfast.workers.shim.attach import ATTACH, DIRECTORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LINES, ROUNDS = 64_000, 45
LOST = re.compile(rb"\r\nholdfast: lost (\d+) bytes of output: the reader was too slow\r\n")


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_rootfs(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.fixture(params=["crun", "runc"])
def kit(request: pytest.FixtureRequest, tmp_path: Path, lower: Path) -> Iterator[ShimKit]:
    made = ShimKit(tmp_path, request.param, lower)
    try:
        made.start()
        yield made
    finally:
        while Reader.all:
            Reader.all.pop().close()
        made.stop()


@pytest.fixture
async def client(kit: ShimKit) -> AsyncIterator[TaskClient]:
    made = await kit.connect()
    yield made
    made.close()


class Reader:
    """One who attaches; `streams` he has FIFOs for."""

    all: ClassVar[list["Reader"]] = []

    def __init__(self, kit: ShimKit, one: Container, name: str, *streams: str) -> None:
        self._kit = kit
        self._id = one.id
        Reader.all.append(self)
        self.directory = one.bundle / DIRECTORY / name
        self.directory.mkdir(parents=True, mode=0o700)
        self.fds: dict[str, int] = {}
        for stream in streams or ("stdout",):
            files.fifo(self.directory / stream)
            self.fds[stream] = os.open(self.directory / stream, os.O_RDONLY | os.O_NONBLOCK)

    async def attach(self) -> "Reader":
        client = await Client.connect(self._kit.socket)
        request = task_pb2.UpdateTaskRequest(id=self._id, annotations={ATTACH: str(self.directory)})
        try:
            await client.call(V2, "Update", request, Empty, 10)
        finally:
            client.close()
        for fd in self.fds.values():
            os.set_blocking(fd, True)
        return self

    async def rest(self, stream: str = "stdout") -> bytes:
        """Everything until its end."""

        def read() -> bytes:
            with os.fdopen(self.fds.pop(stream), "rb") as file:
                return file.read()

        async with asyncio.timeout(60):
            return await asyncio.to_thread(read)

    async def some(self, size: int, stream: str = "stdout") -> bytes:
        """The next bytes, that many."""

        def read() -> bytes:
            data = b""
            while len(data) < size and (more := os.read(self.fds[stream], size - len(data))):
                data += more
            return data

        async with asyncio.timeout(20):
            return await asyncio.to_thread(read)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


async def started(kit: ShimKit, client: TaskClient, script: str, *, terminal: bool = False) -> Container:
    """With an open stdin."""
    one = kit.container("c", script, terminal=terminal)
    await kit.create(client, one, terminal=terminal, stdin=str(one.bundle / "stdin"))
    await client.start("c")
    return one


def writer(one: Container) -> int:
    return os.open(one.bundle / "stdin", os.O_WRONLY | os.O_NONBLOCK)


def type_in(one: Container, data: bytes) -> None:
    fd = writer(one)
    assert os.write(fd, data) == len(data)
    os.close(fd)


async def test_everybody_gets_everything_and_then_its_end(kit: ShimKit, client: TaskClient) -> None:
    """20 MB to two who read, while a third does not and a fourth goes away; and all of it is in the log."""
    script = "echo err >&2; while read n; do seq $n $((n + LINES - 1)); done; printf end; exit 4"
    one = await started(kit, client, script.replace("LINES", str(LINES)))
    first = await Reader(kit, one, "first", "stdout", "stderr").attach()
    second, idle, gone = [await Reader(kit, one, name).attach() for name in ("second", "idle", "gone")]
    digests = {each: hashlib.sha256() for each in (first, second)}
    expected = b""
    for number in range(0, ROUNDS * LINES, LINES):  # never more than a FIFO takes
        part = b"".join(b"%d\n" % (number + line) for line in range(LINES))
        type_in(one, b"%d\n" % number)
        for each, digest in digests.items():
            digest.update(await each.some(len(part)))
        if not number:
            assert (await gone.some(10_000)) == part[:10_000]
            gone.close()
        expected += part
    assert len(expected) > 20_000_000
    await client.close_io("c")
    assert (await client.wait("c"))[0] == 4
    expected += b"end"
    for each, digest in digests.items():
        digest.update(await each.rest())
        assert digest.digest() == hashlib.sha256(expected).digest()
    assert hashlib.sha256(one.text()).digest() == hashlib.sha256(expected).digest()
    kept = await idle.rest()
    assert len(LOST.sub(b"", kept)) + sum(int(lost[1]) for lost in LOST.finditer(kept)) == len(expected)
    assert expected.startswith(kept[:1_000_000])
    with pytest.raises(TtrpcError, match="its output has ended"):
        await Reader(kit, one, "late").attach()
    await client.delete("c")
    assert set(kit.leftovers()) <= {DIRECTORY}


async def test_a_prompt_comes_at_once_and_who_goes_does_not_hang_up(kit: ShimKit, client: TaskClient) -> None:
    script = "trap 'echo hangup' HUP; stty -echo; printf '$ '; while read x; do printf \"$x> \"; done"
    one = await started(kit, client, script, terminal=True)
    reader = await Reader(kit, one, "one").attach()
    type_in(one, b"a\n")
    while (await reader.some(1)) != b">":  # the first prompt may have come before
        continue
    assert await reader.some(1) == b" "
    reader.close()
    again = await Reader(kit, one, "two").attach()
    type_in(one, b"b\n")
    assert await again.some(3) == b"b> "
    again.close()
    assert (await client.state("c")).status is Status.RUNNING
    assert b"hangup" not in one.log.read_bytes()


async def test_without_a_log(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", "read x; echo out; echo err >&2")
    await kit.create(client, one, stdin=str(one.bundle / "stdin"), stdout="cri://", stderr="cri://")
    reader = await Reader(kit, one, "one", "stdout", "stderr").attach()
    await client.start("c")
    type_in(one, b"\n")
    await client.wait("c")
    assert (await reader.rest(), await reader.rest("stderr")) == (b"out\n", b"err\n")
    assert not one.log.exists()


async def test_what_cannot_be_attached_to(kit: ShimKit, client: TaskClient) -> None:
    one = await kit.run(client, "c", "sleep 1000", stdout="", stderr="")
    with pytest.raises(TtrpcError, match="does not pass through its shim"):
        await Reader(kit, one, "one").attach()
    other = await kit.run(client, "d", "sleep 1000")
    foreign = Reader(kit, other, "one")
    foreign._id = "c"
    with pytest.raises(TtrpcError, match="cannot attach"):
        await foreign.attach()
    nobody = Reader(kit, other, "nobody")
    nobody.close()
    with pytest.raises(TtrpcError, match="nobody reads"):
        await nobody.attach()


# -- stdin


async def test_input_has_an_end_only_when_it_is_said(kit: ShimKit, client: TaskClient) -> None:
    """Nobody is there, some come and go; then its end, which the last who has it open makes."""
    one = await started(kit, client, "cat; echo over; sleep 1000")
    for text in (b"one\n", b"two\n"):
        type_in(one, text)
        await until(lambda text=text: text in one.text())
    other = writer(one)
    await client.close_io("c")
    with pytest.raises(FileNotFoundError):
        writer(one)
    os.write(other, b"three\n")
    await until(lambda: b"three" in one.text())
    assert b"over" not in one.text()
    os.close(other)
    await until(lambda: b"over" in one.text())
    assert one.text() == b"one\ntwo\nthree\nover\n"
    await client.kill("c", signal.SIGKILL)
    await client.wait("c")
    await client.delete("c")
    assert kit.leftovers() == []


async def test_a_terminals_input_is_closed_without_hanging_up(kit: ShimKit, client: TaskClient) -> None:
    one = await started(kit, client, "read x; echo got $x; sleep 1000", terminal=True)
    type_in(one, b"hello\n")
    await until(lambda: b"got hello" in one.text())
    await client.close_io("c")
    with pytest.raises(FileNotFoundError):
        writer(one)
    assert (await client.state("c")).status is Status.RUNNING
