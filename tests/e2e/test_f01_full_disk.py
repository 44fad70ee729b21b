"""F01, F19: a disk without a byte or an inode to be had loses nothing, duplicates nothing and can be cleared."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from image import build_busybox_image
from kit import disk
from kit.node import Node, until

from holdfast.linux import process
from holdfast.model.spec import new_id
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
def cramped(kind: str, how: str, directory: Path, inodes: int = 2048, **settings: Any) -> Iterator[Cramped]:
    options = (*ROOTS_SHARE, "-N", str(inodes)) if kind == "ext4" else ()
    with disk.small(kind, directory, SIZE, *options) as root, disk.volatile(directory, inodes * 2) as state:
        life = Node(min_free_bytes=1 << 20, min_free_inodes=16, **settings)
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


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_f01_without_a_reserve_what_is_known_waits_for_room(kind: str, tmp_path: Path) -> None:
    """What has been found out is shown, whether or not it can be written; its witnesses are kept until it is."""
    with cramped(kind, "blocks", tmp_path, reserve_bytes=0) as one:
        life = one.node
        pod = life.run_pod()
        go = life.base / "go"
        go.mkdir()
        os.mkfifo(go / "fifo")
        mounts = [pb.Mount(container_path="/go", host_path=str(go))]
        ids = [life.run(pod, UNTIL_TOLD.format(n + 1), f"c{n}", mounts=mounts) for n in range(40)]
        other = life.run(pod, EXIT_42, "other")
        one.fill()
        with told(go / "fifo", len(ids)):
            codes = [life.exited(container_id).exit_code for container_id in ids]
        assert codes == list(range(1, 41))
        until(lambda: not conditions(life)["StorageHealthy"].status, "it to be found out that they cannot be written")
        life.stop_container(other, 10)
        for _ in range(2):
            life.restart()
            assert [life.exited(container_id).exit_code for container_id in ids] == codes
            assert life.exited(other).exit_code == 42
        one.free()
        until(lambda: conditions(life)["StorageHealthy"].status, "everything to be written")
        life.restart()
        assert [life.status(container_id).exit_code for container_id in ids] == codes
        assert life.exited(life.run(pod, "exit 3", "late")).exit_code == 3
        life.remove_pod(pod)


@contextlib.contextmanager
def told(fifo: Path, many: int) -> Iterator[None]:
    """A line for each of so many that are UNTIL_TOLD; it is there still for whoever comes late."""
    with fifo.open("wb", buffering=0) as lines:
        lines.write(b"\n" * many)
        yield


def conditions(life: Node) -> dict[str, pb.RuntimeCondition]:
    return {one.type: one for one in life.call("Status", pb.StatusRequest()).status.conditions}


@pytest.fixture(params=["ext4-blocks", "xfs-blocks", "ext4-inodes"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cramped]:
    kind, _, how = request.param.partition("-")
    with cramped(kind, how, tmp_path) as one:
        yield one


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


def test_f19_what_frees_room_needs_none(other: Cramped) -> None:
    """Stop, remove, and the removal of images work on a full disk, and give back what they had."""
    life = other.node
    archive = build_busybox_image(life.base, "test/spare:latest", Labels={"spare": "1"})
    life.import_image(archive)
    pods = [life.run_pod() for _ in range(2)]
    running = life.run(pods[0], "head -c 8388608 /dev/zero > /big; echo written; sleep 1000", "fat")
    until(lambda: b"written" in life.container_log(running), "8 MiB to be written")
    kept = life.create(pods[1], life.container_config("exit 0"))
    orphan = life.state / "pods" / new_id()
    orphan.mkdir()
    other.fill()
    life.cli("doctor", "--fix", check=False)
    assert not orphan.exists()
    life.stop_container(running, 0)
    assert life.exited(running).exit_code == 137
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=running))
    assert [one.id for one in life.containers()] == [kept]
    if other.how != "inodes":
        until(lambda: disk.room(life.root) >= 8 << 20, "the room to be given back")
    life.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image="test/spare:latest")))
    names = [tag for one in life.images("ListImages", pb.ListImagesRequest()).images for tag in one.repo_tags]
    assert not any("spare" in name for name in names)
    for pod in pods:
        life.remove_pod(pod)
    life.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image="test/busybox:latest")))
    assert not list((life.root / "content" / "sha256").iterdir())
    assert not [path for path in (life.root / "snapshots").iterdir() if path.name.isdigit()]
    assert not life.leftovers()


def test_f19_what_needs_room_says_so_at_once_and_leaves_nothing(other: Cramped) -> None:
    life = other.node
    archive = build_busybox_image(life.base, "test/spare:latest", Labels={"spare": "1"})
    pod = life.run_pod()
    config = life.container_config("exit 5")
    other.fill()
    before = sorted(path.name for path in (life.root / "snapshots").iterdir())
    calls: list[Callable[[], object]] = [
        lambda: life.create(pod, config),
        lambda: life.run_pod(life.pod_config("another")),
        lambda: life.import_image(archive),
        lambda: life.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image="127.0.0.1:1/x:1"))),
    ]
    for call in calls:
        code, text = refusal(call)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, text
        assert str(life.root) in text
        assert ("out of inodes" if other.how == "inodes" else "is full") in text
    assert life.containers() == []
    assert [one.id for one in life.pods()] == [pod]
    assert sorted(path.name for path in (life.root / "snapshots").iterdir()) == before
    assert not list((life.root / "ingest").iterdir())
    until(lambda: not conditions(life)["StorageHealthy"].status, "somebody to look at the disk again")
    condition = conditions(life)["StorageHealthy"]
    assert (condition.status, condition.reason) == (
        False,
        "InodesExhausted" if other.how == "inodes" else "StorageFull",
    )
    assert str(life.root) in condition.message
    assert "StorageHealthy" in life.cli("info").stdout
    other.free()
    assert life.exited(life.run(pod, "exit 5")).exit_code == 5
    life.import_image(archive)
    life.remove_pod(pod)


def test_f19_a_start_that_finds_no_room_can_be_tried_again(tmp_path: Path) -> None:
    """Whether crun or we meet the full disk: the container stays CREATED, and starts when there is room."""
    with cramped("ext4", "state", tmp_path) as one:
        life = one.node
        pod = life.run_pod()
        where = life.base / "host"
        where.mkdir()
        mounts = [pb.Mount(container_path=f"/new/{n}/{'x' * 200}", host_path=str(where)) for n in range(20)]
        waiting = life.create(pod, life.container_config("exit 6", mounts=mounts))
        one.fill()
        code, text = refusal(lambda: life.start_container(waiting))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, text
        assert life.status(waiting).state == pb.CONTAINER_CREATED
        disk.free(life.state)
        code, text = refusal(lambda: life.start_container(waiting))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, text
        assert f"the filesystem of {life.root} is full" in text
        assert life.status(waiting).state == pb.CONTAINER_CREATED
        one.free()
        life.start_container(waiting)
        assert life.exited(waiting).exit_code == 6
        life.remove_pod(pod)


def exits_while_full(directory: Path, count: int, kind: str = "ext4", how: str = "blocks") -> None:
    """`count` containers wait for a line from one FIFO; when they are let go, each has a code of its own to tell."""
    with cramped(kind, how, directory, 16384) as one:
        life = one.node
        go = life.base / "go"
        go.mkdir()
        os.mkfifo(go / "fifo")
        mounts = [pb.Mount(container_path="/go", host_path=str(go))]
        pods = [life.run_pod() for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            make = lambda n: life.run(pods[n % 4], UNTIL_TOLD.format(n % 200 + 1), f"c{n}", mounts=mounts)  # noqa: E731
            ids = list(threads.map(make, range(count)))
        one.fill()
        with told(go / "fifo", count):
            codes = [life.exited(container_id).exit_code for container_id in ids]
        assert codes == [n % 200 + 1 for n in range(count)]
        life.restart()
        assert [life.status(container_id).exit_code for container_id in ids] == codes
        assert has_no_room(life.root, how)
        for pod in pods:
            life.remove_pod(pod)


def test_f01_two_hundred_exits_on_a_full_disk_are_exact(tmp_path: Path) -> None:
    exits_while_full(tmp_path, 200)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("how", ["blocks", "inodes"])
def test_f01_five_hundred_exits_on_a_full_disk_are_exact(tmp_path: Path, kind: str, how: str) -> None:
    exits_while_full(tmp_path, 500, kind, how)
