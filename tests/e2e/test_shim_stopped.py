"""A shim under SIGSTOP, in the situations in which test_shim_death kills it: its own pod is slow, and nobody else.

While it stands still its containers are listed as they are, by the kernel's word; what returns late is taken for what
it is. The table of RECOVERY.md says what comes of each; `make soak` plays every cell of it.
"""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.crash import Inject, recovered
from kit.hung import stopped
from kit.node import Node, node, until
from test_shim_death import (
    GATE,
    SLEEP,
    WORKLOADS,
    Pod,
    assert_nothing_lost_unmarked,
    executed,
    keeper_pid,
    lines,
    opens,
    running,
)
from test_shim_death import WAYS as DEATHS

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb

WAYS = ("up", "down", "keeper")
STOP_SECONDS = 10.0  # a StopContainer that waits for a shim takes thirty


@dataclass
class Hang:
    """What makes the pod's shim stand still, as a context, in one of the ways."""

    pod: "Pod"
    way: str

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        return hanging(self.pod, self.way)


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


@pytest.fixture
def pod(life: Node) -> Iterator[Pod]:
    made = Pod(life, life.run_pod())
    yield made
    life.remove_pod(made.id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


@contextlib.contextmanager
def hanging(pod: Pod, way: str) -> Iterator[None]:
    """The pod's shim stands still, and the daemon is started meanwhile or its keeper is dead. Others are served.

    The keeper dies first: a shim that stands still when its parent dies is sent SIGCONT by the kernel (setpgid(2)).
    """
    node, shim = pod.node, pod.shim
    if way == "keeper":
        before = keeper_pid(node)
        os.kill(before, signal.SIGKILL)
        until(lambda: keeper_pid(node) not in (0, before), "another keeper")
    with stopped(shim):
        if way == "down":
            node.restart()
            until(lambda: recovered(node), "recovery", 60)
        yield
        bystander = Pod(node, node.run_pod())
        assert node.exited(bystander.run("exit 3")).exit_code == 3
        node.remove_pod(bystander.id)
        assert process.state(shim) == "T", "nobody has taken it for dead"


def sleeping(pod: Pod, hang: Hang) -> None:
    one, other = pod.run(SLEEP), pod.run(SLEEP, "other")
    before = pod.node.pid(one), pod.node.status(one)
    with hang():
        assert (pod.node.pid(one), pod.node.status(one)) == before
        began = time.monotonic()
        pod.node.stop_container(other, 0)
        assert time.monotonic() - began < STOP_SECONDS
        assert pod.node.status(other).exit_code == 137
    assert until(lambda: executed(pod.node, one, ["/bin/echo", "again"]), "exec to work again").stdout == b"again\n"
    assert (pod.node.pid(one), pod.node.status(one)) == before
    assert pod.node.status(other).exit_code == 137


def exiting(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(GATE.format(name, "exit 42"))
    with hang():
        opens(pod.node, name)
        status = pod.node.exited(one)
        assert (status.exit_code, status.reason) == (42, "Error")
    cleaned(pod, one)
    assert pod.node.status(one) == status


def printing(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(f"n=0; while ! test -e /data/{name}; do n=$((n+1)); echo line $n; done; echo last $n; exit 3")
    until(lambda: len(lines(pod.node, one)) > 100, "some lines")
    with hang():
        assert pod.node.status(one).state == pb.CONTAINER_RUNNING
        seen = len(lines(pod.node, one))
    until(lambda: len(lines(pod.node, one)) > seen + 100, "the log to go on")
    opens(pod.node, name)
    assert pod.node.exited(one).exit_code == 3
    until(lambda: lines(pod.node, one)[-1].startswith("last"), "the end of the log")
    found = lines(pod.node, one)
    assert not any(line.startswith("holdfast:") for line in found), "nothing is lost with one that only waits"
    assert_nothing_lost_unmarked(found)


def two_containers(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    first, second = pod.run(SLEEP, "first"), pod.run(GATE.format(name, "exit 7"), "second")
    created = pod.node.create(pod.id, pod.node.container_config("exit 5", "created"))
    pid = pod.node.pid(first)
    with hang():
        opens(pod.node, name)
        assert pod.node.exited(second).exit_code == 7
        assert pod.node.status(created).state == pb.CONTAINER_CREATED
        assert pod.node.pid(first) == pid
    pod.node.start_container(created)
    assert pod.node.exited(created).exit_code == 5
    assert (pod.node.pid(first), pod.node.status(second).exit_code) == (pid, 7)


def on_a_terminal(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(
        f"echo before; while ! test -e /data/{name}; do sleep 0.02; done; test -t 1 && echo after; exit 6", tty=True
    )
    until(lambda: b"before" in pod.node.container_log(one), "the first words")
    with hang():
        opens(pod.node, name)
        assert pod.node.exited(one).exit_code == 6
    until(lambda: b"after" in pod.node.container_log(one), "the last words")


def oom(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20))
    one = pod.run(GATE.format(name, "exec dd if=/dev/zero of=/dev/null bs=64M"), linux=linux)
    with hang():
        opens(pod.node, name)
        status = pod.node.exited(one)
        assert (status.exit_code, status.reason) == (137, "OOMKilled")
    cleaned(pod, one)
    assert pod.node.status(one) == status


def being_executed_in(pod: Pod, hang: Hang) -> None:
    """Whoever waits for an exec waits on, and is told; if the daemon has gone meanwhile, the process is ended."""
    name = f"gate-{pod.id}"
    one = pod.run(SLEEP)
    pid = pod.node.pid(one)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.node.exec, one, ["/bin/sh", "-c", f"sleep 1; echo {name}; exec sleep 5001"], 60)
        until(lambda: running(1, pid) or running(5001, pid), "the exec to run")
        with hang():
            until(lambda: running(5001, pid), "it to go on")
            if hang.way != "down":
                kill_sleep(5001, pid)
        error = answer.exception(60)
    if hang.way == "down":
        assert isinstance(error, grpc.RpcError)
        until(lambda: not running(5001, pid), "what was executed to be ended")
    else:
        assert (answer.result().exit_code, answer.result().stdout) == (137, f"{name}\n".encode())
    assert until(lambda: executed(pod.node, one, ["/bin/echo", "x"]), "exec to work again").stdout == b"x\n"
    assert pod.node.pid(one) == pid


def kill_sleep(seconds: int, init: int) -> None:
    """End what the exec waits for, in the container of this init."""
    space = os.readlink(f"/proc/{init}/ns/pid")
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if process.arguments(int(name))[1:] == [str(seconds)] and os.readlink(f"/proc/{name}/ns/pid") == space:
                os.kill(int(name), signal.SIGKILL)


def being_created(pod: Pod, hang: Hang) -> None:
    """What the shim has begun it finishes later; then it runs, or is as it was, and in either case it is there once."""
    inject, name = Inject(pod.node), f"gate-{pod.id}"
    one = pod.node.create(pod.id, pod.node.container_config(GATE.format(name, "exit 5"), mounts=pod.mount()))
    inject.arm("shim.created", 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.node.start_container, one)
        until(lambda: inject.hit("shim.created"), "the OCI runtime to have made it")
        with hang():
            inject.go_on(inject.hit("shim.created"))
            inject.disarm("shim.created")
            assert pod.node.status(one).state == pb.CONTAINER_CREATED
        error = answer.exception(60)
    assert (error is not None) == (hang.way == "down")
    if hang.way == "down":
        until(lambda: started(pod, one), "it to be as it was, and to be started anew")
    assert pod.node.status(one).state == pb.CONTAINER_RUNNING
    assert [each.id for each in pod.node.containers() if each.pod_sandbox_id == pod.id] == [one]
    opens(pod.node, name)
    assert pod.node.exited(one).exit_code == 5


def started(pod: Pod, container: str) -> bool:
    try:
        pod.node.start_container(container)
    except grpc.RpcError as exc:
        assert exc.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), exc
        return False
    return True


def being_stopped(pod: Pod, hang: Hang) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(f'trap "{GATE.format(name, "exit 9")}" TERM; echo ready; while :; do sleep 0.02; done')
    until(lambda: b"ready" in pod.node.container_log(one), "the trap")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(pod.node.stop_container, one, 60)
        until(lambda: f"to container {one}" in pod.node.log(), "SIGTERM to be sent")
        with hang():
            opens(pod.node, name)
            assert pod.node.exited(one).exit_code == 9
        assert stop.exception(60) is None or isinstance(stop.exception(), grpc.RpcError)
    assert pod.node.status(one).exit_code == 9


def being_deleted(pod: Pod, hang: Hang) -> None:
    inject, name = Inject(pod.node), f"gate-{pod.id}"
    one = pod.run(GATE.format(name, "exit 8"))
    inject.arm("shim.delete", 1)
    opens(pod.node, name)
    before = pod.node.exited(one)
    assert before.exit_code == 8
    until(lambda: inject.hit("shim.delete"), "the shim to delete it")
    with hang():
        inject.go_on(inject.hit("shim.delete"))
        inject.disarm("shim.delete")
        assert pod.node.status(one) == before
    pod.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    assert not [entry for entry in mount.mountinfo() if one in entry.target]


def cleaned(pod: Pod, container: str) -> None:
    """Once the shim goes on, nothing is left of the task."""
    until(lambda: not any(container in entry.target for entry in mount.mountinfo()), "its rootfs to be unmounted")


SITUATIONS = (
    sleeping, exiting, printing, two_containers, on_a_terminal, oom, being_executed_in, being_created, being_stopped,
    being_deleted,
)  # fmt: skip


def cells() -> list[Any]:
    """In CI each situation, and some of them in the ways that take longest: with a restart of daemon or keeper."""
    found = []
    for number, (situation, way) in enumerate(itertools.product(SITUATIONS, WAYS)):
        marks = [pytest.mark.soak] if way != "up" and number % 4 else []
        found.append(pytest.param(situation, way, id=f"{situation.__name__}-{way}", marks=marks))
    return found


@pytest.mark.parametrize(("situation", "way"), cells())
def test_f05_a_shim_that_stands_still(pod: Pod, situation: Callable[[Pod, Hang], None], way: str) -> None:
    situation(pod, Hang(pod, way))


def test_every_situation_of_the_table_is_played() -> None:
    text = (Path(__file__).parents[2] / "RECOVERY.md").read_text().splitlines()
    head = next(number for number, line in enumerate(text) if line.startswith("| situation |"))
    rows = [line.strip("|").split("|") for line in itertools.takewhile(lambda line: line.startswith("|"), text[head:])]
    assert len(rows[0]) == 1 + len(DEATHS) + len(WAYS)
    assert all(len(row) == len(rows[0]) and all(map(str.strip, row)) for row in rows)
    named = [row[0].strip().replace(" ", "_") for row in rows[2:]]
    assert named == [one.__name__ for one in SITUATIONS] == [one.__name__ for one in WORKLOADS]
