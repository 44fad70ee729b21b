"""Pods under a foreign shim, Debian's containerd-shim-runc-v2: all is as under ours, but its death is the pod's."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit.crash import recovered
from kit.node import Node, node, until
from test_shim_death import assert_nothing_lost_unmarked

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SHIM = "/usr/bin/containerd-shim-runc-v2"
SLEEP = ["/bin/sleep", "100000"]
GATE = "while ! test -e /data/{0}; do sleep 0.02; done; {1}"


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node("runc-v2", runtimes={"runc-v2": {"shim": SHIM}}) as one:
        yield one
        until(lambda: not shims(one), "all shims to be gone")
        assert not sockets(one), "a socket is left behind"


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


def shims(life: Node) -> dict[str, int]:
    """Foreign shims of this node, by pod: who they are says what they were started with."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        words = process.arguments(int(name))
        if str(life.state / "events.sock") in words and words[-1] not in ("start", "delete"):
            found[words[words.index("-id") + 1]] = int(name)
    return found


def sockets(life: Node) -> list[str]:
    """Where shims have listened, which is not below our directories."""
    told = {Path(path).read_text().removeprefix("unix://") for path in life.state.glob("pods/*/*/address")}
    return [path for path in told if os.path.exists(path)]


def mounts(life: Node) -> list[pb.Mount]:
    return [pb.Mount(host_path=str(life.base), container_path="/data")]


def state(life: Node, pod: str) -> int:
    return int(life.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state)


def lines(life: Node, container: str) -> list[str]:
    """What the log says, but for a record that is being written."""
    return [line.split(b" ", 3)[3].decode() for line in life.container_log(container).split(b"\n")[:-1]]


def kill(pid: int) -> None:
    assert pid > 0, "that would be ourselves"
    os.kill(pid, signal.SIGKILL)
    until(lambda: process.state(pid) in ("", "Z"), f"pid {pid} to be dead")


