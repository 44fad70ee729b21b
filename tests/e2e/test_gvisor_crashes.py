"""SIGKILL of daemon and shim at the steps by which gVisor pods begin, are checkpointed and restored. F37, F38."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit import invariants
from kit.checkpoints import emptied
from kit.crash import Inject, recovered
from kit.gvisor import emptydir, gvisor_node, last_number, mounted
from kit.node import Node, until
from kit.tools import needs_runsc

from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = needs_runsc

SECONDS = 120.0
PRIVATE = {"network": pb.POD}
SHARED = {"dev.holdfast.volume.workspace": "shared-disk"}
WRITER = "n=0; while true; do n=$((n+1)); echo $n > /workspace/count; echo $n; sleep 0.05; done"
READER = "while true; do cat /workspace/count 2>/dev/null; sleep 0.05; done"
VICTIMS = ("daemon", "shim", "both")
# (point, the how manieth time): the sandbox container passes those of the shim first, then the containers.
BEGIN = (("foreign.sandbox", 1), ("shim.mounted", 1), ("shim.created", 2), ("shim.starting", 2), ("shim.started", 2))
CHECKPOINT = (
    ("checkpoint.recorded", 1), ("shim.forgetting", 1),
    ("shim.freezing", 1), ("shim.frozen", 1), ("shim.dumping", 1), ("shim.dumped", 1),
    ("checkpoint.dumped", 1), ("checkpoint.thawed", 1), ("checkpoint.sealed", 1),
)  # fmt: skip
RESTORE = (
    ("restore.read", 1), ("restore.made", 1), ("shim.restoring", 1), ("shim.restored", 1), ("shim.restoring", 2),
    ("shim.restored", 2), ("shim.restored", 3), ("restore.done", 1),
)  # fmt: skip
AT_ONCE = {  # what is played in every run
    ("begin", "foreign.sandbox", 1, "both"), ("begin", "shim.starting", 2, "shim"),
    ("checkpoint", "shim.dumping", 1, "both"), ("checkpoint", "shim.dumped", 1, "daemon"),
    ("restore", "shim.restored", 2, "both"), ("restore", "shim.restoring", 1, "daemon"),
}  # fmt: skip


def rounds(operation: str, points: tuple[tuple[str, int], ...]) -> list[Any]:
    found = [(operation, point, count, victim) for point, count in points for victim in VICTIMS]
    return [
        pytest.param(*one[1:], id=":".join(map(str, one)), marks=() if one in AT_ONCE else pytest.mark.soak)
        for one in found
    ]


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node(checkpoints=True, inject=True) as one:
        yield one


@pytest.fixture
def one(shared: Node) -> Iterator[Node]:
    with emptied(shared, at_once=False):
        yield shared


def struck(one: Node, act: Callable[[], Any], point: str, count: int, victim: str) -> Future[Any]:
    """Do it, kill the victim at the point, have a daemon again. Returns what came of it."""
    inject = Inject(one)
    inject.arm(point, count)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(act)
        pid = until(lambda: inject.hit(point), f"{point} to be passed", 60)
        inject.strike(pid, victim, set())
        call.exception()
    inject.disarm(point)
    assert one.process is not None
    if one.process.poll() is not None:
        one.start()
        until(lambda: recovered(one), "recovery")
    return call


class Pod:
    def __init__(self, one: Node) -> None:
        self.node, config = one, one.pod_config(annotations=SHARED, **PRIVATE)
        self.volume = emptydir(one, config)
        self.id = one.run_pod(config)
        mounts = [mounted(self.volume)]
        self.writer = one.run(self.id, WRITER, "writer", mounts=mounts, **PRIVATE)
        self.reader = one.run(self.id, READER, "reader", mounts=mounts, **PRIVATE)
        counting(one, self.writer, self.reader)


def counting(one: Node, *containers: str) -> None:
    before = {container: last_number(one, container) for container in containers}
    until(lambda: all(last_number(one, container) > before[container] + 2 for container in containers), "them to count")


def checkpoint(one: Node, pod: str, name: str, **how: Any) -> Path:
    target = one.base / "archives" / name
    target.parent.mkdir(exist_ok=True)
    request = node_pb2.CheckpointPodRequest(pod_id=pod, location=str(target), **how)
    node_pb2_grpc.NodeStub(one.channel).CheckpointPod(request, timeout=SECONDS)
    return target


def restore(one: Node, archive: Path, name: str) -> str:
    request = node_pb2.RestorePodRequest(location=str(archive), name=name)
    return str(node_pb2_grpc.NodeStub(one.channel).RestorePod(request, timeout=SECONDS).pod_id)


def members(one: Node, pod: str) -> list[str]:
    return [found.id for found in one.containers() if found.pod_sandbox_id == pod]


@pytest.mark.parametrize(("point", "count", "victim"), rounds("begin", BEGIN))
def test_a_pod_begins_or_leaves_nothing(one: Node, point: str, count: int, victim: str) -> None:
    config = one.pod_config(annotations=SHARED, **PRIVATE)
    volume = emptydir(one, config)

    def begin() -> str:
        pod = one.run_pod(config)
        return one.run(pod, WRITER, mounts=[mounted(volume)], **PRIVATE)

    struck(one, begin, point, count, victim)
    pod = until(lambda: again(lambda: one.run_pod(config)), "the pod to begin", 60)
    found = [each for each in one.containers() if each.pod_sandbox_id == pod]
    if not found:
        until(lambda: again(lambda: one.create(pod, one.container_config(WRITER, mounts=[mounted(volume)], **PRIVATE))))
    (container,) = members(one, pod)
    until(lambda: one.status(container).state == pb.CONTAINER_RUNNING or again(lambda: started(one, container)))
    counting(one, container)
    invariants.check(one)


def again(act: Callable[[], Any]) -> Any:
    """What it gives, or nothing while it cannot be done."""
    try:
        return act()
    except grpc.RpcError:
        return None


def started(one: Node, container: str) -> bool:
    one.start_container(container)
    return True


@pytest.mark.parametrize(("point", "count", "victim"), rounds("checkpoint", CHECKPOINT))
def test_f37_a_pod_that_was_to_be_left_running_runs(one: Node, point: str, count: int, victim: str) -> None:
    pod = Pod(one)
    struck(one, lambda: checkpoint(one, pod.id, "pod.tar", leave_running=True), point, count, victim)
    counting(one, pod.writer, pod.reader)
    left = sorted(path.name for path in (one.base / "archives").iterdir())
    assert left in ([], ["pod.tar"]), left
    archive = until(
        lambda: again(lambda: checkpoint(one, pod.id, "again.tar", leave_running=True)), "another checkpoint", 60
    )
    one.remove_pod(pod.id)
    for number, name in enumerate([*left, archive.name]):
        counting(one, *members(one, restore(one, one.base / "archives" / name, f"restored-{number}")))
    invariants.check(one)


@pytest.mark.parametrize(("point", "count", "victim"), rounds("restore", RESTORE))
def test_f37_a_restore_is_whole_or_nothing_is_left(one: Node, point: str, count: int, victim: str) -> None:
    pod = Pod(one)
    archive = checkpoint(one, pod.id, "pod.tar")
    one.remove_pod(pod.id)
    call = struck(one, lambda: restore(one, archive, "restored"), point, count, victim)
    if call.exception() is None or point == "restore.done":
        (pod_,) = one.pods()
        counting(one, *members(one, pod_.id))
        one.remove_pod(pod_.id)
    until(lambda: not one.pods(), "the restore to be undone", 60)
    new = until(lambda: again(lambda: restore(one, archive, "restored")), "a restore", 60)
    counting(one, *members(one, new))
    invariants.check(one)
