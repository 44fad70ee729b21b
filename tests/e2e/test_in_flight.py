"""Operations cut off by the daemon's death: each is finished or undone by its recorded intent, and so reported."""

import concurrent.futures
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from kit.crash import Inject, recovered
from kit.node import Node, node, until

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub
from holdfast.runtime import keeper

TRUE_SECONDS = 10.0  # it takes 0.02, and 30 for who waits for the deadline of the stop


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


@dataclass
class Target:
    """A pod with a container in the state that the operation needs."""

    pod: str
    container: str


Prepare = Callable[[Node], Target]
Act = Callable[[Node, Target], object]


def nothing(life: Node) -> Target:
    return Target("", "")


def a_pod(life: Node) -> Target:
    return Target(life.run_pod(), "")


def created(life: Node) -> Target:
    pod = life.run_pod()
    return Target(pod, life.create(pod, life.container_config("sleep 1000")))


def running(life: Node) -> Target:
    pod = life.run_pod()
    return Target(pod, life.run(pod, "trap 'exit 5' TERM; while :; do sleep 0.02; done"))


def exited(life: Node) -> Target:
    pod = life.run_pod()
    target = Target(pod, life.run(pod, "exit 4"))
    life.exited(target.container)
    return target


OPERATIONS: dict[str, tuple[Prepare, Act]] = {
    "run": (nothing, lambda life, _: life.run_pod()),
    "create": (a_pod, lambda life, target: life.create(target.pod, life.container_config("exit 0"))),
    "start": (created, lambda life, target: life.start_container(target.container)),
    "stop": (running, lambda life, target: life.stop_container(target.container, 20)),
    "remove": (
        exited,
        lambda life, target: life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=target.container)),
    ),
    "exec": (running, lambda life, target: life.exec(target.container, ["/bin/sleep", "1000"])),
    "stop pod": (
        running,
        lambda life, target: life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=target.pod)),
    ),
    "remove pod": (running, lambda life, target: life.remove_pod(target.pod)),
}


@dataclass(frozen=True)
class Cut:
    """Where an operation is cut off; what is reported of whom, and what is there at last."""

    operation: str
    point: str
    reported: str  # "KIND BEFORE -> AFTER: WHY", the beginning of it
    pods: list[int]
    containers: list[int]


READY, NOTREADY = int(pb.SANDBOX_READY), int(pb.SANDBOX_NOTREADY)
CREATED, RUNNING, EXITED = int(pb.CONTAINER_CREATED), int(pb.CONTAINER_RUNNING), int(pb.CONTAINER_EXITED)
RAN = "pod NOTREADY -> undone: run under way: it was never acknowledged"
CUTS = [
    Cut("run", "run.recorded", RAN, [], []),
    Cut("run", "run.shm", RAN, [], []),
    Cut("run", "run.shim", RAN, [], []),
    Cut("run", "run.ready", "pod READY -> READY: its shim is alive", [READY], []),
    Cut("create", "create.recorded", "container CREATED -> undone: create under way", [READY], []),
    Cut("create", "create.bundle", "container CREATED -> undone: create under way", [READY], []),
    Cut("start", "start.recorded", "container CREATED -> CREATED: start under way", [READY], [CREATED]),
    Cut("start", "start.created", "container CREATED -> CREATED: start under way", [READY], [CREATED]),
    Cut("start", "start.started", "container CREATED -> RUNNING: start under way", [READY], [RUNNING]),
    Cut("stop", "stop.recorded", "container RUNNING -> RUNNING: stop under way", [READY], [EXITED]),
    Cut("stop", "stop.signalled", "container RUNNING -> ", [READY], [EXITED]),
    Cut("remove", "remove.recorded", "container EXITED -> removing: remove under way", [READY], []),
    Cut("remove", "remove.bundle", "container EXITED -> removing: remove under way", [READY], []),
    Cut("exec", "exec.started", "container RUNNING -> RUNNING: the shim reports it running", [READY], [RUNNING]),
    Cut("stop pod", "stopp.recorded", "pod READY -> stopping: stop under way", [NOTREADY], [EXITED]),
    Cut("stop pod", "sandbox.shim", "pod READY -> stopping: stop under way", [NOTREADY], [EXITED]),
    Cut("stop pod", "sandbox.unpinned", "pod READY -> stopping: stop under way", [NOTREADY], [EXITED]),
    Cut("remove pod", "rmp.recorded", "pod NOTREADY -> removing: remove under way", [], []),
    Cut("remove pod", "rmp.containers", "pod NOTREADY -> removing: remove under way", [], []),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.operation} at {cut.point}")
