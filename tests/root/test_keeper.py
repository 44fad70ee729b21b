"""The keeper with real workers: what it promises when workers, clients, other keepers and its own directory fail it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.linux import cgroup, process, sockets
from holdfast.model.errors import Unavailable
from holdfast.model.state import ProcessRef
from holdfast.model.witness import EXIT_FILE, INIT_FILE, ExitRecord, InitRecord, decode_exit, encode
from holdfast.runtime import keeper as client
from holdfast.runtime.keeper import Keeper

SECONDS = 30.0

# A keeper like any other, but for one more kind of worker, which runs the script that it is given.
START = """
import sys, types
from holdfast.workers import keeper, template
probe = types.ModuleType("probe")
exec('''
import os, signal, socket, subprocess, sys, time
from holdfast.linux import process, sockets
def main(context):
    exec(context.args["script"], globals() | {"context": context})
''', probe.__dict__)
sys.modules["probe"] = probe
keeper.WORKERS["probe"] = "probe"
template.ANSWER_SECONDS = {seconds!r}
keeper.main()
"""
ANSWER_SECONDS = 10.0  # in which a template answers on any machine, unless it hangs

SLEEP = "context.ready()\nsignal.pause()"
# A worker, a subreaper as shims are, with a child that lives on when the worker is killed and then ends as it is told.
PARENT = """
process.set_child_subreaper()
child = os.fork()
if child == 0:
    process.close_fds_except([])
    os.dup2(os.open({fifo!r}, os.O_RDONLY), 0)
    how = os.read(0, 100).decode()
    exec(how)
    os._exit(0)
open({pidfile!r} + '.new', 'w').write(str(child))
os.rename({pidfile!r} + '.new', {pidfile!r})
context.ready()
signal.pause()
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)
    return value


def gone(pid: int) -> bool:
    return process.state(pid) in ("", "Z", "X")


