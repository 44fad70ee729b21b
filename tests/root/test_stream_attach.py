"""Attach by a real streamer to containers of a real shim: copies of the output, stdin, terminals, and the end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from shim_kit import running_shim
from stream_kit import STDIN, StreamKit, connected, until

from holdfast.linux import process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

COUNT = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); echo $i; sleep 0.02; done"
SAY = "while read line; do echo got $line; echo err $line >&2; done; echo over; exit 5"


@pytest.fixture
async def kit(state: Path, tmp_path: Path, lower: Path) -> AsyncIterator[StreamKit]:
    with running_shim(tmp_path, "crun", lower) as shim:
        async with connected(state, shim) as made:
            yield made
            await made.ended()


async def speaking(kit: StreamKit, command: str, *, tty: bool = False) -> str:
    """A container with stdin. Returns the path of that."""
    stdin = str(kit.shim.directory / "c" / "stdin")
    await kit.shim.run(kit.task, "c", command, stdin=stdin, terminal=tty)
    return stdin


async def test_output_from_now_on_and_the_end_without_a_code(kit: StreamKit) -> None:
    stdin = await speaking(kit, SAY)
    client = await kit.attach("c", stdin=True, stdin_path=stdin, stdin_once=True)
    other = await kit.attach("c")
    assert kit.shim.process is not None
    pid, copy = kit.shim.process.pid, kit.directories[-1] / "stderr"
    await until(lambda: process.has_open(pid, copy), "the other to be attached")
    await client.send(STDIN, b"one\n")
    await client.read(lambda: client.stderr)
    await other.read(lambda: other.stderr)
    await client.send(STDIN, b"two\n")
    await client.end_input()
    await asyncio.gather(client.read(), other.read())
    for one in (client, other):
        assert (one.stdout, one.stderr) == (b"got one\ngot two\nover\n", b"err one\nerr two\n")
        assert one.status["status"] == "Success"


async def test_who_goes_leaves_the_container_alone(kit: StreamKit) -> None:
    stdin = await speaking(kit, SAY)
    client = await kit.attach("c", stdin=True, stdin_path=stdin)
    await client.send(STDIN, b"one\n")
    await client.read(lambda: client.stdout)
    client.socket.close()
    await kit.ended()
    again = await kit.attach("c", stdin=True, stdin_path=stdin, stdin_once=True)
    await again.send(STDIN, b"two\n")
    await again.read(lambda: again.stdout)
    assert again.stdout == b"got two\n"
    again.socket.close()  # with stdin_once that is the end of stdin
    assert (await kit.task.wait("c"))[0] == 5


async def test_a_terminal(kit: StreamKit) -> None:
    stdin = await speaking(kit, "while read line; do stty size; done", tty=True)
    client = await kit.attach("c", stdin=True, tty=True, stdin_path=stdin)
    await client.resize(91, 17)
    while b"17 91" not in client.stdout:
        before = len(client.stdout)
        await client.send(STDIN, b"x\n")
        await client.read(lambda before=before: client.stdout.count(b"\n", before) >= 2)
    await kit.task.kill("c", signal.SIGKILL)
    await client.read()
    assert client.status["status"] == "Success"


async def test_a_slow_client_holds_up_nobody_and_is_told_of_what_he_has_lost(kit: StreamKit) -> None:
    one = await kit.shim.run(
        kit.task, "c", "read go; seq 2000000; echo done", stdin=str(kit.shim.directory / "c/stdin")
    )
    client = await kit.attach("c", stdin=True, stdin_path=str(one.bundle / "stdin"))
    await client.send(STDIN, b"go\n")
    assert (await kit.task.wait("c"))[0] == 0
    await client.read()
    assert b"holdfast: lost" in client.stdout
    assert client.status["status"] == "Success"


async def test_one_that_is_not_there(kit: StreamKit) -> None:
    (kit.shim.directory / "c").mkdir()
    client = await kit.attach("c")
    await client.read()
    assert "does not exist" in client.status["message"]


async def test_the_end_of_either_half(kit: StreamKit) -> None:
    await kit.shim.run(kit.task, "c", COUNT)
    for how in ("frames", "monitor"):
        client = await kit.attach("c")
        await client.read(lambda client=client: client.stdout)
        os.kill(kit.frames() if how == "frames" else kit.workers[-1].pid, signal.SIGTERM)
        await client.read()
    await kit.ended()
    assert (await kit.task.state("c")).status.name == "RUNNING"


async def test_attached_and_gone_a_hundred_times(kit: StreamKit) -> None:
    await kit.shim.run(kit.task, "c", COUNT)
    assert kit.shim.process is not None
    where = Path(f"/proc/{kit.shim.process.pid}/fd")
    before = len(os.listdir(where))
    for _ in range(10):
        clients = [await kit.attach("c") for _ in range(10)]
        for client in clients:
            await client.read(lambda client=client: client.stdout)
            client.socket.close()
    await kit.ended()
    await until(lambda: len(os.listdir(where)) <= before, "the shim to have let go of all of them")
