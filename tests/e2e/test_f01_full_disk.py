"""F01, F19: a disk without a byte or an inode to be had loses nothing, duplicates nothing and can be cleared."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from kit import disk
from kit.node import Node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb

SIZE = 100 << 20  # xfs takes no less than 300 MB
ROOTS_SHARE = ("-m", "5")
EXIT_42 = "trap 'exit 42' TERM; while :; do sleep 0.05; done"
UNTIL_TOLD = "read nothing < /go/fifo; exit {}"


@dataclass
class Cramped:
    """A node whose root is on a small disk, and how that is filled; its state directory is on a small tmpfs."""

    node: Node
    how: str
    fill: Callable[[], None]
    full: list[Path]

    def free(self) -> None:
        for place in self.full:
            disk.free(place)


@contextlib.contextmanager
def cramped(kind: str, how: str, directory: Path) -> Iterator[Cramped]:
    options = ROOTS_SHARE if kind == "ext4" else ()
    with disk.small(kind, directory, SIZE, *options) as root, disk.volatile(directory) as state:
        life = Node(min_free_bytes=1 << 20, min_free_inodes=16)
        life.root, life.state, life.socket = root, state, state / "holdfast.sock"
        fill = disk.fill_inodes if how == "inodes" else disk.fill
        full = [root, state] if how == "state" else [root]

        def fill_all() -> None:
            for place in full:
                fill(place)
            for place in full:
                assert has_no_room(place, how), place

        one = Cramped(life, how, fill_all, full)
        try:
            life.start()
            life.busybox()
            yield one
        finally:
            one.free()
            life.purge()


def has_no_room(place: Path, how: str) -> bool:
    """Nothing can be made: by blocks not even a page, by inodes not even an empty file."""
    if how != "inodes":
        return disk.is_full(place)
    try:
        (place / "one-more").touch()
    except OSError:
        return True
    (place / "one-more").unlink()
    return False


@pytest.fixture(params=["ext4-blocks", "xfs-blocks", "ext4-inodes", "xfs-inodes", "ext4-state", "xfs-state"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cramped]:
    kind, _, how = request.param.partition("-")
    with cramped(kind, how, tmp_path) as one:
        yield one


def seen(life: Node) -> dict[str, tuple[str, int, int, int]]:
    """Every container: name, state, pid, exit code."""
    found = {}
    for one in life.containers():
        status = life.status(one.id)
        found[one.id] = (one.metadata.name, one.state, life.pid(one.id), status.exit_code)
    return found


def test_f01_the_published_plan(place: Cramped) -> None:
    """containerd#11504 and #7247: created, running and exited containers, a SIGKILL, a full disk, restarts."""
    life = place.node
    pod_config = life.pod_config()
    pod = life.run_pod(pod_config)
    config_b = life.container_config(EXIT_42, "b")
    a = life.create(pod, life.container_config("exit 3", "a"))
    b = life.create(pod, config_b)
    life.start_container(b)
    c = life.run(pod, "exit 7", "c")
    assert life.exited(c).exit_code == 7
    before = seen(life)
    started = process.start_time(pid := life.pid(b))
    life.kill()
    place.fill()

    life.start()
    assert seen(life) == before
    assert process.start_time(pid) == started
    assert life.pods()[0].state == pb.SANDBOX_READY
    assert conditions(life)["RuntimeReady"].status
    assert not conditions(life)["StorageHealthy"].status

    # No second copy: neither by name, nor by the very same request, which may at most be answered with the first.
    with pytest.raises(grpc.RpcError) as refused:
        life.create(pod, life.container_config("exit 0", "b"))
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert b in refused.value.details()
    with contextlib.suppress(grpc.RpcError):
        assert life.create(pod, config_b) == b
    with contextlib.suppress(grpc.RpcError):
        assert life.run_pod(pod_config) == pod
    assert seen(life) == before

    os.kill(pid, signal.SIGTERM)
    assert life.exited(b).exit_code == 42
    life.kill()
    life.start()
    after = {**before, b: ("b", pb.CONTAINER_EXITED, 0, 42)}
    until(lambda: seen(life) == after, "everything to be as it was")
    assert has_no_room(life.root, place.how)

    place.free()
    for _ in range(2):
        life.restart()
        assert seen(life) == after
    until(lambda: conditions(life)["StorageHealthy"].status, "the disks to be healthy")
    life.start_container(a)
    assert life.exited(a).exit_code == 3
    life.remove_pod(pod)
    assert life.containers() == [] and life.pods() == []
    assert not life.leftovers()


def conditions(life: Node) -> dict[str, pb.RuntimeCondition]:
    return {one.type: one for one in life.call("Status", pb.StatusRequest()).status.conditions}
