"""Parents of pods' cgroups that nobody has made before: whoever of several pods is the last takes them away."""

import pytest
from kit.invariants import check
from kit.node import Node

from holdfast.linux import cgroup
from holdfast.proto import runtime_v1_pb2 as pb


def run(life: Node, parent: str) -> tuple[str, str]:
    """A pod below a parent, and its container."""
    config = life.pod_config()
    config.linux.cgroup_parent = f"{life.cgroup}{parent}"
    pod_id = life.run_pod(config)
    return pod_id, life.run(pod_id, "sleep 1000")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("parents", [("/shared", "/shared"), ("/a/b/one", "/a/b/two"), ("/x", "/x/y/z")])
def test_pods_that_share_a_parent_go_one_by_one(life: Node, parents: tuple[str, str], first: int) -> None:
    pods = [run(life, parent) for parent in parents]
    gone, left = pods[first], pods[1 - first]
    life.remove_pod(gone[0])
    assert life.works(left[1])
    check(life)
    again = run(life, parents[first])
    life.remove_pod(left[0])
    assert life.works(again[1])
    life.remove_pod(again[0])
    assert not life.leftovers()
    assert not cgroup.exists(life.cgroup)


def test_what_somebody_else_has_made_is_left(life: Node) -> None:
    cgroup.create(f"{life.cgroup}/theirs")
    try:
        for parent in ("/theirs/one/two", "/theirs"):
            pod_id, container_id = run(life, parent)
            assert life.works(container_id)
            life.remove_pod(pod_id)
            assert cgroup.children(life.cgroup) == {"theirs"}
            assert not cgroup.children(f"{life.cgroup}/theirs")
    finally:
        cgroup.remove(life.cgroup)


def test_a_daemon_that_was_killed_in_between_knows_as_well(life: Node) -> None:
    pods = [run(life, parent) for parent in ("/a/b/one", "/a/b/two")]
    life.restart()
    life.remove_pod(pods[0][0])
    life.restart()
    assert life.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pods[1][0])).status.state == 0
    life.remove_pod(pods[1][0])
    assert not life.leftovers()
