"""The shim with real containers, under crun and runc alike: exits, logs, exec, terminals, and what must not matter."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_kit import ShimKit, reader, running_shim, until

from holdfast.linux import cgroup, files, mount, process
from holdfast.model import errors
from holdfast.model.witness import decode_init
from holdfast.proto import cgroups_v1_pb2, cgroups_v2_pb2
from holdfast.runtime.task import V3, Status, TaskClient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FOREVER = ["sleep", "1000"]


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def kit(tmp_path: Path, lower: Path, runtime: str) -> Iterator[ShimKit]:
    with running_shim(tmp_path, runtime, lower) as made:
        yield made


@pytest.fixture
def pod(tmp_path: Path, lower: Path, runtime: str) -> Iterator[ShimKit]:
    """A shim whose containers may share a pid namespace."""
    with running_shim(tmp_path, runtime, lower, pid_namespace=True) as made:
        yield made


# -- exits


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -SEGV $$", 139), ("kill -KILL $$", 137)],
)
async def test_exit_codes_are_exact(kit: ShimKit, client: TaskClient, command: str, code: int) -> None:
    # In the host's pid namespace: process 1 of one of its own takes no signal that it does not handle.
    one = await kit.run(client, "c", command, pid="")
    assert await client.wait("c") == (code, one.exit.finished_at)
    assert (one.exit.code, one.exit.signal, one.exit.witness) == (code, max(0, code - 128), "shim")
    assert not one.exit.oom_killed
    state = await client.state("c")
    assert (state.status, state.exit_status, state.exited_at) == (Status.STOPPED, code, one.exit.finished_at)
    assert await client.delete("c") == (code, one.exit.finished_at)
    assert one.exit.code == code
    assert kit.leftovers() == []


async def test_sigkill_of_init_by_somebody(kit: ShimKit, client: TaskClient) -> None:
    one = await kit.run(client, "c", FOREVER)
    init = decode_init((one.bundle / "init.json").read_bytes())
    assert init.started
    assert init.start_time == process.start_time(init.pid)
    assert init.cgroup == f"{kit.parent}/c"
    waiting = asyncio.gather(client.wait("c"), client.wait("c"))
    os.kill(init.pid, signal.SIGKILL)
    (code, at), again = await waiting
    assert code == 137
    assert again == (code, at)
    assert (one.exit.pid, one.exit.start_time) == (init.pid, init.start_time)


async def test_wait_after_the_exit_answers_at_once_and_the_same(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", "exit 7")
    first = await client.wait("c")
    assert first[0] == 7
    assert await client.wait("c") == first


async def test_oom_kill_of_init(kit: ShimKit, client: TaskClient) -> None:
    one = await kit.run(client, "c", ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M"], memory=24 << 20)
    assert (await client.wait("c"))[0] == 137
    assert one.exit.oom_killed
    assert one.exit.oom_kills >= 1


async def test_oom_kill_of_a_child_is_not_that_of_init(kit: ShimKit, client: TaskClient) -> None:
    one = await kit.run(client, "c", "dd if=/dev/zero of=/dev/null bs=256M; exit 3", memory=24 << 20)
    assert (await client.wait("c"))[0] == 3
    assert not one.exit.oom_killed
    assert one.exit.oom_kills >= 1


async def test_exits_of_many_containers_in_one_shim(kit: ShimKit, client: TaskClient) -> None:
    async def one(number: int) -> int:
        await kit.run(client, f"c{number}", f"seq {number}; exit {number}")
        code, _ = await client.wait(f"c{number}")
        await client.delete(f"c{number}")
        return code

    assert await asyncio.gather(*(one(number) for number in range(1, 13))) == list(range(1, 13))
    for container in kit.containers:
        assert container.exit.code == int(container.id[1:])
        assert len(container.text().split()) == container.exit.code
    assert kit.leftovers() == []


async def test_children_outside_a_pid_namespace_end_with_init(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", "sleep 1000 & sleep 1000 & exit 4", pid="")
    assert (await client.wait("c"))[0] == 4
    await until(lambda: not cgroup.pids(f"{kit.parent}/c"))
    await client.delete("c")
    assert kit.leftovers() == []


async def test_containers_share_the_pods_pid_namespace(pod: ShimKit) -> None:
    client = await pod.connect()
    shared = str(pod.directory / "ns/pid")
    one = await pod.run(client, "a", "sleep 1000 & sleep 1000", pid=shared)
    two = await pod.run(client, "b", "ps -o pid,args | cat; exit 5", pid=shared)
    assert (await client.wait("b"))[0] == 5
    assert b"sleep 1000" in two.text()
    assert two.text().split(b"\n")[1].split()[0] == b"1"
    await client.kill("a", signal.SIGKILL)
    assert (await client.wait("a"))[0] == 137
    await until(lambda: not cgroup.pids(f"{pod.parent}/a"))
    assert one.exit.code == 137
    for name in ("a", "b"):
        await client.delete(name)
    assert pod.leftovers() == [str(pod.directory / "ns/pid")]
    await client.shutdown("pod")
    assert pod.process is not None
    await asyncio.to_thread(pod.process.wait, 10)
    assert pod.process.returncode == 0
    client.close()


# -- the life of a task


async def test_states_pids_and_deletion(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", FOREVER)
    pid = await kit.create(client, one)
    state = await client.state("c")
    assert (state.status, state.pid, state.bundle) == (Status.CREATED, pid, str(one.bundle))
    assert not decode_init((one.bundle / "init.json").read_bytes()).started
    with pytest.raises(errors.AlreadyExists):
        await kit.create(client, one)
    assert await client.start("c") == pid
    assert (await client.state("c")).status is Status.RUNNING
    assert await client.pids("c") == [pid]
    with pytest.raises(errors.FailedPrecondition):
        await client.start("c")
    with pytest.raises(errors.FailedPrecondition):
        await client.delete("c")
    await client.kill("c", signal.SIGKILL)
    await client.wait("c")
    assert await client.pids("c") == []
    with pytest.raises(errors.NotFound):
        await client.kill("c", signal.SIGTERM)
    await client.delete("c")
    for gone in (client.state("c"), client.wait("c"), client.delete("c"), client.pids("c"), client.start("c")):
        with pytest.raises(errors.NotFound):
            await gone
    assert kit.leftovers() == []


async def test_version_3_of_the_api_is_the_same(kit: ShimKit) -> None:
    client = await TaskClient.connect(kit.socket, V3)
    await kit.run(client, "c", "exit 9")
    assert (await client.wait("c"))[0] == 9
    await client.delete("c")
    assert kit.process is not None
    assert await client.shim_pid() == kit.process.pid
    client.close()


async def test_a_created_task_can_be_deleted_and_created_again(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", "exit 6")
    await kit.create(client, one)
    waiting = asyncio.gather(client.wait("c"))
    await client.delete("c")
    assert (await waiting)[0][0] == 137
    assert not (one.bundle / "init.json").exists()
    assert not (one.bundle / "exit.json").exists()
    assert kit.leftovers() == []
    await kit.create(client, one)
    await client.start("c")
    assert (await client.wait("c"))[0] == 6


async def test_a_failed_creation_leaves_nothing(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", ["/no/such/program"])
    with pytest.raises(errors.HoldfastError, match=r"no/such/program"):
        await kit.create(client, one)
        await client.start("c")
    with contextlib.suppress(errors.NotFound):  # a runtime that notices only at the start
        await client.delete("c")
    assert kit.leftovers() == []
    two = kit.container("d", FOREVER)
    with pytest.raises(errors.HoldfastError, match="no/such"):
        await kit.create(client, two, stdout="cri:///no/such/directory/log", stderr="")
    assert kit.leftovers() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a" * 200, "a\n"])
async def test_ids_are_checked(kit: ShimKit, client: TaskClient, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="^id: "):
        await client.create(name, bundle="/tmp")


@pytest.mark.parametrize(
    "wrong",
    [
        {"bundle": "relative"},
        {"bundle": "/tmp/../etc"},
        {"stdout": "relative"},
        {"stdout": "cri://relative"},
        {"stdin": "cri:///tmp/x"},
        {"stderr": "binary:///bin/true"},
    ],
)
async def test_paths_are_checked(kit: ShimKit, client: TaskClient, wrong: dict[str, str]) -> None:
    (field,) = wrong
    with pytest.raises(errors.InvalidArgument, match=f"^{field}: "):
        await client.create("c", **{"bundle": "/tmp", **wrong})


async def test_pause_resume_and_kill_while_paused(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    await client.pause("c")
    assert (await client.state("c")).status is Status.PAUSED
    with pytest.raises(errors.FailedPrecondition):
        await client.exec("c", "e", kit.spec(["true"], "c")["process"])
    await client.resume("c")
    assert (await client.state("c")).status is Status.RUNNING
    await client.pause("c")
    await client.kill("c", signal.SIGKILL)
    assert (await client.wait("c"))[0] == 137
    await client.delete("c")


async def test_update_and_stats(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER, memory=64 << 20)
    await client.update("c", {"memory": {"limit": 96 << 20, "swap": 96 << 20}, "cpu": {"shares": 512}})
    kind, data = await client.stats("c")
    if kind == "io.containerd.cgroups.v1.Metrics":
        old = cgroups_v1_pb2.Metrics.FromString(data)
        assert old.memory.usage.limit == 96 << 20
        assert (old.pids.current, old.pids.limit) == (1, 200)
        assert old.cpu.usage.total > 0
        assert old.memory.usage.usage > 0
    else:
        new = cgroups_v2_pb2.Metrics.FromString(data)
        assert new.memory.usage_limit == 96 << 20
        assert (new.pids.current, new.pids.limit) == (1, 200)
    await client.kill("c", signal.SIGKILL)
    await client.wait("c")
    for impossible in (client.update("c", {"memory": {"limit": 96 << 20}}), client.stats("c")):
        with pytest.raises(errors.FailedPrecondition):
            await impossible


async def test_kill_reaches_all_processes(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", "sleep 1000 & sleep 1000 & while :; do wait; done", pid="")
    await until(lambda: len(cgroup.pids(f"{kit.parent}/c")) == 3)
    with pytest.raises(errors.InvalidArgument):
        await client.kill("c", 999)
    await client.kill("c", signal.SIGTERM, everything=True)
    assert (await client.wait("c"))[0] == 143


# -- logs


async def test_ten_thousand_lines_across_a_rotation(kit: ShimKit, client: TaskClient) -> None:
    """The last thousand are written after it."""
    pause = "while [ $i = 9000 ] && [ -z $on ]; do usleep 1000; done"
    script = f"trap on=1 USR1; i=0; while [ $i -lt 10000 ]; do echo line $i; i=$((i+1)); {pause}; done"
    one = kit.container("c", script)
    await kit.create(client, one)
    await client.start("c")
    await until(lambda: one.log.stat().st_size > 20_000)
    rotated = one.log.with_suffix(".1")
    one.log.rename(rotated)
    await client.reopen_log("c")
    await client.kill("c", signal.SIGUSR1)
    await client.wait("c")
    assert rotated.stat().st_size > 0
    assert one.log.stat().st_size > 0
    first = len(rotated.read_bytes().splitlines())
    one.log.write_bytes(rotated.read_bytes() + one.log.read_bytes())
    assert one.text() == b"".join(b"line %d\n" % number for number in range(10_000))
    assert 0 < first < 10_000


async def test_long_lines_binary_bytes_and_both_streams(kit: ShimKit, client: TaskClient) -> None:
    # Octal escapes only: what a shell makes of others differs.
    script = (
        "head -c 40000 /dev/zero | tr '\\000' a; echo; printf '\\000\\377\\001 x\\n'; "
        "echo to stderr >&2; printf 'no newline'; printf 'nor here' >&2"
    )
    one = await kit.run(client, "c", script)
    await client.wait("c")
    stdout = [(tag, line) for stream, tag, line in one.records() if stream == "stdout"]
    assert [(tag, len(line)) for tag, line in stdout[:3]] == [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384)]
    assert stdout[3:] == [("F", b"\0\xff\x01 x"), ("P", b"no newline")]
    assert one.text("stderr") == b"to stderr\nnor here"
    assert one.log.stat().st_mode & 0o777 == 0o640


async def test_output_of_a_child_that_outlives_nothing_is_complete(kit: ShimKit, client: TaskClient) -> None:
    """The end of a log is the exit and a drained pipe: half a megabyte is in the pipe when the process ends."""
    one = await kit.run(client, "c", "head -c 500000 /dev/zero | tr '\\000' b; echo; exit 3")
    assert (await client.wait("c"))[0] == 3
    assert one.text() == b"b" * 500_000 + b"\n"


async def test_a_full_log_stops_nobody_and_is_accounted_for(kit: ShimKit, client: TaskClient) -> None:
    small = kit.base / "small"
    small.mkdir()
    mount.mount("tmpfs", small, "tmpfs", 0, "size=256k")
    one = kit.container("c", "for i in $(seq 20); do seq 1000; done; echo written > /data/done; sleep 1000")
    one.log = small / "log"
    await kit.create(client, one)
    await client.start("c")
    done = kit.base / "writable-c/upper/data/done"
    await until(done.exists)
    await until(lambda: (small / "log").stat().st_size > 200_000)
    assert not any(b"holdfast: lost" in line for _, _, line in one.records())
    mount.mount("", small, "", mount.MS_REMOUNT, "size=16m")
    await until(lambda: b"holdfast: lost" in one.log.read_bytes())
    await client.kill("c", signal.SIGKILL)
    await client.wait("c")
    said = [line for _, _, line in one.records()]
    markers = [line for line in said if line.startswith(b"holdfast: lost")]
    assert all(b"No space left on device" in marker for marker in markers)
    assert sum(int(marker.split()[2]) for marker in markers) + len(said) - len(markers) == 20_000


async def test_discarded_and_given_streams(kit: ShimKit, client: TaskClient) -> None:
    """Without an address output goes nowhere; a FIFO of the caller is the process's own."""
    async with reader(kit.base / "out") as out:
        await kit.run(client, "c", "echo seen; echo unseen >&2", stdout=str(kit.base / "out"), stderr="")
        await client.wait("c")
        await until(lambda: out == b"seen\n")


