"""F02: what is mounted in a pod's emptyDir is out of it before a kubelet is told that the pod is gone.

The kubelet's part is played by what it does then: a plain recursive delete of the volume.
"""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from kit import disk
from kit.hung import Hung, shim_of, stopped, unknown
from kit.node import Node, node, until
from shares import MOUNT_ALL, digest, fill, shares

from holdfast.linux import mount
from holdfast.proto import runtime_v1_pb2 as pb

PRIVILEGED = pb.LinuxContainerSecurityContext(privileged=True)


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


@dataclass
class Volume:
    """A pod's emptyDir where a kubelet has it, `kubelet` being that one's root, and a share that is somebody else's."""

    life: Node
    kubelet: Path
    share: Path
    uid: str

    @property
    def path(self) -> Path:
        return self.kubelet / "pods" / self.uid / "volumes/kubernetes.io~empty-dir/work"

    def config(self, attempt: int = 0) -> pb.PodSandboxConfig:
        config = self.life.pod_config(f"pod-{self.uid}", attempt=attempt, privileged=True)
        config.metadata.uid = self.uid
        return config

    def run(self, pod: str, script: str, name: str = "main") -> str:
        mounts = [
            pb.Mount(host_path=str(self.path), container_path="/work", propagation=pb.PROPAGATION_BIDIRECTIONAL),
            pb.Mount(host_path=str(self.share), container_path="/shares"),
        ]
        linux = pb.LinuxContainerConfig(security_context=PRIVILEGED)
        return self.life.run(pod, script, name, mounts=mounts, linux=linux)

    def inside(self) -> list[str]:
        """What is mounted at the volume or below it."""
        return [one.target for one in mount.mountinfo() if f"{one.target}/".startswith(f"{self.path}/")]

    def tear_down(self) -> None:
        """As a kubelet that is told that the pod is gone: RemoveAll of the volume, wherever that leads."""
        shutil.rmtree(self.path)  # noqa: TID251  (that is the point)


@pytest.fixture
def volume(life: Node, request: pytest.FixtureRequest) -> Iterator[Volume]:
    """On a filesystem that hands on what is mounted in it, as a kubelet's has to."""
    place = life.base / request.node.originalname
    with disk.handed_on(place):
        one = Volume(life, place / "kubelet", place / "share", f"0b5e-{life.pods_made}")
        one.path.mkdir(parents=True)
        one.share.mkdir()
        yield one
    place.rmdir()


