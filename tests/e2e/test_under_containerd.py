"""Our shim under a real containerd, Debian's: what ctr can do with a container, and what survives whose death."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import crash
from kit.containerd import IMAGE, RUNTIME, SECONDS, Containerd
from kit.node import node as holdfastd
from kit.node import until

from holdfast.linux import cgroup, files, mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto import task_pb2

FOREVER = "while :; do sleep 0.05; done"
OBEDIENT = f"trap 'exit 42' TERM; {FOREVER}"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Containerd]:
    """One containerd for all that leave it alone."""
    yield from running()


@pytest.fixture
def own() -> Iterator[Containerd]:
    """One that a test may kill."""
    yield from running()


def running(*, inject: bool = False) -> Iterator[Containerd]:
    node = Containerd(inject=inject)
    try:
        node.start()
        node.load()
        yield node
    finally:
        node.stop()


@pytest.fixture(autouse=True)
def nothing_is_left_of_the_shims(request: pytest.FixtureRequest) -> Iterator[None]:
    """When a test has removed its containers, containerd and we have nothing of them any more."""
    name = next((name for name in ("own", "daemon", "injected") if name in request.fixturenames), "")
    if not name:
        yield
        return
    node: Containerd = request.getfixturevalue(name)
    yield
    for task in node.tasks():
        node.ctr("task", "rm", "--force", task, check=False)
    for container in node.ctr("c", "ls", "-q").stdout.split():
        node.ctr("c", "rm", container)
    until(lambda: not leftovers(node), f"nothing to be left; there is {leftovers(node)}")


def leftovers(node: Containerd) -> list[str]:
    """Sockets, records, bundles, mounts, cgroups and processes of containers."""
    shims = [str(path) for path in node.shims.iterdir()] if node.shims.exists() else []
    bundles = [str(path) for path in (node.base / "state/io.containerd.runtime.v2.task").glob("*/*")]
    mounts = [entry.target for entry in mount.mounts_below(node.base)]
    return shims + bundles + mounts + sorted(cgroup.children(node.cgroup)) + [f"pid {pid}" for pid in node.processes()]


def status(node: Containerd, name: str) -> str:
    return node.tasks()[name][1]


def pid_of(node: Containerd, name: str) -> int:
    return node.tasks()[name][0]


def trapped(node: Containerd, name: str) -> int:
    """The pid of one that has set its trap: until then SIGTERM is nothing to the init of a pid namespace."""
    pid = pid_of(node, name)
    caught = lambda: re.search(rb"^SigCgt:\t(\w+)$", crash.read(pid, "status"), re.MULTILINE)  # noqa: E731
    until(lambda: (found := caught()) and int(found[1], 16) >> signal.SIGTERM - 1 & 1, "the trap to be set")
    return pid


def remove(node: Containerd, name: str) -> int:
    """Remove a task that has ended. Returns its exit code."""
    until(lambda: status(node, name) == "STOPPED", f"{name} to stop")
    said = node.ctr("task", "rm", name).stderr
    node.ctr("c", "rm", name)
    return int(said.split("non-zero exit code ")[1].split('"')[0]) if "exit code" in said else 0


# -- what ctr can do


@pytest.mark.parametrize("code", [0, 7, 255])
def test_run_says_what_the_container_says_and_ends_as_it_ends(daemon: Containerd, code: int) -> None:
    done = daemon.run("one", f"echo out; echo err >&2; exit {code}", "--rm")
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")
    assert daemon.tasks() == {}


def test_what_is_piped_into_run_ends_with_the_pipe(daemon: Containerd) -> None:
    done = daemon.run("one", "wc -c", "--rm", stdin="x" * 300_000)
    assert (done.returncode, done.stdout.strip()) == (0, "300000")


def test_output_is_complete_however_much_it_is(daemon: Containerd) -> None:
    done = daemon.run("one", "seq 200000", "--rm")
    assert done.stdout.split() == [str(number) for number in range(1, 200_001)]


def test_a_command_that_is_not_there_says_so_and_leaves_nothing(daemon: Containerd) -> None:
    done = subprocess.run(
        [*daemon.run_command("one", "", "--rm")[:-3], "no-such-program"],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "no-such-program" in done.stderr
    until(lambda: not leftovers(daemon), "nothing to be left")


def test_detached_exec_kill_delete(daemon: Containerd) -> None:
    assert daemon.run("one", OBEDIENT, "-d").returncode == 0
    pid, state = daemon.tasks()["one"]
    assert state == "RUNNING"
    assert process.state(pid) in ("R", "S")
    done = daemon.exec("one", "echo out; echo err >&2; cat; exit 5", stdin="in")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\nin", "err\n")
    assert daemon.ctr("task", "rm", "one", check=False).returncode != 0, "a task that runs cannot be deleted"
    assert str(pid) in daemon.ctr("task", "ps", "one").stdout
    daemon.ctr("task", "kill", "one")
    assert remove(daemon, "one") == 42
    assert process.start_time(pid) is None


def test_many_execs_at_once_have_their_own_codes(daemon: Containerd) -> None:
    daemon.run("one", FOREVER, "-d")
    where = ["--fifo-dir", str(daemon.base / "fifo")]
    commands = [
        daemon.command("task", "exec", *where, "--exec-id", f"e{code}", "one", "sh", "-c", f"exit {code}")
        for code in range(8)
    ]
    execs = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    assert [one.wait(timeout=SECONDS) for one in execs] == list(range(8))


def test_pause_and_resume_freeze_and_thaw(daemon: Containerd) -> None:
    daemon.run("one", FOREVER, "-d")
    pid = pid_of(daemon, "one")
    daemon.ctr("task", "pause", "one")
    assert status(daemon, "one") == "PAUSED"
    assert frozen(pid)
    daemon.ctr("task", "resume", "one")
    assert status(daemon, "one") == "RUNNING"
    assert not frozen(pid)
    daemon.ctr("task", "pause", "one")
    daemon.ctr("task", "kill", "-s", "SIGKILL", "one")
    assert remove(daemon, "one") == 137


def frozen(pid: int) -> bool:
    """Whether the kernel says so: freezer.state of v1, cgroup.freeze of v2."""
    found = cgroup.hierarchies()
    with open(f"/proc/{pid}/cgroup") as file:
        paths = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    if "freezer" in found:
        return (found["freezer"] / paths["freezer"].strip("/") / "freezer.state").read_text().strip() == "FROZEN"
    return (found[""] / paths[""].strip("/") / "cgroup.freeze").read_text().strip() == "1"


def test_metrics_are_those_of_the_container(daemon: Containerd) -> None:
    daemon.run("one", FOREVER, "-d", "--memory-limit", str(64 << 20))
    said = daemon.ctr("task", "metrics", "one").stdout
    values = dict(line.split(None, 1) for line in said.splitlines() if line.count(" ") and "METRIC" not in line)
    limit, usage = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    if "memory" not in cgroup.hierarchies():
        limit, usage = ("memory.usage_limit", "memory.usage")
    assert int(values[limit]) == 64 << 20
    assert 0 < int(values[usage]) < 64 << 20
    assert int(values["pids.current"]) in (1, 2)


def test_a_terminal_with_its_size_and_its_end(daemon: Containerd) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    wait = "until stty size | grep '{} 99'; do usleep 20000; done"  # ctr tells the size after the start
    script = f"{wait.format(33)}; read line; echo got $line; {wait.format(44)}; exit 4"
    command = daemon.run_command("one", script, "--rm", "-t")
    ctr = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True)
    os.close(follower)
    said = b""

    def hear(wanted: bytes) -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(leader, 65536)
        return wanted in said

    os.set_blocking(leader, False)
    try:
        until(lambda: hear(b"33 99"), "the size")
        os.write(leader, b"hello\r")
        until(lambda: hear(b"got hello"), "the answer")
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
        ctr.send_signal(signal.SIGWINCH)
        assert ctr.wait(timeout=SECONDS) == 4
    finally:
        ctr.kill()
        ctr.wait()
        os.close(leader)


def test_an_exec_with_a_terminal(daemon: Containerd) -> None:
    daemon.run("one", FOREVER, "-d")
    leader, follower = pty.openpty()
    command = daemon.command("task", "exec", "--fifo-dir", str(daemon.base / "fifo"), "-t", "--exec-id", "e", "one")
    ctr = subprocess.Popen([*command, "sh", "-c", "test -t 0 && test -t 1 && exit 6"], stdin=follower, stdout=follower)
    os.close(follower)
    try:
        assert ctr.wait(timeout=SECONDS) == 6
    finally:
        ctr.kill()
        ctr.wait()
        os.close(leader)


def test_output_to_a_file(daemon: Containerd) -> None:
    log = daemon.base / "logs/one.log"
    daemon.run("one", "echo out; echo err >&2", "-d", "--log-uri", f"file://{log}")
    assert remove(daemon, "one") == 0
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_output_to_a_program_which_is_run_again_when_it_dies(daemon: Containerd) -> None:
    program, taken, go = daemon.base / "logger", daemon.base / "taken", daemon.base / "go"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$# $1=$2 $CONTAINER_ID $CONTAINER_NAMESPACE" >> {taken}\n'
        "printf x >&5; exec 5>&-\n"
        f"[ -e {go} ] || {{ touch {go}; exit 1; }}\n"
        f"while read line; do echo out $line >> {taken}; done <&3\n"
        f"while read line; do echo err $line >> {taken}; done <&4\n"
        f"echo end >> {taken}\n"
    )
    program.chmod(0o755)
    uri = f"binary://{program}?key=two%20words"
    assert daemon.run("one", "echo a; echo b >&2; echo c", "-d", "--log-uri", uri).returncode == 0
    until(lambda: taken.read_text().endswith("end\n"), "the program to end")
    told = f"{program} ended with 1, and is run again"
    until(lambda: told in daemon.log(), "what a shim says to be in containerd's log")
    greeting = "2 key=two words one default"
    assert taken.read_text().splitlines() == [greeting, greeting, "out a", "out c", "err b", "end"]
    assert remove(daemon, "one") == 0


# -- events


def test_events_come_in_order_with_their_content(daemon: Containerd) -> None:
    with daemon.events() as heard:
        daemon.run("one", OBEDIENT, "-d")
        assert daemon.exec("one", "exit 5").returncode == 5
        daemon.ctr("task", "pause", "one")
        daemon.ctr("task", "resume", "one")
        daemon.ctr("task", "kill", "one")
        assert remove(daemon, "one") == 42
        found = until(lambda: tasks_of(heard.all()) if "/tasks/delete" in dict(heard.all()) else None, "the deletion")
    topics = [topic.removeprefix("/tasks/") for topic, _ in found]
    assert topics == ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"]
    created, started, _, execed, exec_exit, _, _, exited, deleted = (event for _, event in found)
    assert {event["container_id"] for _, event in found} == {"one"}
    assert created["pid"] == started["pid"] == exited["pid"] == deleted["pid"] > 1
    assert (exec_exit["id"], exec_exit["pid"], exec_exit["exit_status"]) == (execed["exec_id"], execed["pid"], 5)
    assert (exited["id"], exited["exit_status"], deleted["exit_status"]) == ("one", 42, 42)
    assert exited["exited_at"] == deleted["exited_at"]


def tasks_of(heard: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(topic, event) for topic, event in heard if topic.startswith("/tasks/")]


def test_a_container_that_is_over_at_once_has_started_before_it_exited(daemon: Containerd) -> None:
    with daemon.events() as heard:
        for number in range(5):
            assert daemon.run(f"quick-{number}", "exit 3", "--rm").returncode == 3
        until(lambda: [topic for topic, _ in heard.all()].count("/tasks/delete") == 5, "five deletions")
    topics = [topic.removeprefix("/tasks/") for topic, _ in tasks_of(heard.all())]
    assert topics == ["create", "start", "exit", "delete"] * 5


def test_running_out_of_memory_is_an_event(daemon: Containerd) -> None:
    with daemon.events() as heard:
        done = daemon.run("one", "x=a; while :; do x=$x$x$x; done", "--rm", "--memory-limit", str(16 << 20))
        assert done.returncode == 137
        until(lambda: "/tasks/delete" in dict(heard.all()), "the deletion")
    topics = [topic.removeprefix("/tasks/") for topic, _ in tasks_of(heard.all())]
    assert topics == ["create", "start", "oom", "exit", "delete"]


def test_a_child_out_of_memory_is_told_while_its_init_lives(daemon: Containerd) -> None:
    script = f"(x=a; while :; do x=$x$x$x; done); {FOREVER}"
    with daemon.events() as heard:
        daemon.run("one", script, "-d", "--memory-limit", str(16 << 20))
        until(lambda: "/tasks/oom" in dict(heard.all()), "the kill to be told")
        assert status(daemon, "one") == "RUNNING"
        daemon.ctr("task", "kill", "-s", "SIGKILL", "one")
        assert remove(daemon, "one") == 137
        until(lambda: "/tasks/delete" in dict(heard.all()), "the deletion")
    topics = [topic.removeprefix("/tasks/") for topic, _ in tasks_of(heard.all())]
    assert topics == ["create", "start", "oom", "exit", "delete"]


# -- a pod: containers that share a shim


def test_containers_of_a_group_share_a_shim_to_the_last(daemon: Containerd) -> None:
    group = ("--annotation", "io.containerd.runc.v2.group=pod")
    for name in ("one", "two", "three"):
        assert daemon.run(name, OBEDIENT, "-d", *group).returncode == 0
    shims = daemon.shim_pids()
    assert len(shims) == 1
    assert daemon.run("alone", OBEDIENT, "-d").returncode == 0
    assert len(daemon.shim_pids()) == 2
    for name in ("one", "two", "three"):
        daemon.ctr("task", "kill", name)
        assert remove(daemon, name) == 42
        assert process.start_time(shims[0]) is not None or name == "three"
        assert status(daemon, "alone") == "RUNNING"
    until(lambda: process.start_time(shims[0]) is None, "the shim to end with its last container")


def test_the_same_name_again_and_again(daemon: Containerd) -> None:
    """The end of one and the beginning of the next, which has the same directories, do not get in each other's way."""
    for code in range(1, 6):
        assert daemon.run("again", f"exit {code}", "--rm").returncode == code


