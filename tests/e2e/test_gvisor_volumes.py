"""F38, google/gvisor#13595: an emptyDir on disk, shared by the containers of a gVisor pod, and nothing left of it."""

import os
import signal
from collections.abc import Iterator

import grpc
import pytest
from kit.checkpoints import emptied
from kit.gvisor import emptydir, filestores, gvisor_node, kill_sentry, mounted, resident, shim
from kit.node import Node, until
from kit.tools import needs_runsc

from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = needs_runsc

MIB = 1 << 20
SLEEP = ["/bin/sleep", "100000"]
SHARED = {"dev.holdfast.volume.workspace": "shared-disk"}
HINTS = "dev.gvisor.spec.mount.workspace."


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node() as one:
        yield one


@pytest.fixture
def one(shared: Node) -> Iterator[Node]:
    with emptied(shared):
        yield shared


class Pod:
    """Two containers with one volume between them."""

    def __init__(self, one: Node, annotations: dict[str, str], files: dict[str, str] | None = None) -> None:
        self.node, config = one, one.pod_config(annotations=annotations)
        self.volume = emptydir(one, config)
        for name, text in (files or {}).items():
            (self.volume / name).write_text(text)
        self.id = one.run_pod(config)
        mounts = [mounted(self.volume)]
        self.first, self.second = (one.run(self.id, SLEEP, name, mounts=mounts) for name in ("first", "second"))

    def sh(self, container: str, script: str) -> str:
        done = self.node.exec(container, ["/bin/sh", "-c", script], seconds=60)
        assert done.exit_code == 0, done.stderr
        return str(done.stdout.decode())

    def shares(self) -> bool:
        """Whether one container sees what the other writes, both ways."""
        self.sh(self.first, "echo one > /workspace/a")
        self.sh(self.second, "cat /workspace/a; echo two >> /workspace/a")
        return self.sh(self.first, "cat /workspace/a") == "one\ntwo\n"


@pytest.mark.parametrize(
    "annotations", [SHARED, {f"{HINTS}share": "pod", f"{HINTS}type": "tmpfs"}], ids=["holdfast", "gvisor"]
)
def test_f38_on_disk_and_shared(one: Node, annotations: dict[str, str]) -> None:
    pod = Pod(one, annotations)
    assert pod.shares()
    sentry = one.pid(pod.first)
    before = resident(sentry)
    pod.sh(pod.first, f"head -c {64 * MIB} /dev/urandom > /workspace/blob")
    sums = {pod.sh(container, "md5sum /workspace/blob") for container in (pod.first, pod.second)}
    assert len(sums) == 1
    (store,) = filestores(pod.volume)
    assert store.stat().st_blocks * 512 >= 64 * MIB
    assert resident(sentry) - before < 32 * MIB
    assert [path.name for path in pod.volume.iterdir()] == [store.name]


def test_in_memory_as_gvisor_has_it(one: Node) -> None:
    pod = Pod(one, {f"{HINTS}type": "tmpfs"})
    pod.sh(pod.first, "echo mine > /workspace/a")
    assert pod.sh(pod.second, "ls /workspace") == ""
    assert not list(pod.volume.iterdir())


@pytest.mark.parametrize(
    "annotations", [{}, {f"{HINTS}share": "shared", f"{HINTS}type": "bind"}, {f"{HINTS}share": "force-shared"}]
)
def test_what_is_on_the_host_stays_there(one: Node, annotations: dict[str, str]) -> None:
    pod = Pod(one, annotations, {"old": "old\n"})
    assert pod.shares()
    assert pod.sh(pod.second, "cat /workspace/old") == "old\n"
    assert (pod.volume / "a").read_text() == "one\ntwo\n"
    (pod.volume / "late").write_text("late\n")
    until(lambda: pod.sh(pod.first, "cat /workspace/late || true") == "late\n", "what the host has written")


def test_files_that_would_not_be_seen_are_told_of(one: Node) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        Pod(one, SHARED, {"old": "old\n"})
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "volume workspace: it has files already, as 'old'" in (refused.value.details() or "")
    assert not one.pods()


def test_files_are_brought_in(one: Node) -> None:
    pod = Pod(one, {"dev.holdfast.volume.workspace": "shared-disk,bring-in"}, {"old": "old\n", ".hidden": "hidden\n"})
    assert pod.sh(pod.first, "cat /workspace/old /workspace/.hidden") == "old\nhidden\n"
    pod.sh(pod.second, "echo more >> /workspace/old")
    assert pod.sh(pod.first, "cat /workspace/old") == "old\nmore\n"
    assert (pod.volume / "old").read_text() == "old\n"
    assert pod.shares()


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({"dev.holdfast.volume.workspace": "shared"}, "'shared' is not shared-disk"),
        ({"dev.holdfast.volume.other": "shared-disk"}, "no volume other"),
        ({f"{HINTS}share": "all"}, "'all' is not one of"),
        ({**SHARED, f"{HINTS}share": "shared"}, "says something else"),
    ],
)
def test_what_makes_no_sense_is_refused(one: Node, annotations: dict[str, str], why: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        Pod(one, annotations)
    assert why in (refused.value.details() or "")
    assert not one.pods()


def test_a_part_of_such_a_volume_is_refused(one: Node) -> None:
    config = one.pod_config(annotations=SHARED)
    volume = emptydir(one, config)
    pod = one.run_pod(config)
    part = volume.parents[2] / "volume-subpaths/workspace/main/0"
    part.mkdir(parents=True)
    with pytest.raises(grpc.RpcError) as refused:
        one.create(pod, one.container_config(SLEEP, mounts=[mounted(part)]))
    assert "a part of volume workspace" in (refused.value.details() or "")


def test_it_outlives_the_container_that_had_it_first(one: Node) -> None:
    pod = Pod(one, SHARED)
    pod.sh(pod.first, "echo kept > /workspace/a")
    one.stop_container(pod.first)
    one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=pod.first))
    pod.first = one.run(pod.id, SLEEP, "first", attempt=1, mounts=[mounted(pod.volume)])
    assert pod.sh(pod.first, "cat /workspace/a") == "kept\n"
    assert pod.shares()


def test_read_only_for_one_of_them(one: Node) -> None:
    pod = Pod(one, SHARED)
    reader = one.run(pod.id, SLEEP, "reader", mounts=[mounted(pod.volume, readonly=True)])
    pod.sh(pod.first, "echo shown > /workspace/a")
    assert pod.sh(reader, "cat /workspace/a") == "shown\n"
    assert one.exec(reader, ["/bin/touch", "/workspace/b"]).exit_code != 0


def test_shared_memory_is_the_pods(one: Node) -> None:
    pod = Pod(one, {})
    pod.sh(pod.first, "echo here > /dev/shm/x")
    assert pod.sh(pod.second, "cat /dev/shm/x") == "here\n"


@pytest.mark.parametrize("dead", ["sentry", "sentry and shim", "sentry and daemon", "all"])
def test_nothing_is_left_in_the_volume(one: Node, dead: str) -> None:
    pod = Pod(one, SHARED)
    assert pod.shares() and filestores(pod.volume)
    sentry = one.pid(pod.first)
    if dead in ("sentry and shim", "all"):
        os.kill(shim(one, pod.id), signal.SIGKILL)
    if dead in ("sentry and daemon", "all"):
        one.kill()
        os.kill(sentry, signal.SIGKILL)
        one.start()
    else:
        kill_sentry(one, pod.first)
    assert one.exited(pod.second).exit_code == 137
    one.remove_pod(pod.id)
    assert not list(pod.volume.iterdir())
