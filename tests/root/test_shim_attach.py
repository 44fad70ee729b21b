"""Attached to real containers: who reads gets everything, who does not holds up nobody; and their stdin."""

import asyncio
import hashlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from kit.attached import Reader, type_in, written
from shim_kit import Container, ShimKit, running_shim, until

from holdfast.runtime.task import Status, TaskClient
from holdfast.ttrpc.client import TtrpcError
from holdfast.workers.shim.attach import DIRECTORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LINES, ROUNDS = 64_000, 45


@pytest.fixture(params=["crun", "runc"])
def kit(request: pytest.FixtureRequest, tmp_path: Path, lower: Path) -> Iterator[ShimKit]:
    with running_shim(tmp_path, request.param, lower) as made:
        yield made


Make = Callable[..., Reader]
Attach = Callable[..., Awaitable[Reader]]


@pytest.fixture
def reader(kit: ShimKit) -> Iterator[Make]:
    made: list[Reader] = []

    def make(one: Container, name: str, *streams: str) -> Reader:
        made.append(Reader(one.bundle, name, *streams))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def attached(kit: ShimKit, reader: Make) -> Attach:
    async def make(one: Container, name: str, *streams: str) -> Reader:
        made = reader(one, name, *streams)
        await made.attach(kit.socket, one.id)
        return made

    return make


async def started(kit: ShimKit, client: TaskClient, script: str, *, terminal: bool = False) -> Container:
    """With an open stdin."""
    one = kit.container("c", script, terminal=terminal)
    await kit.create(client, one, terminal=terminal, stdin=str(one.bundle / "stdin"))
    await client.start("c")
    return one


def writer(one: Container) -> int:
    return os.open(one.bundle / "stdin", os.O_WRONLY | os.O_NONBLOCK)


async def test_everybody_gets_everything_and_then_its_end(kit: ShimKit, client: TaskClient, attached: Attach) -> None:
    """20 MB to two who read, while a third does not and a fourth goes away; and all of it is in the log."""
    script = "echo err >&2; while read n; do seq $n $((n + LINES - 1)); done; printf end; exit 4"
    one = await started(kit, client, script.replace("LINES", str(LINES)))
    first = await attached(one, "first", "stdout", "stderr")
    second, idle, gone = [await attached(one, name) for name in ("second", "idle", "gone")]
    digests = {each: hashlib.sha256() for each in (first, second)}
    expected = bytearray()
    for number in range(0, ROUNDS * LINES, LINES):  # never more than a FIFO takes
        part = b"".join(b"%d\n" % (number + line) for line in range(LINES))
        type_in(one.bundle / "stdin", b"%d\n" % number)
        for each, digest in digests.items():
            digest.update(await asyncio.to_thread(each.some, len(part)))
        if not number:
            assert (await asyncio.to_thread(gone.some, 10_000)) == part[:10_000]
            gone.close()
        expected += part
    assert len(expected) > 20_000_000
    await client.close_io("c")
    assert (await client.wait("c"))[0] == 4
    expected += b"end"
    for each, digest in digests.items():
        digest.update(await asyncio.to_thread(each.rest))
        assert digest.digest() == hashlib.sha256(expected).digest()
    assert hashlib.sha256(one.text()).digest() == hashlib.sha256(expected).digest()
    kept = await asyncio.to_thread(idle.rest)
    assert written(kept) == len(expected)
    assert expected.startswith(kept[:1_000_000])
    with pytest.raises(TtrpcError, match="its output has ended"):
        await attached(one, "late")
    await client.delete("c")
    assert set(kit.leftovers()) <= {DIRECTORY}


async def test_a_prompt_comes_at_once_and_who_goes_does_not_hang_up(
    kit: ShimKit, client: TaskClient, attached: Attach
) -> None:
    script = "trap 'echo hangup' HUP; stty -echo; printf '$ '; while read x; do printf \"$x> \"; done"
    one = await started(kit, client, script, terminal=True)
    reader = await attached(one, "one")
    type_in(one.bundle / "stdin", b"a\n")
    await asyncio.to_thread(reader.until, b"a> ")
    reader.close()
    again = await attached(one, "two")
    type_in(one.bundle / "stdin", b"b\n")
    assert await asyncio.to_thread(again.some, 3) == b"b> "
    again.close()
    assert (await client.state("c")).status is Status.RUNNING
    assert b"hangup" not in one.log.read_bytes()


async def test_without_a_log(kit: ShimKit, client: TaskClient, attached: Attach) -> None:
    one = kit.container("c", "read x; echo out; echo err >&2")
    await kit.create(client, one, stdin=str(one.bundle / "stdin"), stdout="cri://", stderr="cri://")
    reader = await attached(one, "one", "stdout", "stderr")
    await client.start("c")
    type_in(one.bundle / "stdin", b"\n")
    await client.wait("c")
    assert await asyncio.to_thread(reader.rest) == b"out\n"
    assert await asyncio.to_thread(reader.rest, "stderr") == b"err\n"
    assert not one.log.exists()


async def test_what_cannot_be_attached_to(kit: ShimKit, client: TaskClient, reader: Make, attached: Attach) -> None:
    one = await kit.run(client, "c", "sleep 1000", stdout="", stderr="")
    with pytest.raises(TtrpcError, match="does not pass through its shim"):
        await attached(one, "one")
    other = await kit.run(client, "d", "sleep 1000")
    with pytest.raises(TtrpcError, match="is no directory in"):
        await reader(one, "two").attach(kit.socket, other.id)
    nobody = reader(other, "nobody")
    nobody.close()
    with pytest.raises(TtrpcError, match="nobody reads"):
        await nobody.attach(kit.socket, "d")


# -- stdin


async def test_input_has_an_end_only_when_it_is_said(kit: ShimKit, client: TaskClient) -> None:
    """Nobody is there, some come and go; then its end, which the last who has it open makes."""
    one = await started(kit, client, "cat; echo over; sleep 1000")
    for text in (b"one\n", b"two\n"):
        type_in(one.bundle / "stdin", text)
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


async def test_the_input_of_a_terminal_has_no_end(kit: ShimKit, client: TaskClient) -> None:
    one = await started(kit, client, "while read x; do echo got $x; done", terminal=True)
    type_in(one.bundle / "stdin", b"hello\n")
    await until(lambda: b"got hello" in one.text())
    await client.close_io("c")
    type_in(one.bundle / "stdin", b"again\n")
    await until(lambda: b"got again" in one.text())
    assert (await client.state("c")).status is Status.RUNNING
