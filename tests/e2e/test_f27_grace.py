"""F27: the grace period is kept: nothing is killed early, nothing late, and by whatever the last word was."""

import concurrent.futures
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit.node import Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb

NS = 1_000_000_000


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node() as one:
        yield one


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)


def running(life: Node, pod: str, trap: str, **more: object) -> str:
    """A container that has set its trap."""
    one = life.run(pod, f"{trap}; > /ready; while :; do sleep 0.02; done", **more)
    until(Path(f"/proc/{life.pid(one)}/root/ready").exists, "the trap to be set")
    return one


def asked_to_stop(life: Node, container: str, seconds: int, patience: float) -> int:
    """When it was asked; the client has gone away by the time this returns."""
    asked = time.time_ns()
    request = pb.StopContainerRequest(container_id=container, timeout=seconds)
    with pytest.raises(grpc.RpcError) as gone:
        life.call("StopContainer", request, patience)
    assert gone.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return asked


def test_f27_a_client_that_goes_away_kills_nothing_early(life: Node, pod: str) -> None:
    one = running(life, pod, "trap 'sleep 2; exit 4' TERM")
    asked_to_stop(life, one, 30, 0.5)
    status = life.exited(one)
    assert status.exit_code == 4


def test_f27_a_second_stop_may_shorten_the_time_and_never_lengthen_it(life: Node, pod: str) -> None:
    one = running(life, pod, "trap '' TERM")
    asked = asked_to_stop(life, one, 60, 0.3)
    asked_to_stop(life, one, 2, 0.3)
    asked_to_stop(life, one, 60, 0.3)
    status = life.exited(one)
    assert status.exit_code == 137
    assert 2 * NS <= status.finished_at - asked < 20 * NS


def test_f27_f07_a_restart_in_the_middle_neither_kills_early_nor_begins_anew(life: Node, pod: str) -> None:
    one = running(life, pod, "trap '' TERM")
    asked = asked_to_stop(life, one, 4, 0.3)
    for _ in range(2):
        life.restart()
        assert life.status(one).state == pb.CONTAINER_RUNNING
    status = life.exited(one)
    assert status.exit_code == 137
    assert 4 * NS <= status.finished_at - asked < 25 * NS


@pytest.mark.parametrize("moment", [0.1, 0.6])
def test_f07_what_exits_at_its_signal_while_the_daemon_is_down_is_told_at_once(
    life: Node, pod: str, moment: float
) -> None:
    one = running(life, pod, "trap 'sleep 1.5; exit 3' TERM")
    asked_to_stop(life, one, 30, moment)
    pid = life.pid(one)
    life.kill()
    until(lambda: not Path(f"/proc/{pid}/root/ready").exists(), "the container to end")
    life.start()
    until(lambda: life.status(one).state == pb.CONTAINER_EXITED, "the truth", 2)
    assert life.status(one).exit_code == 3


def test_f27_the_images_own_signal_is_sent(life: Node, pod: str) -> None:
    number = int(signal.SIGRTMIN) + 3
    one = running(life, pod, f"trap 'exit 5' {number}", stop_signal=pb.Signal.Value("SIGRTMINPLUS3"))
    life.stop_container(one, 20)
    assert life.status(one).exit_code == 5


def test_f27_the_others_are_not_affected(life: Node, pod: str) -> None:
    deaf, polite = (
        running(life, pod, "trap '' TERM", name="deaf"),
        running(life, pod, "trap 'exit 6' TERM", name="polite"),
    )
    with concurrent.futures.ThreadPoolExecutor(1) as clients:
        slow = clients.submit(life.stop_container, deaf, 3)
        life.stop_container(polite, 20)
        assert life.status(polite).exit_code == 6
        assert life.status(deaf).state == pb.CONTAINER_RUNNING
        slow.result()
    assert life.status(deaf).exit_code == 137