def keepers(state: Path) -> list[int]:
    """Every process that says it keeps this directory."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                name = Path(entry.path, "comm").read_bytes()
            except OSError:
                continue
            if os.fsencode(state) in arguments and name == b"hf-keeper\n" and not gone(int(entry.name)):
                found.append(int(entry.name))
    return found


def ask(state: Path, **request: Any) -> dict[str, Any]:
    with sockets.connect(state / "keeper.sock", socket.SOCK_SEQPACKET, SECONDS) as connection:
        sockets.send(connection, json.dumps(request).encode())
        data, fds = sockets.receive(connection, 1 << 17)
    for fd in fds:
        os.close(fd)
    answer: dict[str, Any] = json.loads(data)
    return answer


def descriptors(pid: int) -> dict[str, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed just now
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def kinds_of(pid: int) -> list[str]:
    return sorted(target.partition(":")[0] for number, target in descriptors(pid).items() if int(number) > 2)


def closes_all_but(pid: int, count: int) -> None:
    until(lambda: len(descriptors(pid)) <= count, "descriptors to be closed")


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory; whatever keeps it, or was forked for it, is killed in the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"hf-k-{os.getpid()}-"))
    yield directory
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    for pid in pids:
        try:
            ours = os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours:
            with process.pin(pid, None) as pinned:
                if pinned is not None:
                    pinned.send(signal.SIGKILL)
            until(lambda pid=pid: gone(pid), f"process {pid} to die")
    shutil.rmtree(directory, ignore_errors=True)  # noqa: TID251


@pytest.fixture
def pid(state: Path, request: pytest.FixtureRequest) -> int:
    """A running keeper with the probe kind of worker; the parameter is how long it waits for its template."""
    start = START.replace("{seconds!r}", repr(getattr(request, "param", ANSWER_SECONDS)))
    command = [sys.executable, "-c", start, "--state", str(state)]
    subprocess.run(command, check=True, timeout=SECONDS)
    return int(ask(state, op="hello")["pid"])


@pytest.fixture
async def keeper(state: Path, pid: int) -> AsyncIterator[Keeper]:
    connected = await Keeper.connect(state)
    yield connected
    await connected.aclose()


async def fork(keeper: Keeper, script: str, name: str = "one", **more: Any) -> ProcessRef:
    return await keeper.fork("probe", name, {"script": script}, **more)


# -- start and end


def test_it_starts_once_and_detached(state: Path) -> None:
    client.ensure_running(state)
    hello = ask(state, op="hello", seq=5)
    client.ensure_running(state)
    assert ask(state, op="hello")["pid"] == hello["pid"]
    until(lambda: keepers(state) == [hello["pid"]], "the template to have taken its own name")
    assert (hello["seq"], hello["protocol"], hello["state"]) == (5, 1, str(state))
    assert hello["start_time"] == process.start_time(hello["pid"])
    status = Path(f"/proc/{hello['pid']}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" not in status
    assert os.getsid(hello["pid"]) == hello["pid"]
    assert os.readlink(f"/proc/{hello['pid']}/cwd") == "/"
    held = descriptors(hello["pid"])
    assert held["0"] == "/dev/null"
    assert held["1"] == held["2"] == str(state / "keeper.log")
    closes_all_but(hello["pid"], 12)
    client.shut_down(state)
    until(lambda: gone(hello["pid"]), "the keeper to end")
    assert not (state / "keeper.sock").exists()


def test_several_started_at_once_are_one(state: Path) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            client.ensure_running(state)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: len(keepers(state)) == 1, "the others to be gone, and the template to have taken its own name")


def test_one_that_was_killed_is_replaced_in_spite_of_its_socket(state: Path, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), "the keeper to die")
    assert (state / "keeper.sock").exists()
    client.ensure_running(state)
    assert ask(state, op="hello")["pid"] != pid


def test_no_keeper_without_a_state_directory(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot start the keeper: cannot keep .*/nowhere: .*No such file"):
        client.ensure_running(tmp_path / "nowhere")
    assert client.workers(tmp_path / "nowhere") == []


def test_it_survives_the_end_of_whoever_started_it_and_its_group(state: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from holdfast.runtime.keeper import ensure_running\n"
        "ensure_running(Path(sys.argv[1])); print(flush=True); input()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        before = ask(state, op="hello")["pid"]
        os.killpg(starter.pid, signal.SIGKILL)
    assert ask(state, op="hello")["pid"] == before


async def test_sigterm_and_shutdown_wait_for_the_last_worker(state: Path, pid: int, keeper: Keeper) -> None:
    worker = await fork(keeper, SLEEP)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGINT)
    client.shut_down(state)
    assert [one.pid for one in await keeper.list_workers()] == [worker.pid]
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: gone(pid), "the keeper to end")
    assert not (state / "keeper.sock").exists()


async def test_it_ends_when_its_directory_is_gone_and_leaves_a_new_one_alone(
    state: Path, pid: int, keeper: Keeper
) -> None:
    worker = await fork(keeper, SLEEP)
    os.rename(state, f"{state}.old")
    state.mkdir()
    try:
        client.ensure_running(state)
        other = ask(state, op="hello")["pid"]
        assert other != pid
        assert not gone(pid)
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: gone(pid), "the old keeper to end")
        assert ask(state, op="hello")["pid"] == other
    finally:
        shutil.rmtree(f"{state}.old")  # noqa: TID251


# -- workers


async def test_a_worker_has_what_it_was_given_and_nothing_else(state: Path, pid: int, keeper: Keeper) -> None:
    await fork(keeper, SLEEP, "another")
    await keeper.hold("a key", [0])
    told, tell = os.pipe()
    script = (
        "context.ready()\n"
        "os.write(context.fds[0], repr(context.id).encode())\n"
        "accepted, _ = context.listener.accept()\n"
        "accepted.sendall(b'hello'); accepted.close(); signal.pause()"
    )
    ref = await fork(keeper, script, listen=state / "probe.sock", fds=[tell])
    os.close(tell)
    with os.fdopen(told, "rb") as pipe, sockets.connect(state / "probe.sock", timeout=SECONDS) as connection:
        assert connection.recv(10) == b"hello"
        assert os.read(pipe.fileno(), 100) == b"'one'"
        expected = ["pipe", "socket", "socket"]  # what it was given, its listener and its line to the keeper
        until(lambda: kinds_of(ref.pid) == expected, "nothing else to be open")
    assert ref == ProcessRef(ref.pid, process.start_time(ref.pid) or 0, process.boot_id())
    assert Path(f"/proc/{ref.pid}/comm").read_text() == "hf-probe\n"
    assert os.getpgid(ref.pid) == ref.pid
    assert {one.id for one in await keeper.list_workers()} == {"one", "another"}


async def test_a_worker_handles_signals_as_if_it_had_been_executed(keeper: Keeper) -> None:
    ref = await fork(keeper, SLEEP)
    os.kill(ref.pid, signal.SIGTERM)
    assert (await anext(keeper.events())).status == 128 + signal.SIGTERM


async def test_a_program_that_a_worker_runs_inherits_no_descriptor(state: Path, keeper: Keeper) -> None:
    script = "subprocess.run(['ls', '/proc/self/fd'], stdout=open({!r}, 'w'), close_fds=False)\ncontext.ready()"
    path = state / "fds"
    given = os.open("/dev/null", os.O_RDONLY)
    await fork(keeper, script.format(str(path)), listen=state / "probe.sock", fds=[given])
    os.close(given)
    assert path.read_text().split() == ["0", "1", "2", "3"]  # 3 is that of ls itself


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise OSError(28, 'no space', 'here')", r"probe one: OSError: \[Errno 28\] no space: 'here'"),
        ("os._exit(3)", "it ended before it was ready"),
        ("os.kill(os.getpid(), 9)", "it ended before it was ready"),
        # its child still has the other end of the line on which it would have said so
        ("os.fork() and os._exit(1)\ntime.sleep(0.5)", "it ended before it was ready"),
    ],
)
async def test_a_worker_that_does_not_get_ready(pid: int, keeper: Keeper, script: str, why: str) -> None:
    before = len(descriptors(pid))
    with pytest.raises(Unavailable, match=why):
        await fork(keeper, script)
    await anext(keeper.events())
    assert await keeper.list_workers() == []
    closes_all_but(pid, before)


async def test_a_worker_that_fails_later_says_so_in_the_log(state: Path, keeper: Keeper) -> None:
    ref = await fork(keeper, "context.ready()\nraise RuntimeError('a reason')")
    event = await anext(keeper.events())
    assert (event.pid, event.status) == (ref.pid, 1)
    assert "RuntimeError: a reason" in (state / "keeper.log").read_text()


async def test_what_cannot_be_forked_leaks_nothing(state: Path, pid: int, keeper: Keeper) -> None:
    before = len(descriptors(pid))
    with pytest.raises(Unavailable, match="unknown kind of worker 'none'"):
        await keeper.fork("none", "one", {})
    with pytest.raises(Unavailable, match="FileNotFoundError"):
        await fork(keeper, SLEEP, listen=state / "no" / "where", fds=[0])
    closes_all_but(pid, before)


async def test_there_is_one_worker_of_a_name(keeper: Keeper) -> None:
    first = await fork(keeper, SLEEP)
    with pytest.raises(Unavailable, match=f"probe one runs already, its pid is {first.pid}"):
        await fork(keeper, SLEEP)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: gone(first.pid), "the worker to die")
    assert (await fork(keeper, SLEEP)).pid != first.pid


def template_of(pid: int) -> int:
    """Once it has taken its own name."""

    def found() -> list[int]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in children if Path(f"/proc/{one}/comm").read_bytes() == b"hf-template\n"]

    return int(until(found, "the template")[0])


async def test_a_template_that_was_killed_is_made_again(pid: int, keeper: Keeper) -> None:
    first = await fork(keeper, SLEEP, "before")
    template = template_of(pid)
    os.kill(template, signal.SIGKILL)
    until(lambda: gone(template), "the template to die")
    second = await fork(keeper, SLEEP, "after")
    assert template_of(pid) != template
    assert {one.pid for one in await keeper.list_workers()} == {first.pid, second.pid}


@pytest.mark.parametrize("pid", [2.0], indirect=True)
async def test_a_template_that_hangs_is_given_up(pid: int, keeper: Keeper) -> None:
    template = template_of(pid)
    os.kill(template, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="has not answered"):
            await fork(keeper, SLEEP)
        await fork(keeper, SLEEP)
    finally:
        os.kill(template, signal.SIGCONT)
    until(lambda: gone(template), "the template to end")
    assert len(await keeper.list_workers()) == 1


async def test_a_template_ends_with_its_keeper(pid: int, keeper: Keeper) -> None:
    template = template_of(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(template), "the template to end")


async def test_exits_are_told_to_every_watcher(state: Path, keeper: Keeper) -> None:
    other = await Keeper.connect(state)
    refs = [await fork(keeper, f"context.ready()\n{how}", name) for name, how in (("a", "os._exit(3)"), ("b", ""))]
    for watcher in (keeper, other):
        events = watcher.events()
        found = {event.id: event async for event in _take(events, 2)}
        assert {one.pid for one in found.values()} == {ref.pid for ref in refs}
        assert (found["a"].status, found["b"].status, found["a"].kind) == (3, 0, "probe")
    await other.aclose()


async def _take(events: AsyncIterator[client.WorkerInfo], count: int) -> AsyncIterator[client.WorkerInfo]:
    for _ in range(count):
        yield await anext(events)


async def test_a_slow_worker_holds_up_nobody(state: Path, keeper: Keeper) -> None:
    os.mkfifo(gate := state / "gate")
    slow = asyncio.gather(fork(keeper, f"open({str(gate)!r}).read()\n{SLEEP}", "slow"))
    await fork(keeper, SLEEP, "quick")
    assert not slow.done()
    with gate.open("w"):
        pass
    await slow


# -- inherited processes


class Bundle:
    """A worker with a child, as a shim with a container's init, and the bundle that tells of it."""

    def __init__(self, state: Path, name: str = "pod") -> None:
        self.name = name
        self.directory = state / "pods" / name / "container"
        self.directory.mkdir(parents=True)
        self.fifo = self.directory / "fifo"
        os.mkfifo(self.fifo)
        self.shim = self.init = 0

    async def start(self, keeper: Keeper, **record: Any) -> None:
        pidfile = self.directory / "pid"
        script = PARENT.format(fifo=str(self.fifo), pidfile=str(pidfile))
        self.shim = (await fork(keeper, script, self.name)).pid
        self.init = int(pidfile.read_text())
        started = process.start_time(self.init)
        assert started is not None
        facts = {"cgroup": "/nowhere", "oom_kills": 0} | record
        self.write(InitRecord(pid=self.init, start_time=started, boot_id=process.boot_id(), **facts))

    def write(self, record: InitRecord) -> None:
        (self.directory / INIT_FILE).write_bytes(encode(record))

    def lose_shim(self) -> None:
        os.kill(self.shim, signal.SIGKILL)
        until(lambda: gone(self.shim), "the worker to die")

    def end(self, how: str) -> None:
        self.fifo.write_text(how)

    def exit_record(self) -> ExitRecord:
        path = self.directory / EXIT_FILE
        until(path.exists, "exit.json")
        return decode_exit(path.read_bytes())