@contextlib.contextmanager
def mounted_by_hand(volume: Volume, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Each kind of thing that may be mounted in a volume, by where it is; canaries are in all but what hangs.

    What is mounted is in no peer group with the volume: otherwise a mount upon one is a mount upon the other.
    """
    with contextlib.ExitStack() as closing:
        loop = closing.enter_context(disk.small("ext4", tmp_path))
        mount.set_propagation(loop, mount.MS_PRIVATE)
        others = tmp_path / "others"
        others.mkdir()
        mount.mount("others", others, "tmpfs")
        closing.callback(mount.unmount_tree, others)
        mount.set_propagation(others, mount.MS_PRIVATE)
        outside, nest = others / "outside", others / "nested"
        found = {"loop": loop, "bind": outside, "nested": nest}
        for path in (outside, nest):
            path.mkdir()
        for name in found:
            (volume.path / "deep" / name).mkdir(parents=True)
            mount.bind(found[name], volume.path / "deep" / name)
        (nest / "again").mkdir()
        mount.bind(outside, volume.path / "deep/nested/again")  # a mount in a mount
        mount.bind(loop, volume.path / "deep/bind")  # upon another
        (volume.path / "file").touch()
        (outside / "one").write_text("a file of somebody else\n")
        mount.bind(outside / "one", volume.path / "file")
        for odd in ("white space\\", os.fsdecode(b"\xff")):
            (volume.path / odd).mkdir()
            mount.bind(outside, volume.path / odd)
        (volume.path / "hung").mkdir()
        hung = Hung(volume.path / "hung")
        closing.callback(hung.release)
        (volume.path / "to").symlink_to(outside)
        yield found


def test_f02_a_kubelet_that_deletes_an_empty_dir_finds_nothing_of_others(
    life: Node, volume: Volume, tmp_path: Path
) -> None:
    """A share that a container has mounted itself, and whatever else can be mounted, by hand."""
    pod = life.run_pod(volume.config())
    known = fill(volume.share)
    script = "mkdir /work/share && mount --bind /shares /work/share && touch /work/done && exec sleep 1000"
    container = volume.run(pod, script)
    until((volume.path / "done").exists, "the container to have mounted the share")
    assert digest(volume.path / "share") == known, "the mount is on the host, too"
    with mounted_by_hand(volume, tmp_path) as found:
        digests = {path: fill(path) for path in found.values()}
        pid = life.pid(container)
        life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert not os.path.exists(f"/proc/{pid}")
        assert volume.inside() == []
        life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        volume.tear_down()
        assert {path: digest(path) for path in digests} == digests
    assert digest(volume.share) == known
    for told in (life.log(), life.cli("events", "--since", "0", "--no-follow").stdout):
        assert f"{volume.path}/share (" in told and f"{volume.path}/\\udcff (" in told, "what was detached is told"


def test_f02_a_tree_that_was_bound_into_a_volume_stays_whole_where_it_comes_from(
    life: Node, volume: Volume, tmp_path: Path
) -> None:
    """To unmount a copy of shared mounts is to unmount the originals as well (mount_namespaces(7))."""
    tree = tmp_path / "tree"
    tree.mkdir()
    mount.mount("tree", tree, "tmpfs")
    try:
        mount.set_propagation(tree, mount.MS_SHARED)
        (tree / "nas").mkdir()
        mount.mount("nas", tree / "nas", "tmpfs")
        known = fill(tree / "nas")
        (volume.path / "tree").mkdir()
        mount.bind(tree, volume.path / "tree", recursive=True)
        mount.bind(tree, volume.path, recursive=True)  # and upon the volume itself
        assert len(volume.inside()) == 4
        life.remove_pod(life.run_pod(volume.config()))
        assert volume.inside() == []
        volume.tear_down()
        assert {str(tree), str(tree / "nas")} <= {one.target for one in mount.mountinfo()}
        assert digest(tree / "nas") == known
    finally:
        mount.unmount_tree(tree)


def test_f02_the_case_from_production(life: Node, volume: Volume) -> None:
    """Its task is UNKNOWN and its shim stopped; the pod's delete is requested; the shim is killed by hand."""
    pod = life.run_pod(volume.config())
    with shares(volume.share) as found:
        known = {kind: digest(path) for kind, path in found.items()}
        container = volume.run(pod, f"{MOUNT_ALL} while ! test -e /work/gate; do sleep 0.01; done")
        until((volume.path / "mounted").exists, "the container to have mounted the shares")
        mounted = set(volume.inside())
        assert {Path(one).name for one in mounted} == found.keys()
        with unknown(life, pod, container, (volume.path / "gate").touch) as shim:
            with pytest.raises(grpc.RpcError):
                life.stop_container(container)
            assert set(volume.inside()) == mounted, "nothing is detached of what may be in use"
            assert {kind: digest(volume.path / kind) for kind in found if kind != "file"} == {
                kind: known[kind] for kind in found if kind != "file"
            }
            os.kill(shim, signal.SIGKILL)
            until(lambda: life.status(container).state == pb.CONTAINER_EXITED, "it to be known that it has ended")
        life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        volume.tear_down()
        assert {kind: digest(path) for kind, path in found.items()} == known
    events = life.cli("events", "--since", "0", "--no-follow").stdout
    for told in (life.log(), events):
        assert all(f"{volume.path}/{kind} (" in told for kind in found), "what was detached is told"


@pytest.mark.parametrize("seconds", [3.0, 60.0])
def test_f02_a_shim_that_stands_still_while_its_container_runs(life: Node, volume: Volume, seconds: float) -> None:
    """A stop that a kubelet gives up, and one that it waits for: success is only said when nothing of the pod lives."""
    pod = life.run_pod(volume.config())
    with shares(volume.share) as found:
        known = {kind: digest(path) for kind, path in found.items()}
        container = volume.run(pod, f"{MOUNT_ALL} exec sleep 1000")
        until((volume.path / "mounted").exists, "the container to have mounted the shares")
        pid = life.pid(container)
        with stopped(shim_of(life, pod)), contextlib.suppress(grpc.RpcError):
            life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), seconds)
            assert not os.path.exists(f"/proc/{pid}"), "it was said to be stopped, and its process lives"
            assert volume.inside() == []
        life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert not os.path.exists(f"/proc/{pid}")
        life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        volume.tear_down()
        assert {kind: digest(path) for kind, path in found.items()} == known


