"""F10, F11, F25: the exit of a container is exact, whoever was not there to see it."""

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

AT_ONCE = 16
EXITS: dict[str, tuple[int, str]] = {
    "exit 0": (0, "Completed"),
    "exit 42": (42, "Error"),
    "SIGTERM": (143, "Error"),
    "SIGKILL": (137, "Error"),
    "SIGSEGV": (139, "Error"),
    "OOM": (137, "OOMKilled"),
}
MEMORY = 32 << 20
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])


@pytest.fixture(scope="module", params=["crun", pytest.param("runc", marks=pytest.mark.soak)])
def life(request: pytest.FixtureRequest) -> Iterator[Node]:
    with node(request.param) as one:
        yield one


def kill_shim(life: Node, pod_id: str) -> None:
    shim = next(worker for worker in keeper.workers(life.state) if worker.id == pod_id)
    os.kill(shim.pid, signal.SIGKILL)
    until(lambda: process.start_time(shim.pid) != shim.start_time, "the shim to be reaped")


class Victim:
    """A container with a memory limit that ends on demand, as it is told."""

    def __init__(self, life: Node, pod_id: str, how: str) -> None:
        self.how = how
        gate = f"gate-{time.time_ns()}"
        self._gate = life.base / gate
        action = {"OOM": "exec dd if=/dev/zero of=/dev/null bs=256M"}.get(how, how)
        waits = f"while ! test -e /data/{gate}; do sleep 0.01; done; {action}"
        self.id = life.run(
            pod_id,
            ["/bin/sleep", "1000"] if how.startswith("SIG") else waits,
            linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=MEMORY)),
            mounts=[pb.Mount(host_path=str(life.base), container_path="/data")],
            stop_signal=pb.SIGCONT,  # which changes nothing: a stop that waits for its deadline
            pid=pb.NODE,  # as process 1 of its namespace it could not be ended by its own signals
        )
        self.pid = life.pid(self.id)
        self._started = process.start_time(self.pid)

    def end(self) -> tuple[int, int]:
        """Between which two times it has ended."""
        before = time.time_ns()
        if self.how.startswith("SIG"):
            os.kill(self.pid, getattr(signal, self.how))
        self._gate.touch()
        until(lambda: process.start_time(self.pid) != self._started, "it to end")
        self._gate.unlink()
        return before, time.time_ns()


def daemon_down(life: Node, pod_id: str, victim: Victim) -> tuple[int, int]:
    life.kill()
    between = victim.end()
    life.start()
    return between


def shim_killed(life: Node, pod_id: str, victim: Victim) -> tuple[int, int]:
    kill_shim(life, pod_id)
    return victim.end()


def both(life: Node, pod_id: str, victim: Victim) -> tuple[int, int]:
    life.kill()
    kill_shim(life, pod_id)
    between = victim.end()
    life.start()
    return between


def both_shim_killed_first(life: Node, pod_id: str, victim: Victim) -> tuple[int, int]:
    """The shim goes, and the daemon before it has had time to do anything about it."""
    shim = next(worker.pid for worker in keeper.workers(life.state) if worker.id == pod_id)
    os.kill(shim, signal.SIGKILL)
    life.kill()
    between = victim.end()
    life.start()
    return between


def in_the_middle_of_a_stop(life: Node, pod_id: str, victim: Victim) -> tuple[int, int]:
    """The daemon dies after the stop's signal was sent, and the container before the deadline."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(life.stop_container, victim.id, 60)
        until(lambda: f"to container {victim.id}" in life.log(), "the signal to be sent")
        life.kill()
        with pytest.raises(grpc.RpcError):
            stop.result()
    between = victim.end()
    life.start()
    return between


CIRCUMSTANCES: list[Callable[[Node, str, Victim], tuple[int, int]]] = [
    daemon_down,
    shim_killed,
    both,
    both_shim_killed_first,
    in_the_middle_of_a_stop,
]


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("how", EXITS)
def test_f10_an_exit_is_exact(
    life: Node, pod: str, how: str, circumstance: Callable[[Node, str, Victim], tuple[int, int]]
) -> None:
    victim = Victim(life, pod, how)
    before, after = circumstance(life, pod, victim)
    status = life.exited(victim.id)
    assert (status.exit_code, status.reason) == EXITS[how]
    assert before <= status.finished_at <= after
    life.restart()
    assert life.status(victim.id) == status


def nobody_left(life: Node, pod_id: str) -> None:
    """SIGKILL daemon, keeper and shim: the container is an orphan of the machine's own init."""
    life.kill()
    found = keeper._ask(life.state / keeper.SOCKET, "hello")
    shims = [worker.pid for worker in keeper.workers(life.state) if worker.id == pod_id]
    assert found is not None and len(shims) == 1
    for pid in (int(found["pid"]), *shims):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: process.state(pid) in ("", "Z"), "its end")


def stops(life: Node, container_id: str) -> list[dict[str, object]]:
    shown = life.cli("events", "--since", "0", "--no-follow", "--output", "json").stdout
    found = [json.loads(line) for line in shown.splitlines()]
    return [one for one in found if (one.get("id"), one["kind"]) == (container_id, "stopped")]


