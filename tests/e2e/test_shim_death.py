"""A shim's death is not a container's death: SIGKILL of the shim, with the daemon up, down, and the keeper killed too.

F09 and F10. The table of RECOVERY.md says what comes of each; every cell of it is played.
"""

import concurrent.futures
import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from kit.crash import Inject
from kit.node import Node, node, until

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SLEEP = ["/bin/sleep", "100000"]
GATE = "while ! test -e /data/{0}; do sleep 0.02; done; {1}"
ROUNDS = 30


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


@dataclass
class Pod:
    """A pod whose shim is to be killed."""

    node: Node
    id: str

    @property
    def shim(self) -> int:
        """The pid of its living shim, 0 while it has none."""
        found = [one.pid for one in keeper.workers(self.node.state) if (one.kind, one.id) == ("shim", self.id)]
        return found[0] if found and process.state(found[0]) not in ("", "Z") else 0

    def mount(self) -> list[pb.Mount]:
        return [pb.Mount(host_path=str(self.node.base), container_path="/data")]

    def run(self, script: str | list[str], name: str = "main", **more: object) -> str:
        return self.node.run(self.id, script, name, mounts=self.mount(), **more)

    def ready(self) -> bool:
        status = self.node.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)).status
        return bool(status.state == pb.SANDBOX_READY)