def test_what_a_kubelet_has_mounted_for_a_volume_in_memory_is_its_own(life: Node, volume: Volume) -> None:
    """It is the kubelet's to unmount, as are the parts of it that containers get; what lies upon it or in it is not."""
    known = fill(volume.share)
    mount.mount("tmpfs", volume.path, "tmpfs")
    part = volume.kubelet / "pods" / volume.uid / "volume-subpaths/work/main/0"
    part.mkdir(parents=True)
    mount.bind(volume.path, part)
    (volume.path / "in").mkdir()
    mount.bind(volume.share, volume.path / "in")
    mount.bind(volume.share, volume.path)
    pod = life.run_pod(volume.config())
    life.remove_pod(pod)
    (own,) = [one for one in mount.mountinfo() if f"{one.target}/".startswith(f"{volume.path}/")]
    assert (own.target, own.fstype) == (str(volume.path), "tmpfs")
    assert os.listdir(volume.path) == ["in"]
    assert digest(volume.share) == known


def test_f02_memory_of_somebody_else_upon_a_volume_on_disk(life: Node, volume: Volume, tmp_path: Path) -> None:
    """Only what it is made of is as with a volume in memory."""
    mount.mount("nas", tmp_path, "tmpfs")
    try:
        known = fill(tmp_path)
        mount.bind(tmp_path, volume.path)
        life.remove_pod(life.run_pod(volume.config()))
        assert volume.inside() == []
        volume.tear_down()
        assert digest(tmp_path) == known
    finally:
        mount.unmount(tmp_path)


def test_what_the_same_pod_s_next_sandbox_uses_stays(life: Node, volume: Volume) -> None:
    """A kubelet that makes a pod's sandbox anew removes the old one when it sees fit."""
    old = life.run_pod(volume.config())
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=old))
    new = life.run_pod(volume.config(attempt=1))
    (volume.path / "share").mkdir()
    mount.bind(volume.share, volume.path / "share")
    life.remove_pod(old)
    assert volume.inside() == [f"{volume.path}/share"]
    life.remove_pod(new)
    assert volume.inside() == []


def test_what_does_not_go_keeps_the_stop_from_being_answered(life: Node, volume: Volume) -> None:
    pod = life.run_pod(volume.config())
    request = pb.StopPodSandboxRequest(pod_sandbox_id=pod)
    life.call("StopPodSandbox", request)
    (volume.path / "share").mkdir()
    mount.bind(volume.share, volume.path / "share")
    rule = life.inject / "fail-umount"
    rule.write_text(f"1 {errno.EIO} 1000")
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        with pytest.raises(grpc.RpcError) as refused:
            life.call(method, request)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"{volume.path}/share" in refused.value.details()
    rule.unlink()
    assert volume.inside() == [f"{volume.path}/share"]
    life.restart()
    life.call("StopPodSandbox", request)
    assert volume.inside() == []
    life.remove_pod(pod)


def test_mounts_of_others_stay(life: Node, volume: Volume) -> None:
    """Another pod's volumes, other kinds of volumes, and what only looks alike."""
    pods = volume.kubelet / "pods"
    others = [
        pods / f"{volume.uid}0" / "volumes/kubernetes.io~empty-dir/work/share",
        pods / volume.uid / "volumes/kubernetes.io~nfs/share",
        pods / volume.uid / "volume-subpaths/work/main/0",
        volume.kubelet / volume.uid / "volumes/kubernetes.io~empty-dir/work/share",
    ]
    for path in others:
        path.mkdir(parents=True)
        mount.bind(volume.share, path)
    life.remove_pod(life.run_pod(volume.config()))
    targets = {one.target for one in mount.mountinfo()}
    assert {str(path) for path in others} <= targets
    subprocess.run(["umount", *map(str, others)], check=True)
