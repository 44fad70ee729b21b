"""Containers that count, checkpoints of them and of pods, and what is made from those, for tests."""

import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.linux import mount
from holdfast.model.gvisor import FILESTORE
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb
from kit import invariants
from kit.node import Node, until

COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"
LOST = re.compile(r"holdfast: lost \d+ log lines \((\d+) bytes\)")
PRIVATE = {"network": pb.POD}


def run(one: Node, script: str = COUNT, **more: Any) -> str:
    """A container in a pod of its own, with a network of its own."""
    return one.run(one.run_pod(one.pod_config(**PRIVATE)), script, **PRIVATE, **more)


def place(one: Node, name: str = "") -> Path:
    """Where an archive may be written."""
    directory = one.base / "archives"
    directory.mkdir(exist_ok=True)
    return directory / (name or f"{len(list(directory.iterdir()))}.tar")


def checkpoint(one: Node, container_id: str, target: Path | None = None, timeout: int = 60) -> Path:
    target = target or place(one)
    request = pb.CheckpointContainerRequest(container_id=container_id, location=str(target), timeout=timeout)
    one.call("CheckpointContainer", request, 90)
    return target


def create(one: Node, image: Path | str, pod: str = "", **more: Any) -> str:
    """A container made from a checkpoint; what it is asked to run plays no part."""
    pod = pod or one.run_pod(one.pod_config(**PRIVATE))
    return one.create(pod, one.container_config("exit 1", image=str(image), **PRIVATE, **more))


def restore(one: Node, image: Path | str, pod: str = "", **more: Any) -> str:
    container_id = create(one, image, pod, **more)
    one.start_container(container_id)
    return container_id


def checkpoint_pod(one: Node, pod: str, target: Path, **how: Any) -> node_pb2.CheckpointPodReply:
    request = node_pb2.CheckpointPodRequest(pod_id=pod, location=str(target), **how)
    return node_pb2_grpc.NodeStub(one.channel).CheckpointPod(request, timeout=120)


def restore_pod(one: Node, archive: Path, **how: Any) -> str:
    """Returns the id of the pod."""
    request = node_pb2.RestorePodRequest(location=str(archive), **how)
    return str(node_pb2_grpc.NodeStub(one.channel).RestorePod(request, timeout=120).pod_id)


@contextlib.contextmanager
def emptied(one: Node, *, at_once: bool = True) -> Iterator[Node]:
    """The node; afterwards without its pods, and with nothing left of these, their volumes, checkpoints and archives.

    Where something was killed it takes a while: not `at_once`.
    """
    yield one
    for pod in one.pods():
        one.remove_pod(pod.id)
    places = (one.base / "kubelet", one.base / "archives")
    for place in places:
        mount.unmount_tree(place)
    if not at_once:
        until(lambda: not left(one), "nothing to be left")
    assert left(one) == []
    for place in places:
        shutil.rmtree(place, ignore_errors=True)  # noqa: TID251  (nothing is mounted below it any more)
    invariants.check(one)


def left(one: Node) -> list[str]:
    """What is there though there are no pods: staged, in volumes, or at work."""
    staged = [one.root / name for name in ("checkpoints", "restores", "volumes")]
    found = [*itertools.chain(*(place.glob("*") for place in staged)), *one.base.glob(f"kubelet/**/{FILESTORE}*")]
    return [*map(str, found), *one.leftovers()]


def lines(one: Node, container_id: str) -> list[str]:
    """What it has said, without the log's own words; nor what a shim that died has lost, which the log tells of; nor a
    record that is being written."""
    said = [line.split(b" ", 3)[3].decode() for line in one.container_log(container_id).split(b"\n")[:-1]]
    return [line for line in said if not LOST.match(line)]


def lost(one: Node, container_id: str) -> int:
    """How many bytes of what it has said are missing, as its log tells."""
    return sum(map(int, LOST.findall(one.container_log(container_id).decode())))


def numbers(one: Node, container_id: str) -> list[int]:
    return [int(line) for line in lines(one, container_id)]


def follow(found: list[int], lost: int = 0) -> bool:
    """Whether each number is one more than the one before, but for `lost` bytes at most."""
    pairs = list(itertools.pairwise(found))
    missing = sum(len(f"{number}\n") for one, other in pairs for number in range(one + 1, other))
    return missing <= lost and all(one < other for one, other in pairs)