@pytest.fixture
def pod(life: Node) -> Iterator[Pod]:
    made = Pod(life, life.run_pod())
    yield made
    life.remove_pod(made.id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


def kill_shim(pod: Pod) -> None:
    """SIGKILL, with the daemon up; returns when another shim serves the pod."""
    before = until(lambda: pod.shim, "its shim")
    os.kill(before, signal.SIGKILL)
    adopted(pod, before)


def kill_shim_while_down(pod: Pod) -> None:
    before = until(lambda: pod.shim, "its shim")
    pod.node.kill()
    os.kill(before, signal.SIGKILL)
    until(lambda: process.state(before) in ("", "Z"), "the shim to be dead")
    pod.node.start()
    adopted(pod, before)


def kill_shim_and_keeper(pod: Pod) -> None:
    before, parent = until(lambda: pod.shim, "its shim"), until(lambda: keeper_pid(pod.node), "the keeper")
    for pid in (parent, before):
        os.kill(pid, signal.SIGKILL)
    until(lambda: keeper_pid(pod.node) not in (0, parent), "another keeper")
    adopted(pod, before)


WAYS: dict[str, Callable[[Pod], None]] = {
    "up": kill_shim,
    "down": kill_shim_while_down,
    "keeper": kill_shim_and_keeper,
}


def adopted(pod: Pod, before: int) -> None:
    until(lambda: pod.shim not in (0, before), "another shim to adopt the pod")
    until(pod.ready, "the pod to be ready")


def keeper_pid(node: Node) -> int:
    answer = keeper._ask(node.state / keeper.SOCKET, "hello")
    return int(answer["pid"]) if answer else 0


def opens(node: Node, name: str) -> None:
    (node.base / name).touch()


def lines(node: Node, container_id: str) -> list[str]:
    """What the log says, but for a record that is being written."""
    records = node.container_log(container_id).decode().split("\n")[:-1]
    return [record.split(" ", 3)[3] for record in records]


# -- workloads: each is started, its shim is killed by `kill`, and everything about it has to be right afterwards


def sleeping(pod: Pod, kill: Callable[[Pod], None]) -> None:
    one = pod.run(SLEEP)
    before = (pod.node.pid(one), pod.node.status(one))
    kill(pod)
    assert (pod.node.pid(one), pod.node.status(one)) == before
    assert process.state(before[0]) not in ("", "Z")
    again = until(lambda: executed(pod.node, one, ["/bin/echo", "again"]), "exec to work again")
    assert again.stdout == b"again\n"
    pod.node.stop_container(one, 0)
    assert pod.node.exited(one).exit_code == 137


def executed(node: Node, container_id: str, command: list[str]) -> pb.ExecSyncResponse | None:
    try:
        return node.exec(container_id, command)
    except grpc.RpcError as exc:
        assert exc.code() is grpc.StatusCode.UNAVAILABLE, exc
        return None


def exiting(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """It ends after the shim's death, some time before or after its adoption."""
    one = pod.run("sleep 1; exit 42")
    kill(pod)
    status = pod.node.exited(one)
    assert (status.exit_code, status.reason) == (42, "Error")
    assert 900_000_000 < status.finished_at - status.started_at < 20_000_000_000


def printing(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """A thousand numbered lines a second, and then some: each is in the log, or the log says what is not."""
    name = f"gate-{pod.id}"
    one = pod.run(f"n=0; while ! test -e /data/{name}; do n=$((n+1)); echo line $n; done; echo last $n; exit 3")
    until(lambda: len(lines(pod.node, one)) > 100, "some lines")
    kill(pod)
    seen = len(lines(pod.node, one))
    until(lambda: len(lines(pod.node, one)) > seen + 100, "the log to go on")
    opens(pod.node, name)
    assert pod.node.exited(one).exit_code == 3
    until(lambda: lines(pod.node, one)[-1].startswith("last"), "the end of the log")
    assert_nothing_lost_unmarked(lines(pod.node, one))


def assert_nothing_lost_unmarked(found: list[str]) -> None:
    expected, lost = 1, 0
    for line in found:
        if marker := re.match(r"holdfast: lost \d+ log lines \((\d+) bytes\)", line):
            lost += int(marker[1])
            continue
        word, number = line.split()
        if word == "last":
            assert expected == int(number) + 1 or lost
            continue
        if int(number) != expected:
            missing = sum(len(f"line {n}\n") for n in range(expected, int(number)))
            assert 0 <= missing <= lost, f"from {expected} to {number} with {lost} bytes marked"
        expected = int(number) + 1


def two_containers(pod: Pod, kill: Callable[[Pod], None]) -> None:
    name = f"gate-{pod.id}"
    first, second = pod.run(SLEEP, "first"), pod.run(GATE.format(name, "exit 7"), "second")
    created = pod.node.create(pod.id, pod.node.container_config("exit 5", "created"))
    pid = pod.node.pid(first)
    kill(pod)
    opens(pod.node, name)
    assert pod.node.exited(second).exit_code == 7
    assert pod.node.pid(first) == pid
    pod.node.start_container(created)
    assert pod.node.exited(created).exit_code == 5


def on_a_terminal(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """The keeper holds the master. When it is killed too the kernel hangs the terminal up, and says so by SIGHUP."""
    name = f"gate-{pod.id}"
    script = f"echo before; while ! test -e /data/{name}; do sleep 0.02; done; test -t 1 && echo after; exit 6"
    one = pod.run(script, tty=True)
    until(lambda: b"before" in pod.node.container_log(one), "the first words")
    kill(pod)
    opens(pod.node, name)
    status = pod.node.exited(one)
    if kill is kill_shim_and_keeper:
        assert status.exit_code in (6, 129)
    else:
        assert status.exit_code == 6
        until(lambda: b"after" in pod.node.container_log(one), "the last words")


def oom(pod: Pod, kill: Callable[[Pod], None]) -> None:
    name = f"gate-{pod.id}"
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20))
    one = pod.run(GATE.format(name, "exec dd if=/dev/zero of=/dev/null bs=64M"), linux=linux)
    kill(pod)
    opens(pod.node, name)
    status = pod.node.exited(one)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def being_stopped(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """It takes its time after SIGTERM, and ends by itself: neither killed nor forgotten."""
    name = f"gate-{pod.id}"
    one = pod.run(f'trap "{GATE.format(name, "exit 9")}" TERM; echo ready; while :; do sleep 0.02; done')
    until(lambda: b"ready" in pod.node.container_log(one), "the trap")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(pod.node.stop_container, one, 60)
        until(lambda: f"to container {one}" in pod.node.log(), "SIGTERM to be sent")
        kill(pod)
        opens(pod.node, name)
        assert pod.node.exited(one).exit_code == 9
        if kill is kill_shim_while_down:
            assert stop.exception() is not None
        else:
            stop.result()


def being_executed_in(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """Whoever waits for an exec is told that its end is lost; the process is ended, the container is not."""
    one = pod.run(SLEEP)
    pid = pod.node.pid(one)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.node.exec, one, ["/bin/sleep", "5000"], 60)
        until(lambda: running(5000, pid), "the exec to run")
        kill(pod)
        error = answer.exception()
    assert isinstance(error, grpc.RpcError)
    if kill is not kill_shim_while_down:  # when the client has to be told by the daemon
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    until(lambda: not running(5000, pid), "what was executed to be ended")
    assert until(lambda: executed(pod.node, one, ["/bin/echo", "x"]), "exec to work again").stdout == b"x\n"
    assert pod.node.pid(one) == pid


def running(seconds: int, init: int) -> bool:
    """Whether `sleep <seconds>` runs in the container of this init."""
    space = os.readlink(f"/proc/{init}/ns/pid")
    word = f"sleep\0{seconds}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word in (entry / "cmdline").read_bytes() and os.readlink(entry / "ns" / "pid") == space:
                return True
        except OSError:
            continue
    return False


def being_created(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """The client is told that it is not known how far it got; then it is as it was before, and is started anew."""
    inject, name = Inject(pod.node), f"gate-{pod.id}"
    config = pod.node.container_config(GATE.format(name, "exit 5"), mounts=pod.mount())
    one = pod.node.create(pod.id, config)
    inject.arm("shim.created", 1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answer = pool.submit(pod.node.start_container, one)
        until(lambda: inject.hit("shim.created"), "the OCI runtime to have made it")
        pool.submit(goes_on, inject, "shim.created", pod.shim)
        kill(pod)
        error = answer.exception()
    assert isinstance(error, grpc.RpcError)
    if kill is not kill_shim_while_down:  # when the client has to be told by the daemon
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    until(lambda: pod.node.status(one).state == pb.CONTAINER_CREATED, "it to be as it was before")
    pod.node.start_container(one)
    opens(pod.node, name)
    assert pod.node.exited(one).exit_code == 5


def goes_on(inject: Inject, point: str, shim: int) -> None:
    """Whoever stands there goes on when this shim is dead, which it may find out then."""
    who = inject.hit(point)
    until(lambda: process.state(shim) in ("", "Z"), "the shim to be dead")
    inject.disarm(point)
    with contextlib.suppress(ProcessLookupError):  # it was the shim itself
        inject.go_on(who)


@contextlib.contextmanager
def standing_at(node: Node, point: str, begin: Callable[[], None]) -> Iterator[None]:
    """For the time being whoever gets there once this has begun stands still."""
    inject = Inject(node)
    inject.arm(point, 1)
    try:
        begin()
        who = until(lambda: inject.hit(point), f"somebody to get to {point}")
        yield
        inject.go_on(who)
    finally:
        inject.disarm(point)


def being_deleted(pod: Pod, kill: Callable[[Pod], None]) -> None:
    """Its exit stays what it was, and what the shim had begun to delete is deleted by another one."""
    inject, name = Inject(pod.node), f"gate-{pod.id}"
    one = pod.run(GATE.format(name, "exit 8"))
    inject.arm("shim.delete", 1)
    opens(pod.node, name)
    before = pod.node.exited(one)
    assert before.exit_code == 8
    until(lambda: inject.hit("shim.delete"), "the shim to delete it")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(goes_on, inject, "shim.delete", pod.shim)
        kill(pod)
    assert pod.node.status(one) == before
    pod.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    assert not [entry for entry in mount.mountinfo() if one in entry.target]


WORKLOADS = (
    sleeping, exiting, printing, two_containers, on_a_terminal, oom, being_executed_in, being_created, being_stopped,
    being_deleted,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.__name__)
def test_f09_f10_a_shims_death_is_not_a_containers_death(
    pod: Pod, work: Callable[[Pod, Callable[[Pod], None]], None], way: str
) -> None:
    work(pod, WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_f09_a_shared_pid_namespace_lives_on(life: Node, way: str) -> None:
    shared = Pod(life, life.run_pod(life.pod_config(pid=pb.POD)))
    linux = pb.LinuxContainerConfig()
    linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.NODE, pid=pb.POD))
    one = shared.run(SLEEP, "one", linux=linux)
    pid = life.pid(one)
    space = os.readlink(f"/proc/{pid}/ns/pid")
    WAYS[way](shared)
    assert life.pid(one) == pid
    two = shared.run(SLEEP, "two", linux=linux)
    assert os.readlink(f"/proc/{life.pid(two)}/ns/pid") == space
    life.remove_pod(shared.id)
    assert not life.leftovers()


def test_f09_an_exit_while_shim_and_daemon_are_dead_is_exact(life: Node, pod: Pod) -> None:
    one = pod.run(GATE.format(f"gate-{pod.id}", "exit 42"))
    pid, shim = life.pid(one), pod.shim
    started = process.start_time(pid)
    life.kill()
    os.kill(shim, signal.SIGKILL)
    until(lambda: process.state(shim) in ("", "Z"), "the shim to be dead")
    opens(life, f"gate-{pod.id}")
    until(lambda: process.start_time(pid) != started, "it to end")
    before = time.time_ns()
    life.start()
    status = life.exited(one)
    assert (status.exit_code, status.reason) == (42, "Error")
    assert status.finished_at < before


@pytest.mark.parametrize("when", ["shim.pinned", "shim.adopt"])
def test_f09_an_exit_while_its_pod_is_adopted_is_exact(life: Node, pod: Pod, when: str) -> None:
    """It was alive when it was looked at first, and is reaped before it is looked at again."""
    one = pod.run(GATE.format(f"gate-{pod.id}", "exit 42"))
    pid = life.pid(one)
    started = process.start_time(pid)
    with standing_at(life, when, lambda: os.kill(pod.shim, signal.SIGKILL)):
        opens(life, f"gate-{pod.id}")
        until(lambda: process.start_time(pid) != started, "it to be reaped")
    assert life.exited(one).exit_code == 42


def test_f09_whatever_a_process_calls_itself(life: Node, pod: Pod) -> None:
    """Its name is bytes, which need be no text."""
    name = "/tmp/$(printf '\\377')"
    script = f"printf '#!/bin/sh\n{GATE.format(f'gate-{pod.id}', 'exit 42')}' > {name}; chmod +x {name}; exec {name}"
    one = pod.run(script)
    until(lambda: Path(f"/proc/{life.pid(one)}/comm").read_bytes() == b"\xff\n", "its name")
    kill_shim(pod)
    shim = pod.shim
    opens(life, f"gate-{pod.id}")
    assert life.exited(one).exit_code == 42
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    assert pod.shim == shim, "it has not heard of the end"


def test_f09_what_an_init_leaves_while_its_shim_is_dead_is_ended(life: Node) -> None:
    """In a pid namespace that it shares nobody ends with it."""
    shared = Pod(life, life.run_pod(life.pod_config(pid=pb.POD)))
    linux = pb.LinuxContainerConfig()
    linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.NODE, pid=pb.POD))
    script = f"sleep 100000 & {GATE.format(f'gate-{shared.id}', 'exit 7')}"
    one = shared.run(script, linux=linux)
    pid = life.pid(one)
    started, others = process.start_time(pid), until(lambda: process.children(pid), "the first of its children")
    with standing_at(life, "adopt.begin", lambda: os.kill(shared.shim, signal.SIGKILL)):
        opens(life, f"gate-{shared.id}")
        until(lambda: process.start_time(pid) != started, "it to end")
        assert process.state(others[0]) not in ("", "Z")
    assert life.exited(one).exit_code == 7
    until(lambda: process.state(others[0]) in ("", "Z"), "what it has left to be ended")
    life.remove_pod(shared.id)
    assert not life.leftovers()


def test_f09_a_shim_whose_keeper_died_before_it(life: Node, pod: Pod) -> None:
    """It has lived on. Its containers are nobody's children when it dies: only the kernel knows how they end."""
    one = pod.run(GATE.format(f"gate-{pod.id}", "exit 42"))
    shim, parent = pod.shim, keeper_pid(life)
    os.kill(parent, signal.SIGKILL)
    until(lambda: keeper_pid(life) not in (0, parent), "another keeper")
    assert life.exec(one, ["/bin/echo", "here"]).stdout == b"here\n"
    os.kill(shim, signal.SIGKILL)
    until(lambda: pod.shim, "another shim")
    opens(life, f"gate-{pod.id}")
    assert life.exited(one).exit_code == 42


def test_f09_random_kills_leave_one_shim_a_pod(life: Node) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "7"))
    choose = random.Random(seed)
    pods = [Pod(life, life.run_pod()) for _ in range(3)]
    pids = {one: life.pid(one) for one in [pod.run(SLEEP) for pod in pods]}
    killed = {0}
    for _ in range(ROUNDS):
        one = choose.choice(pods)
        before = until(lambda one=one: one.shim not in killed and one.shim, "a shim")
        killed.add(before)
        os.kill(before, signal.SIGKILL)
        if choose.random() < 0.5:  # or kill the next one while this one is being replaced
            adopted(one, before)
    whole = lambda pod: pod.shim not in killed and pod.ready()  # noqa: E731
    until(lambda: all(map(whole, pods)), f"each pod to have a shim again (seed {seed})")
    assert {one: life.pid(one) for one in pids} == pids
    shims = [worker.id for worker in keeper.workers(life.state) if worker.kind == "shim"]
    assert sorted(shims) == sorted(pod.id for pod in pods)
    for one in pods:
        life.remove_pod(one.id)
    until(lambda: not life.leftovers(), "nothing to be left")
