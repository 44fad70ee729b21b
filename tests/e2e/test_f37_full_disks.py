"""F37: a disk that fills up in the middle of a checkpoint or a restore, for whole pods and containers, runc and gVisor.

There was room when it was asked for, and then somebody takes all of it. The error says which disk is full; what was to
be left running runs, there is no half archive and no half pod, and with room it works again.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit import disk, invariants
from kit.checkpoints import COUNT, PRIVATE, checkpoint, checkpoint_pod, create, follow, numbers, restore_pod
from kit.crash import Inject
from kit.gvisor import RUNTIMES, emptydir, mounted
from kit.node import Node, until
from kit.tools import CRIU, needs_criu, needs_runsc

from holdfast.linux import files

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

MIB = 1 << 20
SIZES = {"root": 160 * MIB, "archives": 64 * MIB}
WRITE = f"head -c {MIB} /dev/urandom > /mine; head -c {MIB} /dev/urandom > /plain/file; {COUNT}"


class Cramped:
    """A node with its root on one small disk, and its archives on another, which get full while it stands still."""

    def __init__(self, one: Node, archives: Path) -> None:
        self.node, self.archives = one, archives
        self.inject = Inject(one)

    def counting(self, *, volume: bool = True) -> tuple[str, str]:
        """A pod with a container that counts, and has written to its layer and to a volume."""
        config = self.node.pod_config(**PRIVATE)
        mounts = [mounted(emptydir(self.node, config, "plain"), "/plain")] if volume else []
        pod = self.node.run_pod(config)
        script = WRITE if volume else WRITE.replace("/plain/file", "/other")
        container = self.node.run(pod, script, mounts=mounts, **PRIVATE)
        until(lambda: len(numbers(self.node, container)) > 5, "a few numbers")
        return pod, container

    def goes_on(self, container: str) -> None:
        at = len(numbers(self.node, container))
        until(lambda: len(numbers(self.node, container)) > at + 3, "the container to go on")
        assert follow(numbers(self.node, container))

    def fills_up(self, place: Path, point: str, call: Callable[[], Any]) -> grpc.RpcError:
        """What comes of a call, if the disk gets full as it passes a point."""
        self.inject.disarm(point)
        self.inject.arm(point, 1)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(call)
            pid = until(lambda: self.inject.hit(point), point)
            disk.fill_blocks(place)
            assert disk.is_full(place)
            self.inject.go_on(pid)
            error = asked.exception(90)
        assert isinstance(error, grpc.RpcError), error
        return error

    def refused_for_want_of_room(self, place: Path, point: str, call: Callable[[], Any]) -> None:
        error = self.fills_up(place, point, call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        assert str(place) in error.details() and "full" in error.details(), error

    def nothing_staged(self) -> None:
        for name in ("checkpoints", "restores", "volumes"):
            place = self.node.root / name
            until(lambda place=place: not place.exists() or not os.listdir(place), f"{name} to be empty")

    def on_disk(self) -> list[str]:
        return sorted(name for name in os.listdir(self.archives) if name not in ("hog", "lost+found"))


@contextlib.contextmanager
def cramped(runtime: str, directory: Path) -> Iterator[Cramped]:
    base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
    with contextlib.ExitStack() as disks:
        places = {}
        for name, size in SIZES.items():
            (directory / name).mkdir()
            places[name] = disks.enter_context(disk.small("ext4", directory / name, size, "-N", "8192"))
        settings: dict[str, Any] = {"runtimes": RUNTIMES} if runtime == "runsc" else {"criu_path": CRIU}
        one = Node(
            runtime, base, inject=True, checkpoints=True, volume_roots=[str(base / "kubelet")],
            min_free_bytes=MIB, min_free_inodes=16, **settings,
        )  # fmt: skip
        one.root = places["root"]
        try:
            one.start()
            one.busybox()
            yield Cramped(one, places["archives"])
        finally:
            for place in places.values():
                disk.free(place)
            one.purge()


@pytest.fixture(
    scope="module",
    params=[pytest.param("runc", marks=needs_criu), pytest.param("runsc", marks=needs_runsc)],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cramped]:
    with cramped(request.param, tmp_path_factory.mktemp("disks")) as made:
        yield made


@pytest.fixture
def one(place: Cramped) -> Iterator[Cramped]:
    yield place
    for disk_ in (place.node.root, place.archives):
        disk.free(disk_)
    for pod in place.node.pods():
        place.node.remove_pod(pod.id)
    for name in place.on_disk():
        (place.archives / name).unlink()
    place.nothing_staged()
    invariants.check(place.node)


@pytest.mark.parametrize(
    ("where", "point"), [("root", "checkpoint.staged"), ("root", "checkpoint.frozen"), ("archives", "seal.begun")]
)
@pytest.mark.parametrize("leave_running", [True, False])
def test_f37_while_a_pod_is_checkpointed(one: Cramped, where: str, point: str, leave_running: bool) -> None:
    """A pod that was to be stopped is not: there is no archive of it."""
    pod, container = one.counting()
    target = one.archives / "pod.tar"
    full = one.node.root if where == "root" else one.archives
    one.refused_for_want_of_room(
        full, point, lambda: checkpoint_pod(one.node, pod, target, leave_running=leave_running)
    )
    one.goes_on(container)
    assert one.on_disk() == []
    one.nothing_staged()
    disk.free(full)
    checkpoint_pod(one.node, pod, target, leave_running=leave_running)
    assert one.on_disk() == ["pod.tar"]
    if leave_running:
        one.goes_on(container)


@pytest.mark.parametrize("point", ["run.recorded", "restore.read", "restore.shm"])
def test_f37_while_a_pod_is_restored(one: Cramped, point: str) -> None:
    pod, _ = one.counting()
    target = one.archives / "pod.tar"
    checkpoint_pod(one.node, pod, target)
    one.node.remove_pod(pod)
    one.refused_for_want_of_room(one.node.root, point, lambda: restore_pod(one.node, target))
    assert one.node.pods() == []
    one.nothing_staged()
    disk.free(one.node.root)
    again = restore_pod(one.node, target)
    [found] = [each.id for each in one.node.containers() if each.pod_sandbox_id == again]
    until(lambda: len(numbers(one.node, found)) > 5, "the restored one to count")
    assert numbers(one.node, found)[0] > 5 and follow(numbers(one.node, found))


@pytest.mark.parametrize("place", ["runc"], indirect=True)
@pytest.mark.parametrize(("where", "point"), [("root", "checkpoint.staged"), ("archives", "seal.begun")])
def test_f37_while_a_container_is_checkpointed(one: Cramped, where: str, point: str) -> None:
    _, container = one.counting(volume=False)
    target = one.archives / "one.tar"
    full = one.node.root if where == "root" else one.archives
    one.refused_for_want_of_room(full, point, lambda: checkpoint(one.node, container, target))
    one.goes_on(container)
    assert one.on_disk() == []
    one.nothing_staged()
    disk.free(full)
    checkpoint(one.node, container, target)
    one.goes_on(container)


@pytest.mark.parametrize("place", ["runc"], indirect=True)
def test_f37_while_a_container_is_restored(one: Cramped) -> None:
    _, container = one.counting(volume=False)
    target = checkpoint(one.node, container, one.archives / "one.tar")
    pod = one.node.run_pod(one.node.pod_config(**PRIVATE))
    before = {each.id for each in one.node.containers()}
    one.refused_for_want_of_room(one.node.root, "restore.read", lambda: create(one.node, target, pod))
    assert {each.id for each in one.node.containers()} == before
    one.nothing_staged()
    disk.free(one.node.root)
    # Some room, and less than the archive has.
    left = files.filesystem(one.node.root).free_bytes - MIB - target.stat().st_size // 2
    with (one.node.root / "hog").open("wb") as hog:
        os.posix_fallocate(hog.fileno(), 0, left)
    with pytest.raises(grpc.RpcError) as raised:
        create(one.node, target, pod)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(one.node.root) in str(raised.value.details())
    one.nothing_staged()
    disk.free(one.node.root)
    again = create(one.node, target, pod)
    one.node.start_container(again)
    until(lambda: len(numbers(one.node, again)) > 5, "the restored one to count")