def write_once(path: Path, data: bytes) -> None:
    """As a client does that opens a FIFO, writes and goes."""
    with open(path, "wb", buffering=0) as fifo:
        fifo.write(data)


async def test_stdin_until_it_is_closed(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", ["cat"])
    await kit.create(client, one, stdin=str(one.bundle / "stdin"))
    await client.start("c")
    for text in (b"first\n", b"second\n"):  # two writers, one after the other: no end of file between them
        write_once(one.bundle / "stdin", text)
        await until(lambda text=text: text in one.text())
    assert (await client.state("c")).status is Status.RUNNING
    await client.close_io("c")
    assert (await client.wait("c"))[0] == 0
    assert one.text() == b"first\nsecond\n"


async def test_a_terminal(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", "read line; echo got $line; stty size; exit 8", terminal=True)
    log = f"cri://{one.log}"
    await kit.create(client, one, terminal=True, stdin=str(one.bundle / "stdin"), stdout=log, stderr=log)
    await client.resize_pty("c", 132, 43)
    await client.start("c")
    write_once(one.bundle / "stdin", b"hello\n")
    assert (await client.wait("c"))[0] == 8
    assert one.text().replace(b"\r", b"") == b"hello\ngot hello\n43 132\n"
    assert one.text("stderr") == b""
    await client.delete("c")
    assert kit.leftovers() == []


async def test_resize_without_a_terminal_is_refused(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    with pytest.raises(errors.FailedPrecondition):
        await client.resize_pty("c", 80, 24)


# -- exec


async def test_exec_with_streams_and_code(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    spec = kit.spec(["sh", "-c", "cat; echo err >&2; exit 5"], "c")["process"]
    stdin, stdout, stderr = (kit.base / name for name in ("in", "out", "err"))
    files.fifo(stdin)
    async with reader(stdout) as out, reader(stderr) as err:
        await client.exec("c", "e", spec, stdin=str(stdin), stdout=str(stdout), stderr=str(stderr))
        with pytest.raises(errors.AlreadyExists):
            await client.exec("c", "e", spec)
        assert (await client.state("c", "e")).status is Status.CREATED
        pid = await client.start("c", "e")
        assert (await client.state("c", "e")).pid == pid
        with pytest.raises(errors.FailedPrecondition):
            await client.start("c", "e")
        write_once(stdin, b"text\n")
        await client.close_io("c", "e")
        assert (await client.wait("c", "e"))[0] == 5
        await until(lambda: (out, err) == (b"text\n", b"err\n"))
    assert (await client.delete("c", "e"))[0] == 5
    with pytest.raises(errors.NotFound):
        await client.state("c", "e")
    assert (await client.state("c")).status is Status.RUNNING


async def test_exec_with_a_terminal(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    spec = kit.spec(["sh", "-c", "test -t 0 && test -t 1 && echo a terminal; exit 2"], "c", terminal=True)["process"]
    async with reader(kit.base / "out") as out:
        await client.exec("c", "e", spec, stdout=str(kit.base / "out"), terminal=True)
        await client.start("c", "e")
        assert (await client.wait("c", "e"))[0] == 2
        await until(lambda: out == b"a terminal\r\n")
        await client.delete("c", "e")


async def test_many_execs_at_once_and_the_quickest_of_all(kit: ShimKit, client: TaskClient) -> None:
    """`true` may end before the runtime has told its pid."""
    await kit.run(client, "c", FOREVER)

    async def one(number: int) -> int:
        spec = kit.spec(["sh", "-c", f"exit {number}"] if number else ["true"], "c")["process"]
        await client.exec("c", f"e{number}", spec)
        await client.start("c", f"e{number}")
        code, _ = await client.wait("c", f"e{number}")
        await client.delete("c", f"e{number}")
        return code

    assert await asyncio.gather(*(one(number) for number in range(12))) == list(range(12))


async def test_exec_that_cannot_be(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    await client.exec("c", "e", kit.spec(["/no/such/program"], "c")["process"])
    with pytest.raises(errors.HoldfastError, match=r"no/such/program"):
        await client.start("c", "e")
    await client.delete("c", "e")
    with pytest.raises(errors.InvalidArgument, match="^exec_id: "):
        await client.exec("c", "../e", {})
    await client.kill("c", signal.SIGKILL)
    await client.wait("c")
    with pytest.raises(errors.FailedPrecondition):
        await client.exec("c", "f", {})


async def test_execs_end_with_their_container(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    await client.exec("c", "e", kit.spec(FOREVER, "c")["process"])
    await client.start("c", "e")
    await client.kill("c", signal.SIGKILL)
    assert (await client.wait("c", "e"))[0] == 137
    await client.wait("c")
    await client.delete("c")
    assert kit.leftovers() == []


# -- what must not matter


IMPATIENT = """
import asyncio, sys
from holdfast.model.spec import Mount
from holdfast.runtime.task import TaskClient

async def main():
    client = await TaskClient.connect(sys.argv[1])
    mounts = [Mount("overlay", "overlay", options=tuple(sys.argv[4:]))]
    create = client.create(sys.argv[2], bundle=sys.argv[3], rootfs=mounts)
    asked = asyncio.get_running_loop().create_task(create)
    await asyncio.sleep(0)
    print("asked", flush=True)
    await asked
    await client.wait(sys.argv[2])

asyncio.run(main())
"""


async def test_a_client_that_dies_in_the_middle(kit: ShimKit, client: TaskClient) -> None:
    one = kit.container("c", FOREVER)
    command = [sys.executable, "-c", IMPATIENT, str(kit.socket), one.id, str(one.bundle), *one.rootfs[0].options]
    other = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert other.stdout is not None
    await other.stdout.readline()
    other.kill()
    await other.wait()
    async with asyncio.timeout(10):
        while not await created(client, "c"):
            pass
    await client.start("c")
    await client.kill("c", signal.SIGKILL)
    assert (await client.wait("c"))[0] == 137


async def created(client: TaskClient, name: str) -> bool:
    with contextlib.suppress(errors.NotFound):
        return (await client.state(name)).pid > 0
    return False


@pytest.mark.parametrize(
    "hostile",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0),
        struct.pack(">IIBB", 4, 1, 1, 0) + b"\xff\xff\xff\xff",
        struct.pack(">IIBB", 0, 2, 1, 0),
        struct.pack(">IIBB", 0, 1, 2, 0),
        struct.pack(">IIBB", 0, 1, 9, 0),
        struct.pack(">IIBB", 100, 1, 1, 0) + b"half",
        b"\0" * 3,
    ],
)
async def test_hostile_frames(kit: ShimKit, client: TaskClient, hostile: bytes) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(kit.socket))
            peer.send(hostile)
    with pytest.raises(errors.NotFound):
        await client.state("c")


@pytest.fixture
def hung(tmp_path: Path) -> Path:
    """Where a crun whose pause of the container "sick" never ends says who it is."""
    binary = tmp_path / "bin" / "crun"
    binary.parent.mkdir()
    place, real = tmp_path / "hung", shutil.which("crun")
    binary.write_text(
        f'#!/bin/sh\ncase "$*" in *"pause sick") echo $$ > {place}; exec sleep 1000;; esac\nexec {real} "$@"\n'
    )
    binary.chmod(0o755)
    return place


async def test_a_command_that_hangs_holds_up_none_but_its_own_container(
    tmp_path: Path, lower: Path, hung: Path
) -> None:
    with running_shim(tmp_path, "crun", lower, binary=str(tmp_path / "bin" / "crun")) as kit:
        client = await kit.connect()
        await kit.run(client, "sick", FOREVER)
        await kit.run(client, "well", FOREVER)
        with pytest.raises(errors.DeadlineExceeded):
            await client.pause("sick", seconds=0.3)
        await client.pause("well", seconds=5)
        await client.resume("well", seconds=5)
        for name in ("well", "sick"):
            assert (await client.state(name, seconds=5)).status is Status.RUNNING
            assert len(await client.pids(name, seconds=5)) == 1
            await client.kill(name, signal.SIGKILL, seconds=5)
            async with asyncio.timeout(5):
                assert (await client.wait(name))[0] == 137
        await client.delete("well", seconds=5)
        client.close()
        command = int(hung.read_text())
    await until(lambda: process.state(command) == "")  # it has ended with its shim


async def test_a_command_whose_time_is_over_is_ended(tmp_path: Path, lower: Path, hung: Path) -> None:
    binary = str(tmp_path / "bin" / "crun")
    with running_shim(tmp_path, "crun", lower, binary=binary, more={"seconds": 4}) as kit:  # for its creation too
        client = await kit.connect()
        await kit.run(client, "sick", FOREVER)
        with pytest.raises(errors.HoldfastError, match="no end after 4 s"):
            await client.pause("sick")
        await until(lambda: process.state(int(hung.read_text())) == "")
        assert (await client.state("sick")).status is Status.RUNNING
        client.close()


async def test_the_death_of_the_shim_is_not_felt(kit: ShimKit, client: TaskClient) -> None:
    """Neither EPIPE nor EOF, on either stream."""
    one = await kit.run(client, "c", "while echo out && echo err >&2; do echo x >> /data/beats; usleep 20000; done")
    beats = kit.base / "writable-c/upper/data/beats"
    await until(beats.exists)
    assert kit.process is not None
    kit.process.kill()
    kit.process.wait()
    before = beats.stat().st_size
    await until(lambda: beats.stat().st_size > before + 20)
    with pytest.raises(errors.Unavailable):
        await client.state("c")
    assert client.closed
    assert not (one.bundle / "exit.json").exists()


async def test_signals_to_the_shim_are_ignored(kit: ShimKit, client: TaskClient) -> None:
    assert kit.process is not None
    await client.shim_pid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        kit.process.send_signal(number)
    assert await client.shim_pid() == kit.process.pid


async def test_shutdown_only_without_tasks_unless_forced(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "c", FOREVER)
    await client.shutdown("pod")
    assert (await client.state("c")).status is Status.RUNNING
    await client.shutdown("pod", now=True)
    assert kit.process is not None
    await asyncio.to_thread(kit.process.wait, 10)
    assert kit.process.returncode == 0


async def test_no_descriptor_is_left_open(kit: ShimKit, client: TaskClient) -> None:
    assert kit.process is not None
    fds = Path(f"/proc/{kit.process.pid}/fd")

    async def cycle(number: int) -> None:
        one = await kit.run(client, f"c{number}", FOREVER, terminal=bool(number % 2))
        await client.exec(one.id, "e", kit.spec(["true"], one.id)["process"])
        await client.start(one.id, "e")
        await client.wait(one.id, "e")
        await client.delete(one.id, "e")
        await client.kill(one.id, signal.SIGKILL)
        await client.wait(one.id)
        await client.delete(one.id)

    for number in range(2):
        await cycle(number)
    first = len(list(fds.iterdir()))
    for number in range(2, 6):
        await cycle(number)
    await until(lambda: len(list(fds.iterdir())) <= first)  # some are closed once the answer is given