def test_a_life_under_it(life: Node, pod: str) -> None:
    one = life.run(pod, "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done")
    until(lambda: len(life.container_log(one).splitlines()) == 2, "its log")
    assert sorted(line.split(b" ", 1)[1] for line in life.container_log(one).splitlines()) == [
        b"stderr F err", b"stdout F out",
    ]  # fmt: skip
    answer = life.exec(one, ["/bin/sh", "-c", "echo hello; echo bad >&2; exit 3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"hello\n", b"bad\n", 3)
    assert [each.id for each in life.containers() if each.pod_sandbox_id == pod] == [one], "the sandbox is none"
    until(lambda: told_of(life, one) == ["TaskCreate", "TaskStart"], "the events of its beginning")
    assert "runc-v2" in [each.name for each in life.call("Status", pb.StatusRequest()).runtime_handlers]
    life.stop_container(one, 20)
    status = life.status(one)
    assert (status.exit_code, status.reason) == (7, "Error")
    until(lambda: told_of(life, one)[-2:] == ["TaskExit", "TaskDelete"], "the events of its end")


def told_of(life: Node, container: str) -> list[str]:
    """The kinds of events that the shim has told the daemon of, but for those of an exec."""
    return re.findall(rf"told of (\w+) of {container} \n", life.log())


def test_many_lines_are_all_in_the_log(life: Node, pod: str) -> None:
    one = life.run(pod, "n=0; while test $n -lt 20000; do n=$((n+1)); echo line $n; done; exit 4")
    assert life.exited(one).exit_code == 4
    until(lambda: life.container_log(one).endswith(b"line 20000\n"), "the end of the log")
    assert lines(life, one) == [f"line {number}" for number in range(1, 20001)]


def test_a_log_is_reopened(life: Node, pod: str) -> None:
    one = life.run(pod, GATE.format("reopened", "echo after; sleep 1000"), mounts=mounts(life))
    path = Path(life.status(one).log_path)
    path.rename(path.with_suffix(".1"))
    life.call("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=one))
    (life.base / "reopened").touch()
    until(lambda: b"after" in path.read_bytes(), "the new log")


def test_a_terminal(life: Node, pod: str) -> None:
    one = life.run(pod, "test -t 0 && test -t 1 && echo yes; exit 5", tty=True)
    assert life.exited(one).exit_code == 5
    until(lambda: b"yes" in life.container_log(one), "its words")


def test_oom_is_told(life: Node, pod: str) -> None:
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20))
    one = life.run(pod, "exec dd if=/dev/zero of=/dev/null bs=64M", linux=linux)
    status = life.exited(one)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_limits_are_changed(life: Node, pod: str) -> None:
    one = life.run(pod, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; sleep 1000")
    linux = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    life.call("UpdateContainerResources", pb.UpdateContainerResourcesRequest(container_id=one, linux=linux))
    limit = life.exec(one, ["cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]).stdout
    assert int(limit) == 64 << 20


def test_a_pid_namespace_is_shared(life: Node) -> None:
    linux = pb.LinuxContainerConfig()
    linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.NODE, pid=pb.POD))
    shared = life.run_pod(life.pod_config(pid=pb.POD))
    one, two = (life.run(shared, SLEEP, name, linux=linux) for name in ("one", "two"))
    spaces = {os.readlink(f"/proc/{life.pid(each)}/ns/pid") for each in (one, two)}
    assert len(spaces) == 1
    assert life.exec(one, ["cat", "/proc/1/comm"]).stdout == b"pause\n"
    life.remove_pod(shared)
    until(lambda: not life.leftovers(), "nothing to be left")


def test_it_lives_on_without_the_daemon(life: Node, pod: str) -> None:
    """Pids stay, logs go on, an exit meanwhile is exact, and exec works again."""
    one = life.run(pod, SLEEP, "one")
    two = life.run(pod, GATE.format("end", "echo bye; exit 42"), "two", mounts=mounts(life))
    said = life.run(pod, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done", "three")
    pids = life.pid(one), life.pid(two), shims(life)[pod]
    life.kill()
    (life.base / "end").touch()
    until(lambda: process.state(pids[1]) in ("", "Z"), "it to end")
    life.start()
    until(lambda: recovered(life), "recovery")
    status = life.exited(two)
    assert (status.exit_code, status.reason) == (42, "Error")
    until(lambda: lines(life, two) == ["bye"], "its last words")
    assert (life.pid(one), shims(life)[pod]) == (pids[0], pids[2])
    seen = len(lines(life, said))
    until(lambda: len(lines(life, said)) > seen + 10, "the log to go on")
    found = lines(life, said)
    assert found == [str(number) for number in range(1, len(found) + 1)]
    assert life.exec(one, ["echo", "x"]).stdout == b"x\n"
    until(lambda: life.cli("doctor", check=False).returncode == 0, "the doctor to be content")


@pytest.mark.parametrize("daemon", ["up", "down"])
def test_its_death_ends_the_pod(life: Node, daemon: str) -> None:
    pod = life.run_pod()
    one, over = life.run(pod, SLEEP, "one"), life.run(pod, "exit 9", "over")
    assert life.exited(over).exit_code == 9
    pid = life.pid(one)
    if daemon == "down":
        life.kill()
    began = time.monotonic()
    kill(shims(life)[pod])
    if daemon == "down":
        assert process.state(pid) not in ("", "Z")
        life.start()
        began = time.monotonic()
    until(lambda: state(life, pod) == pb.SANDBOX_NOTREADY, "the sandbox to be NOTREADY")
    assert life.exited(one).exit_code == 137
    print(f"ended {time.monotonic() - began:.3f} s after its shim (daemon {daemon})")
    until(lambda: process.state(pid) == "", "it to be reaped")
    assert life.status(over).exit_code == 9
    until(lambda: not any(pod in entry.target for entry in mount.mountinfo()), "its mounts to be gone")
    life.remove_pod(pod)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


def test_a_dead_logger_is_replaced(life: Node, pod: str) -> None:
    one = life.run(pod, "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.001; done")
    until(lambda: len(lines(life, one)) > 100, "some lines")
    kill(next(each.pid for each in keeper.workers(life.state) if (each.kind, each.id) == ("logger", one)))
    seen = len(lines(life, one))
    until(lambda: len(lines(life, one)) > seen + 100, "the log to go on")
    assert_nothing_lost_unmarked(lines(life, one))


def test_the_end_of_the_sandbox_container_is_told(life: Node, pod: str) -> None:
    kill(until(lambda: [int(each) for each in open_pids(life, pod)])[0])
    until(lambda: state(life, pod) == pb.SANDBOX_NOTREADY, "the sandbox to be NOTREADY")
    with pytest.raises(grpc.RpcError, match="not ready"):
        life.create(pod, life.container_config(SLEEP))


def open_pids(life: Node, pod: str) -> list[str]:
    path = Path("/sys/fs/cgroup/memory", life.cgroup.strip("/"), pod, pod, "cgroup.procs")
    return path.read_text().split()
