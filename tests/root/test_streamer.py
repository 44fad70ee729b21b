"""Streamers of a real keeper, beside a real shim with containers under crun; the client speaks over a socket pair."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from shim_kit import running_shim
from stream_kit import STDIN, STDOUT, StreamKit, connected, over, until

from holdfast.linux import namespace, process
from holdfast.workers.streamer import frames

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def kit(state: Path, tmp_path: Path, lower: Path) -> AsyncIterator[StreamKit]:
    """A pod with a container "c" that sleeps."""
    with running_shim(tmp_path, "crun", lower) as shim:
        async with connected(state, shim) as made:
            await shim.run(made.task, "c", ["sleep", "1000"])
            yield made
            await made.ended()


@pytest.mark.parametrize("code", [0, 7, 137])
async def test_exit_codes(kit: StreamKit, code: int) -> None:
    client = await kit.exec("c", f"echo out; echo err >&2; exit {code}")
    await client.read()
    assert client.head.startswith(b"HTTP/1.1 101 ")
    assert (client.stdout, client.stderr, client.code) == (b"out\n", b"err\n", code)


async def test_fifty_megabytes_there_and_back(kit: StreamKit) -> None:
    client = await kit.exec("c", ["cat"], stdin=True)
    data = os.urandom(1 << 16)
    sent, got = hashlib.sha256(), hashlib.sha256()

    async def write() -> None:
        for _ in range(800):
            sent.update(data)
            await client.send(STDIN, data)
        await client.end_input()

    def take() -> None:
        got.update(client.channels.pop(STDOUT, b""))

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await client.read(take)
    take()
    assert client.code == 0
    assert got.digest() == sent.digest()


async def test_the_end_of_input_is_told(kit: StreamKit) -> None:
    client = await kit.exec("c", ["wc", "-c"], stdin=True)
    await client.send(STDIN, b"x" * 300_000)
    await client.end_input()
    await client.read()
    assert (client.stdout, client.code) == (b"300000\n", 0)


async def test_a_terminal_has_the_size_of_the_clients(kit: StreamKit) -> None:
    client = await kit.exec("c", ["sh"], stdin=True, tty=True)
    await client.resize(101, 33)
    await client.send(STDIN, b"until [ \"$(stty size)\" = '33 101' ]; do sleep 0.1; done; echo fi''rst\n")
    await client.read(lambda: b"first" in client.stdout)
    await client.resize(77, 22)
    await client.send(STDIN, b"until [ \"$(stty size)\" = '22 77' ]; do sleep 0.1; done; echo sec''ond; exit 3\n")
    await client.read()
    assert b"second" in client.stdout
    assert client.code == 3


async def test_all_that_was_said_on_a_terminal_comes_before_its_end(kit: StreamKit) -> None:
    client = await kit.exec("c", ["seq", "200000"], tty=True)
    await asyncio.sleep(0.3)  # it is not read from, so that the FIFO is full when the process is over
    await client.read()
    assert client.stdout.replace(b"\r", b"") == b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert client.code == 0


@pytest.mark.parametrize("tty", [False, True])
async def test_what_a_child_keeps_open_is_not_waited_for(kit: StreamKit, tty: bool) -> None:
    began = time.monotonic()
    client = await kit.exec("c", "trap '' HUP; sleep 1000 & echo said; exit 4", tty=tty)
    await client.read()
    assert (client.stdout.replace(b"\r", b""), client.code) == (b"said\n", 4)
    assert time.monotonic() - began < frames.QUIET_TERMINAL


async def test_a_child_that_goes_on_writing_is_not_waited_for(kit: StreamKit) -> None:
    client = await kit.exec("c", "while :; do echo more; done & echo said; exit 4")
    await client.read()
    assert client.code == 4


async def test_a_command_that_is_not_there(kit: StreamKit) -> None:
    client = await kit.exec("c", ["nowhere"])
    await client.read()
    assert client.status["status"] == "Failure"
    assert "nowhere" in client.status["message"]


async def test_a_client_that_does_not_read_holds_up_what_writes(kit: StreamKit) -> None:
    client = await kit.exec("c", "i=0; while :; do i=$((i+1)); echo $i >/data/n; echo line $i; done")
    path = kit.shim.base / "writable-c/upper/data/n"
    await until(path.exists, "it to run")

    def stands() -> bool:
        before = path.read_bytes()
        time.sleep(0.3)
        return path.read_bytes() == before

    await until(stands, "it to stand still")
    client.socket.close()


def alive(word: str) -> list[int]:
    """Processes with this word among their arguments."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and word in process.arguments(int(name))]


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("deaf", ["", "trap '' HUP; "])
async def test_all_ends_with_its_client(kit: StreamKit, tty: bool, deaf: str) -> None:
    word = f"7{os.getpid()}"
    client = await kit.exec("c", f"{deaf}sleep {word} & sleep {word}; wait", stdin=True, tty=tty)
    await until(lambda: len(alive(word)) == 2, "it to run")
    client.socket.close()
    await kit.ended()
    await until(lambda: not alive(word), "all to be ended")


