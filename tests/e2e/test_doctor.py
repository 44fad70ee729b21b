"""`holdfast doctor`: everything that is ours is found, with its owner or why it has none; only orphans are removed."""

from collections.abc import Iterator

import pytest
from kit import invariants
from kit.node import Node, node

from holdfast.proto import runtime_v1_pb2 as pb


@pytest.fixture(scope="module")
def clinic() -> Iterator[Node]:
    with node() as one:
        yield one


def test_a_healthy_node_has_nothing_to_show(clinic: Node) -> None:
    pods = [clinic.run_pod(), clinic.run_pod(clinic.pod_config(network=pb.POD, pid=pb.POD))]
    for pod in pods:
        clinic.run(pod, "sleep 1000")
    clinic.exited(clinic.run(pods[0], "exit 3", name="over"))
    clinic.create(pods[1], clinic.container_config("exit 0", name="waiting"))
    invariants.check(clinic)
    found = invariants.examine(clinic)
    assert found["counts"].keys() == {"ok"}, found
    for pod in pods:
        clinic.remove_pod(pod)
    invariants.check(clinic)