def test_what_was_under_way_is_finished_or_undone_and_reported(life: Node, cut: Cut) -> None:
    prepare, act = OPERATIONS[cut.operation]
    inject, target = Inject(life), prepare(life)
    inject.arm(cut.point, 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(act, life, target)
        pid = until(lambda: inject.hit(cut.point), f"{cut.point} to be passed")
        assert inject.strike(pid, "daemon", set())
        with pytest.raises(grpc.RpcError):
            call.result()
    inject.disarm(cut.point)
    life.start()
    until(lambda: recovered(life), "recovery")
    until(lambda: [int(pod.state) for pod in life.pods()] == cut.pods, "the pods to be as expected")
    until(lambda: [int(one.state) for one in life.containers()] == cut.containers, "the containers to be as expected")
    shown = life.cli("recovery", "--output", "json").stdout
    findings = json.loads(shown)["findings"]
    told = [f"{one['kind']} {one['before']} -> {one['after']}: {one['why']}" for one in findings]
    assert any(line.startswith(cut.reported) for line in told), told
    for pod in life.pods():
        life.remove_pod(pod.id)
    until(lambda: not life.leftovers(), "nothing to be left")


@pytest.mark.parametrize("shim", ["its shim lives", "its shim is killed"])
@pytest.mark.parametrize("when", ["stop.signalled", "soon", "late", "over"])
def test_f07_a_stop_across_a_restart_ends_with_the_truth(life: Node, when: str, shim: str) -> None:
    """The container takes 1 s to end after SIGTERM; the daemon dies before, in, and after that."""
    pod = life.run_pod()
    script = "trap 'touch /told; sleep 1; exit 5' TERM; touch /ready; while :; do sleep 0.02; done"
    container_id = life.run(pod, script)
    until(lambda: life.exec(container_id, ["/bin/test", "-e", "/ready"]).exit_code == 0, "the trap")
    pid = life.pid(container_id)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(life.stop_container, container_id, 30)
        until(lambda: f"sent signal 15 to container {container_id}" in life.log(), "SIGTERM")
        if when == "over":
            until(lambda: process.state(pid) in ("Z", ""), "its end")
        elif when != "stop.signalled":
            began = time.monotonic()
            until(lambda: time.monotonic() - began > {"soon": 0.3, "late": 0.9}[when], "a while")
        life.kill()
        stop.exception()
    if shim == "its shim is killed":
        worker = next(worker for worker in keeper.workers(life.state) if worker.id == pod)
        os.kill(worker.pid, signal.SIGKILL)
    life.start()
    until(lambda: process.state(pid) in ("Z", ""), "its end")
    over = time.monotonic()
    status = life.exited(container_id)
    assert time.monotonic() - over < TRUE_SECONDS
    assert (status.exit_code, status.reason) == (5, "Error")
    life.remove_pod(pod)
    assert not life.leftovers()


COUNTS = "trap 'echo told >> /told' TERM; > /told; while :; do sleep 0.02; done"


def cut_off(life: Node, point: str, act: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
    """SIGKILL the daemon when `act` has brought it to a crash point; do `then`, and start it again."""
    inject = Inject(life)
    inject.arm(point, 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(act)
        assert inject.strike(until(lambda: inject.hit(point), f"{point} to be passed"), "daemon", set())
        with pytest.raises(grpc.RpcError):
            call.result()
    inject.disarm(point)
    then()
    life.start()


def told(pid: int) -> int:
    """How many signals a container that runs COUNTS has had; -1 while it cannot count yet."""
    found = Path(f"/proc/{pid}/root/told")
    return found.read_text().count("told") if found.exists() else -1


@pytest.mark.parametrize(
    ("point", "most"), [("stop.recorded", 1), ("stop.signalled", 2), ("stop.noted", 1)], ids=lambda value: str(value)
)
def test_f07_the_stop_signal_is_sent_once_across_restarts_and_never_lost(life: Node, point: str, most: int) -> None:
    """A daemon that dies between the signal and the note of it is the only one whose successor sends another."""
    pod = life.run_pod()
    container_id = life.run(pod, COUNTS)
    pid = life.pid(container_id)
    until(lambda: told(pid) == 0, "the trap")
    cut_off(life, point, lambda: life.stop_container(container_id, 60))
    until(lambda: told(pid) > 0, "the signal")
    for _ in range(2):
        until(lambda: recovered(life), "recovery")
        life.restart()
    until(lambda: recovered(life), "recovery")
    assert 1 <= told(pid) <= most and process.state(pid) not in ("Z", "")
    began = time.monotonic()
    life.stop_container(container_id, 0)
    assert life.status(container_id).exit_code == 137
    assert time.monotonic() - began < 30, "its deadline has been made shorter"
    life.remove_pod(pod)


@pytest.mark.parametrize("point", ["stop.recorded", "stop.signalled", "stop.noted"])
def test_f07_the_deadline_of_a_stop_outlives_the_daemon(life: Node, point: str) -> None:
    pod = life.run_pod()
    container_id = life.run(pod, COUNTS)
    pid = life.pid(container_id)
    until(lambda: told(pid) == 0, "the trap")
    began = time.time_ns()
    cut_off(life, point, lambda: life.stop_container(container_id, 4))
    status = life.exited(container_id)
    assert (status.exit_code, status.reason) == (137, "Error")
    assert status.finished_at - began >= 4_000_000_000
    life.remove_pod(pod)


def test_f07_sigkill_is_sent_once(life: Node) -> None:
    """The init of a pid namespace is not gone before all who are in it have been reaped, whoever has to do that."""
    pod = life.run_pod()
    container_id = life.run(pod, "while :; do sleep 0.02; done")
    pid = life.pid(container_id)
    guest = ["nsenter", f"--pid=/proc/{pid}/ns/pid", "--no-fork", "sh", "-c", "sleep 1000 & echo; exec sleep 1000"]

    def kills() -> int:
        return life.log().count(f"sent signal 9 to container {container_id}")

    with subprocess.Popen(guest, stdout=subprocess.PIPE) as guardian:
        try:
            assert guardian.stdout is not None and guardian.stdout.readline()
            stop = pb.StopContainerRequest(container_id=container_id, timeout=0)
            answer = RuntimeServiceStub(life.channel).StopContainer.future(stop)
            until(lambda: kills() == 1, "SIGKILL")
            assert answer.cancel(), "it was answered"
            for _ in range(2):
                life.restart()
                until(lambda: recovered(life), "recovery")
                assert life.status(container_id).state == pb.CONTAINER_RUNNING
        finally:
            guardian.kill()
    assert (life.exited(container_id).exit_code, kills()) == (137, 1)
    life.remove_pod(pod)


def test_f31_memory_of_a_pod_outlives_the_daemon_and_ends_with_the_pod(life: Node) -> None:
    """The pod's tmpfs is found by what is mounted, with what is in it, and is gone with the pod."""
    pod = life.run_pod()
    first = life.run(pod, "echo kept > /dev/shm/file; sleep 1000", "first")
    until(lambda: life.exec(first, ["/bin/cat", "/dev/shm/file"]).stdout == b"kept\n", "the file")

    def mounted() -> list[str]:
        return [entry.target for entry in mount.mountinfo() if str(life.base) in entry.target and "shm" in entry.target]

    before = mounted()
    assert before
    for _ in range(2):
        life.restart()
        until(lambda: recovered(life), "recovery")
        assert sorted(mounted()) == sorted(before)
    second = life.run(pod, ["/bin/cat", "/dev/shm/file"], "second")
    assert life.exited(second).exit_code == 0
    assert b"kept" in life.container_log(second)
    life.kill()
    life.start()
    life.remove_pod(pod)
    assert not mounted() and not life.leftovers()