async def test_a_client_that_goes_while_stdin_is_full(kit: StreamKit) -> None:
    word = f"8{os.getpid()}"
    client = await kit.exec("c", ["sleep", word], stdin=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await client.send(STDIN, bytes(1 << 16))
    await until(lambda: alive(word), "it to run")
    client.socket.close()
    await kit.ended()
    await until(lambda: not alive(word), "it to be ended")


async def test_the_end_of_the_container_is_the_end_of_the_session(kit: StreamKit) -> None:
    client = await kit.exec("c", "echo here; sleep 1000")
    await client.read(lambda: client.stdout)
    await kit.task.kill("c", signal.SIGKILL)
    await client.read()
    assert client.code == 137


@pytest.mark.parametrize("whose", ["frames", "monitor by SIGTERM"])
async def test_one_half_ends_with_the_other(kit: StreamKit, whose: str) -> None:
    word = f"9{os.getpid()}"
    client = await kit.exec("c", f"echo here; sleep {word}")
    await client.read(lambda: client.stdout)
    if whose == "frames":
        os.kill(kit.frames(), signal.SIGKILL)
    else:
        os.kill(kit.workers[-1].pid, signal.SIGTERM)
    await client.read()
    await kit.ended()
    await until(lambda: not alive(word), "it to be ended")


async def test_a_monitor_that_is_killed_takes_the_other_half_with_it(kit: StreamKit) -> None:
    client = await kit.exec("c", "echo here; sleep 1000")
    await client.read(lambda: client.stdout)
    frames = kit.frames()
    os.kill(kit.workers[-1].pid, signal.SIGKILL)
    await client.read()
    await until(lambda: process.state(frames) in ("", "Z"), "it to end")
    kit.directories.clear()  # that, and the process, are for the daemon to end


async def test_idle_sessions_end(kit: StreamKit) -> None:
    client = await kit.exec("c", "echo here; sleep 1000", idle_seconds=4)  # enough to be heard before
    await client.read()
    assert client.stdout == b"here\n"
    await kit.ended()


async def test_who_parses_has_no_rights(kit: StreamKit) -> None:
    client = await kit.exec("c", ["cat"], stdin=True)
    await client.send(STDIN, b"here")
    await client.read(lambda: client.stdout)
    where = Path("/proc", str(kit.frames()))
    status = dict(line.split(":\t", 1) for line in (where / "status").read_text().splitlines())
    assert status["Name"] == "hf-frames"
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].strip() == ""
    assert {name: int(status[name], 16) for name in status if name.startswith("Cap")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert status["NoNewPrivs"] == "1"
    assert os.listdir(where / "root") == []
    networks = [namespace.namespace_id(f"/proc/{pid}/ns/net") for pid in (os.getpid(), kit.workers[-1].pid, where.name)]
    assert networks[0] == networks[1] != networks[2]
    limits = {line[:25].strip(): line[25:].split()[:2] for line in (where / "limits").read_text().splitlines()}
    assert limits["Max processes"] == limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["64", "64"]
    kinds = sorted(os.readlink(one).partition(":")[0] for one in (where / "fd").iterdir())
    directory = str(kit.directories[-1])
    expected = ["/dev/null"] * 3 + [f"{directory}/{name}" for name in ("stderr", "stdin", "stdout")]
    assert kinds == sorted(expected + ["anon_inode"] * 2 + ["pipe"] * 2 + ["socket"] * 2)


async def test_what_is_no_upgrade_is_refused(kit: StreamKit) -> None:
    client = await kit.exec("c", ["true"], headers=[("host", "localhost")])
    answer = b""
    async with asyncio.timeout(10):
        while data := await asyncio.get_running_loop().sock_recv(client.socket, 4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 426 ")
    await kit.ended()


async def test_garbage_ends_the_session(kit: StreamKit) -> None:
    client = await kit.exec("c", ["sleep", "1000"], stdin=True)
    await asyncio.get_running_loop().sock_sendall(client.socket, b"\xff" * 4096)
    await kit.ended()


SPDY = [
    ("host", "localhost"),
    ("connection", "Upgrade"),
    ("upgrade", "SPDY/3.1"),
    ("x-stream-protocol-version", "v4.channel.k8s.io"),
]


async def test_hostile_clients_end_their_own_sessions(kit: StreamKit) -> None:
    chance = random.Random(9)
    other = await kit.exec("c", ["cat"], stdin=True)
    for number in range(40):
        client = await kit.exec("c", ["sleep", "1000"], stdin=True, **({"headers": SPDY} if number % 2 else {}))
        with contextlib.suppress(ConnectionError):
            for _ in range(chance.randint(1, 4)):
                first = chance.choice([b"", b"\x80\x03\x00", b"\x82\xff", b"\x88\x80", b"\x00\x00\x00\x01\x01"])
                data = first + chance.randbytes(chance.randint(0, 3000))
                await asyncio.get_running_loop().sock_sendall(client.socket, data)
        client.socket.close()
    await until(lambda: all(map(over, kit.workers[1:])), "their sessions to end")
    await other.send(STDIN, b"still here")
    await other.read(lambda: other.stdout)
    assert other.stdout == b"still here"
    assert (await kit.task.state("c")).status.name == "RUNNING"
