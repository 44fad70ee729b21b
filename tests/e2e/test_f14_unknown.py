"""F14, F06: what cannot be told is UNKNOWN for a while, with its reason and its times, and resolves by itself."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit import hung
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb

SETTLED_SECONDS = 10.0


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


class Unknown:
    """A container that ended while no daemon was there, its exit file damaged, its shim, who knows, stopped."""

    def __init__(self, life: Node) -> None:
        self.life = life
        self.gate = life.base / "gate"
        self.gate.unlink(missing_ok=True)
        self.pod = life.run_pod()
        mounts = [pb.Mount(host_path=str(life.base), container_path="/data")]
        script = "while ! test -e /data/gate; do sleep 0.01; done; exit 9"
        self.id = life.run(self.pod, script, mounts=mounts)
        self.before = life.status(self.id)
        self.shim = 0

    @property
    def state(self) -> int:
        return int(self.life.status(self.id).state)

    def go_on(self) -> None:
        os.kill(self.shim, signal.SIGCONT)


@pytest.fixture
def unknown(life: Node) -> Iterator[Unknown]:
    one = Unknown(life)
    with hung.unknown(life, one.pod, one.id, one.gate.touch) as one.shim:
        yield one
    life.remove_pod(one.pod)
    assert not life.leftovers()


def test_f14_unknown_keeps_its_times_says_why_and_resolves_by_itself(unknown: Unknown) -> None:
    status = unknown.life.status(unknown.id)
    assert (status.created_at, status.started_at, status.finished_at) == (
        unknown.before.created_at,
        unknown.before.started_at,
        0,
    )
    assert "shim" in status.message
    unknown.life.restart()
    assert unknown.state == pb.CONTAINER_UNKNOWN
    unknown.go_on()
    until(lambda: unknown.state == pb.CONTAINER_EXITED, "it to resolve", SETTLED_SECONDS)
    status = unknown.life.status(unknown.id)
    assert (status.exit_code, status.reason, status.started_at) == (9, "Error", unknown.before.started_at)


def test_f14_stop_and_remove_meanwhile_fail_with_a_reason_and_succeed_later(unknown: Unknown) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        unknown.life.stop_container(unknown.id)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED and unknown.id in failure.value.details()
    assert unknown.state == pb.CONTAINER_UNKNOWN
    unknown.go_on()
    unknown.life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=unknown.id))
    assert not unknown.life.containers()


def test_f14_a_pod_with_an_unknown_container_can_be_removed(unknown: Unknown) -> None:
    """Which ends its shim; the pod's removal is not held up by a witness that does not speak."""
    unknown.life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=unknown.pod), 60)
    status = unknown.life.status(unknown.id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 255, "ExitStatusLost")
    assert status.started_at == unknown.before.started_at


def test_f14_a_log_that_cannot_be_written_changes_nothing(life: Node) -> None:
    pod = life.run_pod()
    container_id = life.run(pod, "while :; do echo line; sleep 0.01; done")
    log = Path(life.status(container_id).log_path)
    until(lambda: log.stat().st_size > 0, "the log")
    log.unlink()
    log.mkdir()
    life.restart()
    assert life.status(container_id).state == pb.CONTAINER_RUNNING
    assert life.exec(container_id, ["/bin/true"]).exit_code == 0
    life.stop_container(container_id)
    assert life.status(container_id).exit_code == 137
    life.remove_pod(pod)
    assert not life.leftovers()


@pytest.mark.parametrize(
    ("call", "error"),
    [("pidfd_open", errno.EMFILE), ("cgroup-read", errno.EIO), ("connect", errno.ECONNREFUSED), ("read", errno.EIO)],
)
def test_f06_a_question_that_failed_at_recovery_ends_and_doubles_nothing(life: Node, call: str, error: int) -> None:
    pod = life.run_pod()
    running = life.run(pod, ["/bin/sleep", "1000"], "running")
    created = life.create(pod, life.container_config("exit 0", "created"))
    exited = life.run(pod, "exit 7", "exited")
    life.exited(exited)
    before = {one: life.status(one) for one in (running, created, exited)}
    pid = life.pid(running)
    for turn in (3, 4, 5, 6):  # those before are the daemon's own, without which it says that it cannot start
        life.kill()
        (life.inject / f"fail-{call}").write_text(f"{turn} {error}")
        life.start()
        until(lambda: recovered(life), "recovery")
        until(lambda: {one: life.status(one) for one in before} == before, f"the truth, {call} {turn} having failed")
        assert life.pid(running) == pid and process.state(pid) not in ("Z", "")
        (life.inject / f"fail-{call}").unlink(missing_ok=True)
    life.remove_pod(pod)
    assert not life.leftovers()
