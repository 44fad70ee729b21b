"""F08: sandboxes that fail half-way, a hundred of them, at every step: nothing is left, and a restart is a restart."""

import errno
import itertools
from collections.abc import Iterator

import grpc
import pytest
from kit import invariants
from kit.crash import Inject, recovered
from kit.node import Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb

RUNS = 100


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


def calls_of_a_run(life: Node, inject: Inject) -> list[tuple[str, int]]:
    """Each call that a run makes, with how often it makes it."""
    inject.start_trace()
    pod = life.run_pod(life.pod_config("whole", network=pb.POD, pid=pb.POD))
    calls = [(name, count) for name, count in inject.end_trace().items() if name.startswith("fail-")]
    life.remove_pod(pod)
    return sorted(calls)


def nothing_is_left(life: Node) -> None:
    until(lambda: not life.pods(), "what could not be undone at once to be undone")
    until(lambda: not life.leftovers(), f"nothing to be left: {life.leftovers()}")
    invariants.check(life)


def test_f08_a_hundred_runs_that_fail_at_any_step_leave_nothing(life: Node) -> None:
    inject = Inject(life)
    steps = [(name, turn) for name, count in calls_of_a_run(life, inject) for turn in range(1, count + 1)]
    assert len(steps) > 10
    failed: set[tuple[str, int]] = set()
    failures = 0
    for name, turn in itertools.islice(itertools.cycle(steps), 3 * RUNS):
        (life.inject / name).write_text(f"{turn} {errno.EIO}")
        config = life.pod_config("failing", network=pb.POD, pid=pb.POD)
        try:
            life.remove_pod(life.run_pod(config))
        except grpc.RpcError:
            failures += 1
            failed.add((name, turn))
        finally:
            inject.disarm(name)
        if failures == RUNS:
            break
    assert failures == RUNS
    assert len(failed) > 10
    nothing_is_left(life)
    life.restart()
    until(lambda: recovered(life), "recovery to be over")
    nothing_is_left(life)
    life.remove_pod(life.run_pod(life.pod_config("failing", network=pb.POD, pid=pb.POD)))


def test_f08_a_log_directory_that_cannot_be_made_leaves_nothing(life: Node) -> None:
    (life.base / "file").write_text("")
    config = life.pod_config("nowhere")
    config.log_directory = str(life.base / "file" / "logs")
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            life.run_pod(config)
    nothing_is_left(life)
    life.restart()
    assert not life.pods()
    config.log_directory = str(life.base / "logs" / "nowhere")
    life.remove_pod(life.run_pod(config))