@pytest.fixture
def alone() -> Iterator[str]:
    """A cgroup in which nobody else is killed for want of memory meanwhile."""
    path = f"/hf-keeper-{os.getpid()}"
    cgroup.create(path)
    yield path
    cgroup.kill(path)
    cgroup.remove(path)


@pytest.mark.parametrize(
    ("how", "code", "number"),
    [
        ("os._exit(42)", 42, 0),
        ("os._exit(0)", 0, 0),
        ("os.kill(os.getpid(), 9)", 137, 9),
        ("import resource; resource.setrlimit(4, (0, 0)); os.kill(os.getpid(), 11)", 139, 11),
    ],
)
async def test_the_exit_of_an_inherited_init_is_recorded(
    state: Path, keeper: Keeper, alone: str, how: str, code: int, number: int
) -> None:
    bundle = Bundle(state)
    await bundle.start(keeper, cgroup=alone)
    cgroup.enter(alone, bundle.init)
    bundle.lose_shim()
    assert (await anext(keeper.events())).status == 137
    await keeper.aclose()  # there is no daemon
    assert process.state(bundle.init) in ("S", "R", "D")
    before = time.time_ns()
    bundle.end(how)
    record = bundle.exit_record()
    assert (record.pid, record.code, record.signal) == (bundle.init, code, number)
    assert (record.oom_killed, record.witness) == (False, "keeper")
    assert before <= record.finished_at <= time.time_ns()
    until(lambda: process.state(bundle.init) == "", "the init to be reaped")


