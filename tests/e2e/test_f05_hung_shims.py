"""F05: shims that hang. Nobody waits for them but their own pods, and even those are stopped through the kernel."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit import invariants
from kit.crash import recovered
from kit.hung import served_in_time, shim_of, stopped
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb

AT_ONCE = 8
SETTLED_SECONDS = 25.0  # after SIGCONT; in three, on a machine that does nothing else
OTHERS_SECONDS = 20.0  # a call that waits for a hung shim takes thirty
TRAP = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def pods(life: Node) -> Iterator[tuple[str, str]]:
    """One whose shim will hang, and another."""
    sick, well = life.run_pod(), life.run_pod()
    yield sick, well
    for pod_id in (sick, well):
        life.remove_pod(pod_id)
    assert not life.leftovers()


def state(life: Node, container_id: str) -> int:
    """As the list has it, which asks nobody."""
    return next(int(one.state) for one in life.containers() if one.id == container_id)


@pytest.mark.parametrize("sick", [1, pytest.param(50, marks=pytest.mark.soak)])
def test_f05_the_api_is_served_and_everything_is_listed_whatever_shims_do(sick: int) -> None:
    with node() as one, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        configs = [one.pod_config() for _ in range(sick + 3)]
        ids = list(pool.map(one.run_pod, configs))
        running = dict(zip(ids, pool.map(lambda pod_id: one.run(pod_id, TRAP), ids), strict=True))
        created = {pod_id: one.create(pod_id, one.container_config("exit 4", "created")) for pod_id in ids}
        hung, well = ids[:sick], ids[sick:]
        doomed = one.run(hung[0], TRAP, "doomed")
        before = {container.id: container.state for container in one.containers()}
        with stopped(*(shim_of(one, pod_id) for pod_id in hung)):
            for _ in served_in_time(one):
                assert {container.id: container.state for container in one.containers()} == before
                assert {pod.state for pod in one.pods()} == {pb.SANDBOX_READY}
            began = time.monotonic()
            assert one.exec(running[well[0]], ["/bin/echo", "hello"]).stdout == b"hello\n"
            one.start_container(created[well[0]])
            assert one.exited(created[well[0]]).exit_code == 4
            one.stop_container(running[well[1]], 10)
            another = one.run_pod()
            one.remove_pod(another)
            assert time.monotonic() - began < OTHERS_SECONDS
            # The pod of a hung shim: its container is stopped, and told apart, by the kernel alone.
            one.stop_container(doomed, 10)
            status = one.status(doomed)
            assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 3, "Error")
            assert state(one, created[hung[0]]) == pb.CONTAINER_CREATED
        began = time.monotonic()
        one.start_container(created[hung[0]])
        assert one.exited(created[hung[0]]).exit_code == 4
        for pod_id in hung:
            assert one.exec(running[pod_id], ["/bin/true"]).exit_code == 0
        assert time.monotonic() - began < SETTLED_SECONDS + 0.2 * sick
        until(lambda: recovered(one), "recovery")
        over = {doomed, running[well[1]], created[well[0]], created[hung[0]]}
        assert {container.id: container.state for container in one.containers()} == {
            container_id: pb.CONTAINER_EXITED if container_id in over else state
            for container_id, state in before.items()
        }
        invariants.check(one)
        list(pool.map(one.remove_pod, ids))
        assert not one.leftovers()


def test_f05_a_shim_that_hangs_while_the_daemon_is_up_delays_only_itself(life: Node, pods: tuple[str, str]) -> None:
    sick, well = pods
    running = life.run(sick, TRAP)
    with stopped(shim_of(life, sick)):
        began = time.monotonic()
        for number in range(3):
            assert life.exited(life.run(well, f"exit {number}", f"one-{number}")).exit_code == number
        assert len(life.containers()) == 4
        with pytest.raises(grpc.RpcError) as failure:
            life.exec(running, ["/bin/true"], seconds=1)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED and running in failure.value.details()
        assert time.monotonic() - began < OTHERS_SECONDS
    until(lambda: life.works(running), "the shim to answer again", SETTLED_SECONDS)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [("exit 7", 7, "Error"), ("exit 0", 0, "Completed"), ("oom", 137, "OOMKilled"), ("kill", 137, "Error")],
)
def test_f05_f11_an_exit_under_a_stopped_shim_is_exact(
    life: Node, pods: tuple[str, str], how: str, code: int, reason: str, restart: bool
) -> None:
    sick, _ = pods
    gate = life.base / "gate"
    gate.unlink(missing_ok=True)
    action = {"oom": "exec dd if=/dev/zero of=/dev/null bs=64M", "kill": "while :; do sleep 1; done"}.get(how, how)
    container_id = life.run(
        sick,
        f"while ! test -e /data/gate; do sleep 0.01; done; {action}",
        mounts=[pb.Mount(host_path=str(life.base), container_path="/data")],
        linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20)),
    )
    pid = life.pid(container_id)
    with stopped(shim_of(life, sick)):
        if restart:
            life.kill()
        before = time.time_ns()
        gate.touch()
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        until(lambda: process.state(pid) == "Z", "it to end")
        if restart:
            life.start()
        status = life.exited(container_id)
        assert (status.exit_code, status.reason) == (code, reason)
        assert before <= status.finished_at <= time.time_ns()
    assert life.status(container_id) == status
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))


def test_f05_a_pod_is_stopped_and_removed_though_its_shim_hangs(life: Node) -> None:
    pod_id = life.run_pod()
    running = life.run(pod_id, TRAP)
    exited = life.run(pod_id, "exit 5", "exited")
    life.exited(exited)
    pid, shim = life.pid(running), shim_of(life, pod_id)
    begun = {one: process.start_time(one) for one in (pid, shim)}

    def there() -> list[str]:
        return [process.state(one) for one in begun if process.start_time(one) == begun[one]]

    with stopped(shim):
        life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), 60)
        assert set(there()) <= {"", "Z"}
        until(lambda: not there(), "both to be reaped")
        assert (life.status(running).exit_code, life.status(exited).exit_code) == (137, 5)
    life.remove_pod(pod_id)
    assert not life.leftovers()


@pytest.mark.parametrize("variant", ["accepts and hangs up", "accepts and is silent", "is gone"])
def test_f05_a_socket_that_leads_nowhere(life: Node, pods: tuple[str, str], variant: str) -> None:
    sick, _ = pods
    kept = life.run(sick, TRAP, "kept")
    ended = life.run(sick, TRAP, "ended")
    path = life.state / "pods" / sick / "shim.sock"
    life.kill()
    path.rename(path.with_name("aside"))
    with contextlib.ExitStack() as stack:
        if variant != "is gone":
            stack.enter_context(impostor(path, hangs_up=variant == "accepts and hangs up"))
        life.start()
        assert state(life, kept) == state(life, ended) == pb.CONTAINER_RUNNING
        life.stop_container(ended, 10)
        assert life.status(ended).exit_code == 3
        assert state(life, kept) == pb.CONTAINER_RUNNING
    path.unlink(missing_ok=True)
    path.with_name("aside").rename(path)
    until(lambda: life.works(kept), "the shim to be reached again", SETTLED_SECONDS)
    life.stop_container(kept, 10)
    assert life.status(kept).exit_code == 3


@contextlib.contextmanager
def impostor(path: Path, *, hangs_up: bool) -> Iterator[None]:
    """Somebody else's socket in the place of a shim's."""
    with socket.socket(socket.AF_UNIX) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        listener.listen()
        accepted: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    accepted.append(one)
                    if hangs_up:
                        one.close()

        pool.submit(serve)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for one in accepted:
                one.close()
            os.close(here)