@pytest.mark.parametrize("how", ["exit 0", "exit 42", "SIGKILL"])
def test_f10_an_exit_that_nobody_saw_is_told_once_as_lost(life: Node, pod: str, how: str) -> None:
    victim = Victim(life, pod, how)
    nobody_left(life, pod)
    before, _ = victim.end()
    life.start()
    status = life.exited(victim.id)
    assert (status.exit_code, status.reason) == (255, "ExitStatusLost")
    assert "ended while neither its shim nor the keeper was there to see how" in status.message
    assert before <= status.finished_at <= time.time_ns()
    assert [(one["exit_code"], one["reason"]) for one in stops(life, victim.id)] == [(255, "ExitStatusLost")]
    life.restart()
    until(lambda: recovered(life), "recovery")
    assert life.status(victim.id) == status
    assert stops(life, victim.id) == []


@pytest.mark.parametrize("how", EXITS)
def test_f10_an_exit_after_all_had_died_is_exact(life: Node, pod: str, how: str) -> None:
    """Nobody is its parent any more; a pidfd that was opened before tells the end all the same (Linux 6.15)."""
    victim = Victim(life, pod, how)
    nobody_left(life, pod)
    life.start()
    until(lambda: recovered(life), "recovery")
    before, after = victim.end()
    status = life.exited(victim.id)
    exact = EXITS[how] if KERNEL >= (6, 15) else (255, "ExitStatusLost")
    assert (status.exit_code, status.reason) == exact
    assert before <= status.finished_at <= after + 10 * 10**9, "when the next shim has heard of it"


@pytest.mark.parametrize("shim", ["its shim", "the keeper"])
def test_f11_a_child_killed_for_memory_is_counted_and_is_not_how_the_container_ended(
    life: Node, pod: str, shim: str
) -> None:
    """The child is OOM-killed, and the container ends well, told to, later: COMPLETED, or as SIGTERM has it."""
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=MEMORY))
    script = "dd if=/dev/zero of=/dev/null bs=256M; n=$?; trap 'exit 0' TERM; echo $n; while :; do sleep 0.05; done"
    container_id = life.run(pod, script, linux=linux)
    until(lambda: b" 137\n" in life.container_log(container_id), "the child to be killed")
    if shim == "the keeper":
        kill_shim(life, pod)
    life.stop_container(container_id, 20)
    status = life.status(container_id)
    assert (status.exit_code, status.reason) == (0, "Completed")


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_f11_many_oom_kills_at_once_are_all_told(life: Node, pod: str, count: int) -> None:
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=MEMORY))
    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M"]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        ids = list(pool.map(lambda number: life.run(pod, command, f"oom-{number}", linux=linux), range(count)))
    found = [life.exited(container_id) for container_id in ids]
    assert {(status.exit_code, status.reason) for status in found} == {(137, "OOMKilled")}


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_f25_an_exit_that_comes_at_once_is_not_lost(life: Node, count: int) -> None:
    def once(number: int) -> tuple[int, str]:
        container_id = life.run(pods[number % len(pods)], ["/bin/true"], f"true-{number}")
        status = life.exited(container_id)
        assert 0 < status.created_at <= status.started_at <= status.finished_at
        life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
        return status.exit_code, status.reason

    pods = [life.run_pod() for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(once, range(count))) == {(0, "Completed")}
    for pod_id in pods:
        life.remove_pod(pod_id)
    assert not life.leftovers()


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_f25_execs_that_race_with_the_end_of_their_container(life: Node, pod: str, count: int) -> None:
    """Each exec tells the truth: its own end, or that it could not be. The container's exit is exact all the same."""
    for number in range(count):
        container_id = life.run(pod, "sleep 0.1; exit 6", f"race-{number}")
        over = threading.Event()

        def execute(container_id: str = container_id, over: threading.Event = over) -> set[int]:
            codes = set()
            while not over.is_set():
                try:
                    codes.add(life.exec(container_id, ["/bin/true"]).exit_code)
                except grpc.RpcError as exc:
                    assert exc.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, exc.details()
                    over.wait(0.01)
            return codes

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            execs = [pool.submit(execute) for _ in range(4)]
            assert life.exited(container_id).exit_code == 6
            over.set()
            assert set().union(*(one.result() for one in execs)) <= {0, 137}


def test_f11_a_stop_is_not_made_an_oom_by_an_earlier_kill_of_a_child() -> None:
    with node() as life:
        linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=32 << 20))
        script = "dd if=/dev/zero of=/dev/null bs=256M; echo $?; while :; do sleep 0.05; done"
        one = life.run(life.run_pod(), script, linux=linux)
        until(lambda: b" 137\n" in life.container_log(one), "the child to be killed")
        life.stop_container(one, 0)
        status = life.status(one)
        assert (status.exit_code, status.reason) == (137, "Error")
        assert life.info(one)["oomKills"] >= 1