async def test_two_that_ended_before_the_shim_died_are_recorded_too(state: Path, keeper: Keeper) -> None:
    """A worker is stopped with a zombie that it has not reaped, and is then killed."""
    bundle = Bundle(state)
    await bundle.start(keeper)
    os.kill(bundle.shim, signal.SIGSTOP)
    bundle.end("os._exit(5)")
    until(lambda: process.state(bundle.init) == "Z", "the init to end")
    bundle.lose_shim()
    assert bundle.exit_record().code == 5


async def test_the_first_record_is_final(state: Path, keeper: Keeper) -> None:
    bundle = Bundle(state)
    await bundle.start(keeper)
    (bundle.directory / EXIT_FILE).write_text("the shim's")
    bundle.lose_shim()
    bundle.end("os._exit(5)")
    until(lambda: process.state(bundle.init) == "", "the init to be reaped")
    assert (bundle.directory / EXIT_FILE).read_text() == "the shim's"


async def test_damaged_and_foreign_records_do_not_hold_it_up(state: Path, keeper: Keeper) -> None:
    """Another container's record with the same pid but another start time is not this process; nonsense is nothing."""
    bundle, other, damaged = (Bundle(state, name) for name in ("pod", "other", "damaged"))
    await bundle.start(keeper, cgroup="/no\0where")
    other.write(InitRecord(bundle.init, 1, process.boot_id(), "/", 0))
    (damaged.directory / INIT_FILE).write_text("[" * 20_000)
    bundle.lose_shim()
    bundle.end("os._exit(9)")
    until(lambda: process.state(bundle.init) == "", "the init to be reaped")
    assert not (other.directory / EXIT_FILE).exists()
    assert ask(state, op="hello")["pid"]