@pytest.mark.parametrize("how", ["file", "which there is none of"])
def test_the_oci_runtime_can_be_chosen(daemon: Containerd, how: str) -> None:
    """By a file of options; containerd's own shim for runc has them in its message."""
    options = daemon.base / "options.toml"
    options.write_text('BinaryName = "runc"\n' if how == "file" else 'BinaryName = "no-such-runtime"\n')
    done = daemon.run("one", OBEDIENT, "-d", "--runtime-config-path", str(options))
    if how == "file":
        (group,) = daemon.shims.iterdir()
        assert json.loads((group / "shim.json").read_bytes())["runtime"]["name"] == "runc"
        assert (group / "oci/one/state.json").exists(), "runc has its state there"
        assert daemon.exec("one", "exit 5").returncode == 5
        daemon.ctr("task", "kill", "one")
        assert remove(daemon, "one") == 42
    else:
        assert done.returncode != 0
        assert "no-such-runtime" in done.stderr


# -- deaths


def test_a_restart_of_containerd_is_not_felt(own: Containerd) -> None:
    counter = own.base / "counted"
    own.run("counts", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done", "-d", "--log-uri", f"file://{counter}")
    own.run("obeys", OBEDIENT, "-d")
    before = own.tasks()
    own.kill()
    seen = len(counter.read_text())
    until(lambda: len(counter.read_text()) > seen, "it to go on while containerd is down")
    own.start()
    assert own.tasks() == before
    assert own.exec("obeys", "exit 5").returncode == 5
    own.ctr("task", "kill", "obeys")
    assert remove(own, "obeys") == 42
    numbers = counter.read_text().split()
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_an_exit_while_containerd_is_down_is_exact_and_announced(own: Containerd) -> None:
    own.run("one", OBEDIENT, "-d")
    pid = trapped(own, "one")
    own.kill()
    os.kill(pid, signal.SIGTERM)
    until(lambda: process.start_time(pid) is None, "its end")
    own.start()
    assert own.tasks() == {"one": (pid, "STOPPED")}
    until(lambda: any(is_exit(line, own) for line in own.log().splitlines()), "the exit to be announced")
    assert remove(own, "one") == 42


def is_exit(line: str, node: Containerd) -> bool:
    return "event forwarded" in line and "topic=/tasks/exit" in line


def test_a_killed_shim_takes_its_container_along_and_leaves_nothing(own: Containerd) -> None:
    with own.events() as heard:
        own.run("one", f"sleep 1000 & {FOREVER}", "-d")
        pid = pid_of(own, "one")
        own.exec("one", "sleep 1000 >/dev/null 2>&1 &")
        (shim,) = own.shim_pids()
        os.kill(shim, signal.SIGKILL)
        until(lambda: not own.tasks(), "the task to be removed")
        until(lambda: "/tasks/delete" in dict(heard.all()), "its deletion")
    exits = [event for topic, event in tasks_of(heard.all()) if topic == "/tasks/exit" and event["id"] == "one"]
    assert [(event["pid"], event["exit_status"]) for event in exits] == [(pid, 137)]
    own.ctr("c", "rm", "one")
    until(lambda: not leftovers(own), f"nothing to be left; there is {leftovers(own)}")


def test_a_killed_shim_of_a_paused_container(own: Containerd) -> None:
    own.run("one", FOREVER, "-d")
    own.ctr("task", "pause", "one")
    os.kill(own.shim_pids()[0], signal.SIGKILL)
    until(lambda: not own.tasks(), "the task to be removed")


def test_a_shim_killed_after_its_container_has_ended_takes_no_exit_code_along(own: Containerd) -> None:
    own.run("one", OBEDIENT, "-d")
    with own.events() as heard:
        own.ctr("task", "kill", "one")
        until(lambda: "/tasks/exit" in dict(heard.all()), "the exit")
        os.kill(own.shim_pids()[0], signal.SIGKILL)
        until(lambda: "/tasks/delete" in dict(heard.all()), "containerd's own word")
    codes = {event["exit_status"] for topic, event in tasks_of(heard.all()) if "exit_status" in event}
    assert codes == {42}
    until(lambda: not own.tasks(), "containerd to forget the task, of whose deletion it tells before")


def test_a_killed_shim_of_a_group_takes_all_of_it(own: Containerd) -> None:
    group = ("--annotation", "io.containerd.runc.v2.group=pod")
    for name in ("one", "two", "three"):
        own.run(name, FOREVER, "-d", *group)
    (shim,) = own.shim_pids()
    os.kill(shim, signal.SIGKILL)
    until(lambda: not own.tasks(), "the tasks to be removed")
    for name in ("one", "two", "three"):
        own.ctr("c", "rm", name)
    until(lambda: not leftovers(own), f"nothing to be left; there is {leftovers(own)}")


def test_a_shim_killed_while_containerd_is_down(own: Containerd) -> None:
    own.run("one", FOREVER, "-d")
    own.run("two", OBEDIENT, "-d")
    own.kill()
    shims = {json.loads(path.read_bytes())["pid"]: path for path in own.shims.glob("*/shim.json")}
    victim = next(pid for pid, path in shims.items() if (path.parent / "members/one").exists())
    os.kill(victim, signal.SIGKILL)
    own.start()
    until(lambda: list(own.tasks()) == ["two"], "the other one alone")
    own.ctr("task", "kill", "two")
    assert remove(own, "two") == 42


def test_a_shim_that_is_stopped_is_worked_around(own: Containerd) -> None:
    """A containerd that comes back gives it up, and calls our `delete` for each container; the last one ends it."""
    for name in ("one", "two"):
        own.run(name, FOREVER, "-d", "--annotation", "io.containerd.runc.v2.group=pod")
    (shim,) = own.shim_pids()
    own.kill()
    begun = process.start_time(shim)
    os.kill(shim, signal.SIGSTOP)
    own.start()
    until(lambda: not leftovers(own), "containerd to clean up", seconds=60)
    assert process.start_time(shim) != begun or process.state(shim) == "Z"
    for name in ("one", "two"):
        own.ctr("c", "rm", name)


def test_an_exit_that_nobody_has_seen_is_not_made_up(own: Containerd) -> None:
    """The shim is killed, the container then ends by itself, and containerd has it cleaned up when it is back."""
    own.run("one", OBEDIENT, "-d")
    pid = trapped(own, "one")
    (shim,) = own.shim_pids()
    own.kill()
    os.kill(shim, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    until(lambda: process.state(pid) in ("", "Z"), "the container to end")
    bundle = next((own.base / "state/io.containerd.runtime.v2.task").glob("*/one"))
    command = ["-namespace", "default", "-address", str(own.socket), "-publish-binary", "/usr/bin/containerd"]
    command = ["containerd-shim-holdfast-v1", *command, "-id", "one", "-bundle", str(bundle), "delete"]
    done = subprocess.run(command, env=own.environment, capture_output=True, cwd=bundle, timeout=SECONDS, check=True)
    reply = task_pb2.DeleteResponse.FromString(done.stdout)
    # What the kernel still knows of it depends on who has become its parent.
    assert (reply.pid, reply.exit_status) in ((pid, 42), (pid, 255))
    own.start()


@pytest.fixture(scope="module")
def injected() -> Iterator[Containerd]:
    yield from running(inject=True)


BEFORE = ("task", "mounted", "created", "init", "made", "starting", "started", "exit")
AFTER = ("recorded", "delete", "unmounted")  # the exit is in exit.json


@pytest.mark.parametrize("point", [*BEFORE, *AFTER])
def test_a_shim_killed_at_any_point_leaves_nothing(injected: Containerd, point: str) -> None:
    """The client is told that it failed, or had its answer before; either way all of it can be removed."""
    node, hit = injected, injected.inject / f"shim.{point}.hit"
    (injected.inject / f"shim.{point}").write_text("1")
    with subprocess.Popen(node.run_command("one", "exit 7", "--rm"), stderr=subprocess.DEVNULL) as ctr:
        stopped = int(until(lambda: read_if_there(hit), f"somebody to reach {point}"))
        until(lambda: process.state(stopped) == "T", "it to stand still")
        (shim,) = node.shim_pids()
        os.kill(shim, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)  # what waits there for us dies of its shim's death
        code = ctr.wait(timeout=SECONDS)
    hit.unlink()
    assert code != 0
    if point in AFTER:
        assert code in (1, 7), "an exit that was recorded is not replaced by another one"
    until(lambda: not node.tasks(), "the task to be removed")
    assert node.run("two", "exit 5", "--rm").returncode == 5


def read_if_there(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


# -- the program itself


PROGRAM = "containerd-shim-holdfast-v1"


def shim_program(node: Containerd, *arguments: str, here: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments], cwd=here, env=node.environment | more, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
    )  # fmt: skip


def test_what_the_program_says_of_itself(daemon: Containerd, tmp_path: Path) -> None:
    assert shim_program(daemon, "-v", here=tmp_path).stdout.startswith(PROGRAM)
    assert RUNTIME in shim_program(daemon, "--help", here=tmp_path).stdout
    wrong = shim_program(daemon, "-namespace", "a/b", "-id", "x", "start", here=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "'a/b' is no name" in wrong.stderr


def test_a_shim_that_was_begun_for_nobody_ends(daemon: Containerd) -> None:
    """As when containerd is killed, or gives up, while `start` runs: it removes the bundle and knows of no shim."""
    bundle = daemon.base / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    where = ["-namespace", "default", "-address", str(daemon.socket), "-id", "nobody"]
    done = shim_program(daemon, *where, "start", here=bundle)
    assert done.returncode == 0
    assert done.stdout == (bundle / "address").read_text() == f"unix://{next(daemon.shims.glob('*/shim.sock'))}"
    (shim,) = daemon.shim_pids()
    again = shim_program(daemon, *where, "start", here=bundle)
    assert (again.returncode, again.stdout, daemon.shim_pids()) == (0, done.stdout, [shim])
    files.remove_tree(bundle)
    until(lambda: process.start_time(shim) is None, "the shim to end")
    assert list(daemon.shims.iterdir()) == []


def test_a_place_too_long_for_a_socket_is_refused(daemon: Containerd, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    where = ["-namespace", "default", "-address", str(daemon.socket), "-id", "nobody", "start"]
    done = shim_program(daemon, *where, here=tmp_path, HOLDFAST_SHIM_STATE=str(long))
    assert done.returncode == 1
    assert "HOLDFAST_SHIM_STATE" in done.stderr
    assert not long.exists()


def test_delete_of_what_is_not_there_succeeds(daemon: Containerd, tmp_path: Path) -> None:
    """containerd asks for it after each clean end, too."""
    where = ["-namespace", "default", "-address", str(daemon.socket), "-id", "gone", "-bundle", str(tmp_path)]
    assert shim_program(daemon, *where, "delete", here=tmp_path).returncode == 0
    assert shim_program(daemon, *where, "delete", here=tmp_path).returncode == 0


# -- as a kubelet has it


@pytest.fixture
def pods() -> Iterator[Containerd]:
    node = Containerd(cri=True)
    try:
        node.start()
        node.load("k8s.io")
        yield node
    finally:
        node.stop()


def test_a_pod_over_cri_and_a_restart(pods: Containerd) -> None:
    """One shim for sandbox and containers; containerd is killed and finds all of it, and what has ended meanwhile."""
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", namespace="test", uid="uid"),
        log_directory=str(pods.base / "pod-logs"),
        linux=pb.LinuxPodSandboxConfig(cgroup_parent=pods.cgroup),
    )
    options = config.linux.security_context.namespace_options
    options.network = pb.NODE
    pod = pods.call("RunPodSandbox", pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    lives, ends = (start_over_cri(pods, pod, config, name) for name in ("lives", "ends"))
    assert len(pods.shim_pids()) == 1
    request = pb.ExecSyncRequest(container_id=lives, cmd=["sh", "-c", "echo out; exit 5"], timeout=10)
    done = pods.call("ExecSync", request)
    assert (done.exit_code, done.stdout) == (5, b"out\n")
    victim = over_cri(pods, ends, verbose=True).info["info"]
    pods.kill()
    os.kill(json.loads(victim)["pid"], signal.SIGTERM)
    pods.start()
    assert over_cri(pods, lives).status.state == pb.CONTAINER_RUNNING
    until(lambda: over_cri(pods, ends).status.state == pb.CONTAINER_EXITED, "the end that was not seen")
    assert over_cri(pods, ends).status.exit_code == 42
    log = pods.base / "pod-logs/lives.log"
    seen = log.stat().st_size
    until(lambda: log.stat().st_size > seen, "the log to go on")
    pods.call("StopContainer", pb.StopContainerRequest(container_id=lives, timeout=10))
    assert over_cri(pods, lives).status.exit_code == 42
    pods.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    pods.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    until(lambda: not leftovers(pods), f"nothing to be left; there is {leftovers(pods)}")


def start_over_cri(node: Containerd, pod: str, sandbox: pb.PodSandboxConfig, name: str) -> str:
    script = "trap 'exit 42' TERM; while :; do echo line; sleep 0.05; done"
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=IMAGE),
        command=["sh", "-c", script],
        log_path=f"{name}.log",
    )
    config.linux.security_context.namespace_options.network = pb.NODE
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
    made: str = node.call("CreateContainer", request).container_id
    node.call("StartContainer", pb.StartContainerRequest(container_id=made))
    return made


def over_cri(node: Containerd, container: str, *, verbose: bool = False) -> pb.ContainerStatusResponse:
    request = pb.ContainerStatusRequest(container_id=container, verbose=verbose)
    answer: pb.ContainerStatusResponse = node.call("ContainerStatus", request)
    return answer


def test_holdfast_too_can_have_it_as_a_foreign_shim() -> None:
    """The circle closes: the daemon drives by containerd's protocol what containerd drives."""
    program = str(Path(sys.executable).parent / PROGRAM)
    with holdfastd("foreign", runtimes={"foreign": {"shim": program}}) as holdfast:
        pod = holdfast.run_pod()
        one = holdfast.run(pod, OBEDIENT)
        assert holdfast.exec(one, ["sh", "-c", "exit 5"]).exit_code == 5
        holdfast.restart()
        assert holdfast.status(one).state == pb.CONTAINER_RUNNING
        os.kill(holdfast.pid(one), signal.SIGTERM)
        assert holdfast.exited(one).exit_code == 42
        holdfast.remove_pod(pod)
        until(lambda: not holdfast.leftovers(), f"nothing to be left, but there is {holdfast.leftovers()}")
