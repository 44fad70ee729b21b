"""F08: a sandbox that fails half-way, again and again, leaves nothing; and the next start is a start like any other."""

import errno

import grpc
import pytest
from kit import crash, invariants
from kit.node import node

from holdfast.proto import runtime_v1_pb2 as pb

ROUNDS = 30
CALLS = (
    "mount",
    "mkdir",
    "fork",
    "unshare",
    "cgroup-mkdir",
    "write",
    "rename",
    "setns",
    "clone",
    "bind",
    "cgroup-write",
)


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(100, marks=pytest.mark.soak)])
def test_f08_failed_runs_leave_nothing(rounds: int) -> None:
    failed = 0
    with node(inject=True) as life:
        config = life.pod_config(network=pb.POD, pid=pb.POD)
        life.remove_pod(life.run_pod(config))
        before = crash.paths(life)
        for number in range(rounds):
            count, call = 1 + number // len(CALLS), CALLS[number % len(CALLS)]
            fault = life.inject / f"fail-{call}"
            fault.write_text(f"{count} {errno.EIO}")
            try:
                life.remove_pod(life.run_pod(config))
            except grpc.RpcError as exc:
                failed += 1
                assert exc.code() is not grpc.StatusCode.ALREADY_EXISTS, exc.details()
            for left in (fault, fault.with_name(f"{fault.name}.hit")):
                left.unlink(missing_ok=True)
        invariants.check(life)
        for pod in life.pods():  # a run that had succeeded, and whose removal was what failed
            life.remove_pod(pod.id)
        assert not life.leftovers()
        assert crash.paths(life) == before
        life.restart()
        life.remove_pod(life.run_pod(config))
        assert life.pods() == []
    assert failed > rounds / 4, "next to none of them failed: the faults are not where they were"