async def test_an_inherited_init_that_the_kernel_killed_for_want_of_memory(
    state: Path, keeper: Keeper, alone: str
) -> None:
    found = cgroup.hierarchies()
    name, top = ("memory.limit_in_bytes", found["memory"]) if "memory" in found else ("memory.max", found[""])
    (top / alone.strip("/") / name).write_text(str(32 * 1024 * 1024))
    bundle = Bundle(state)
    await bundle.start(keeper, cgroup=alone)
    cgroup.enter(alone, bundle.init)
    bundle.lose_shim()
    bundle.end("x = bytearray(256 << 20)")
    record = bundle.exit_record()
    assert (record.code, record.oom_killed, record.oom_kills) == (137, True, 1)


# -- held descriptors


async def test_held_descriptors_survive_everybody_but_the_keeper(state: Path, keeper: Keeper) -> None:
    reading, writing = os.pipe()
    await keeper.hold("a/1", [reading])
    os.close(reading)
    await keeper.aclose()
    os.write(writing, b"kept")
    os.close(writing)
    again = await Keeper.connect(state)
    for _ in range(2):
        (fd,) = await again.take("a/1")
        assert not os.get_inheritable(fd)
        os.close(fd)
    (fd,) = await again.take("a/1")
    assert os.read(fd, 10) == b"kept"
    os.close(fd)
    await again.drop("a/")
    assert await again.take("a/1") == []
    await again.aclose()


async def test_what_a_worker_has_held_outlives_it_unless_it_ends_well(keeper: Keeper) -> None:
    script = "r, w = os.pipe()\nos.write(w, b'last words')\ncontext.hold('stdout', [r])\ncontext.ready()\n{}"
    killed = await fork(keeper, script.format("signal.pause()"), "killed")
    os.kill(killed.pid, signal.SIGKILL)
    await fork(keeper, script.format(""), "well")
    await fork(keeper, script.format("context.drop('stdout')\nos._exit(1)"), "dropped")
    events = keeper.events()
    assert {event.id async for event in _take(events, 3)} == {"killed", "well", "dropped"}
    (fd,) = await keeper.take("killed/stdout")
    assert os.read(fd, 100) == b"last words"
    os.close(fd)
    assert await keeper.take("well/stdout") == []
    assert await keeper.take("dropped/stdout") == []


async def test_a_worker_does_not_wait_for_a_stopped_keeper(state: Path, pid: int, keeper: Keeper) -> None:
    script = (
        "context.ready()\naccepted, _ = context.listener.accept()\n"
        "for number in range(5000): context.hold(str(number), [0])\n"
        "accepted.sendall(b'done'); signal.pause()"
    )
    await fork(keeper, script, listen=state / "probe.sock")
    os.kill(pid, signal.SIGSTOP)
    try:
        with sockets.connect(state / "probe.sock", timeout=SECONDS) as connection:
            assert connection.recv(10) == b"done"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(await keeper.list_workers()) == 1


async def test_a_list_names_nobody_who_has_ended(state: Path, pid: int, keeper: Keeper) -> None:
    """Also when it was asked for before the keeper has heard of the end: it was stopped meanwhile."""
    gone_by_then, stays = await fork(keeper, SLEEP, "ends"), await fork(keeper, SLEEP, "stays")
    with sockets.connect(state / "keeper.sock", socket.SOCK_SEQPACKET, SECONDS) as connection:
        sockets.send(connection, b'{"op": "hello"}')
        sockets.receive(connection, 1 << 17)  # it has accepted it
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: process.state(pid) == "T", "the keeper to stand still")
            sockets.send(connection, b'{"op": "list"}')
            os.kill(gone_by_then.pid, signal.SIGKILL)
            until(lambda: gone(gone_by_then.pid), "the worker to die")
        finally:
            os.kill(pid, signal.SIGCONT)
        _, (listed,) = sockets.receive(connection, 1 << 17)
    with os.fdopen(listed, "rb") as file:
        file.seek(0)
        assert [one["pid"] for one in json.load(file)["workers"]] == [stays.pid]


async def test_a_list_may_be_longer_than_a_message(state: Path, keeper: Keeper) -> None:
    for number in range(1500):
        await keeper.hold(f"{number:04}/{'x' * 150}", [])
    await fork(keeper, SLEEP)
    assert [one.id for one in await keeper.list_workers()] == ["one"]
    assert [one.id for one in client.workers(state)] == ["one"]


# -- clients that misbehave


GARBAGE = [
    b"x",
    b"{}",
    b"[1, 2]",
    b'"text"',
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"op": "none"}',
    b'{"op": ["hello"]}',
    b'{"op": "take", "key": ["x"]}',
    b'{"op": "take"}',
    b'{"op": "hold"}',
    b'{"op": "fork"}',
    b'{"op": "fork", "kind": "probe", "id": "x", "listen": "a\\u0000b"}',
    b'{"op": "hello", "seq": ' + b"9" * 5000 + b"}",
    b"{" + b" " * 200_000 + b"}",
]


@pytest.mark.parametrize("data", GARBAGE, ids=[repr(data[:30]) for data in GARBAGE])
def test_garbage_does_no_harm(state: Path, pid: int, data: bytes) -> None:
    before = len(descriptors(pid))
    with sockets.connect(state / "keeper.sock", socket.SOCK_SEQPACKET, SECONDS) as connection:
        sockets.send(connection, data, [0, 1, 2])
        try:
            answer, _ = sockets.receive(connection, 1 << 17)
        except ConnectionResetError:
            answer = b""
        assert not answer or "error" in json.loads(answer)
    assert ask(state, op="hello")["pid"] == pid
    closes_all_but(pid, before)


def test_one_that_does_not_read_is_dropped_and_holds_up_nobody(state: Path, pid: int) -> None:
    with sockets.connect(state / "keeper.sock", socket.SOCK_SEQPACKET, SECONDS) as deaf:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                sockets.send(deaf, b'{"op": "hello"}')
        assert ask(state, op="hello")["pid"] == pid


async def test_a_watcher_that_is_gone_at_the_moment_of_an_exit(state: Path, pid: int, keeper: Keeper) -> None:
    """Both are seen by the keeper in one go: it was stopped meanwhile."""
    workers = [await fork(keeper, SLEEP, str(number)) for number in range(3)]
    lost = [await Keeper.connect(state) for _ in range(3)]
    os.kill(pid, signal.SIGSTOP)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    for one in lost:
        await one.aclose()
    os.kill(pid, signal.SIGCONT)
    assert {event.id async for event in _take(keeper.events(), 3)} == {"0", "1", "2"}
    assert await keeper.list_workers() == []


def test_only_its_owner_may_connect(state: Path, pid: int) -> None:
    assert (state / "keeper.sock").stat().st_mode & 0o777 == 0o600
    os.chmod(state, 0o711)
    os.chmod(state / "keeper.sock", 0o666)
    code = (
        "import os, socket, sys\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        "try:\n    s.send(b'{\"op\": \"hello\"}'); print(s.recv(100))\nexcept OSError:\n    print(b'')"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(state / "keeper.sock")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "b''"


# -- the daemon's side


async def test_a_lost_keeper_is_noticed_and_another_can_be_had(state: Path, pid: int, keeper: Keeper) -> None:
    survivor = await fork(keeper, SLEEP)
    os.kill(pid, signal.SIGKILL)
    assert [event async for event in keeper.events()] == []
    with pytest.raises(Unavailable):
        await keeper.list_workers()
    with pytest.raises(Unavailable, match="cannot reach the keeper"):
        await keeper.reconnect()
    client.ensure_running(state)
    await keeper.reconnect()
    assert await keeper.list_workers() == []
    assert not gone(survivor.pid)  # workers live on
    os.kill(survivor.pid, signal.SIGKILL)


async def test_requests_to_a_stopped_keeper_end_in_time(
    pid: int, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FORK_SECONDS", 0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="cannot have the keeper fork: no answer"):
            await fork(keeper, SLEEP)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(await keeper.list_workers()) == 1  # it was done all the same; the daemon finds it here


@pytest.mark.alone
async def test_what_a_fork_and_a_worker_cost(pid: int, keeper: Keeper, record_property: Callable[..., None]) -> None:
    times = []
    for number in range(20):
        began = time.perf_counter()
        await fork(keeper, SLEEP, str(number))
        times.append(time.perf_counter() - began)
    sizes = []
    for worker in await keeper.list_workers():
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
        sizes.append(next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")))
    record_property("fork_ms_p50", sorted(times)[10] * 1000)
    record_property("worker_pss_kib_p50", sorted(sizes)[10])
    print(f"fork {sorted(times)[10] * 1000:.2f} ms, worker {sorted(sizes)[10]} KiB PSS")
    assert sorted(times)[10] < 0.05
    assert sorted(sizes)[10] < 3 * 1024
