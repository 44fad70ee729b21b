"""F02, the agent's part: what others have mounted in a pod's emptyDir outlives the pod, whatever dies or hangs.

The pod's privileged container mounts a share of each kind in its volume. Nobody tears that volume down before it is
proven that the container is dead.
"""

import contextlib
import fcntl
import os
import signal
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import IMAGE, Agent, Other, running_agent
from kit.containerd import serving_cri
from kit.hung import shim_of, stopped, unknown
from kit.node import Node, node
from shares import KINDS, MOUNT_ALL, digest, shares

from holdfast.linux import mount, process

FS_IOC_SETFLAGS, IMMUTABLE = 0x40086602, 0x10

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {{name: nas}}
spec:
  hostNetwork: true
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {image}
    securityContext: {{privileged: true}}
    command: [sh, -c, {script!r}]
    volumeMounts:
    - {{name: work, mountPath: /work, mountPropagation: Bidirectional}}
    - {{name: shares, mountPath: /shares, mountPropagation: HostToContainer}}
  volumes:
  - {{name: work, emptyDir: {{}}}}
  - {{name: shares, hostPath: {{path: {shares}, type: Directory}}}}
"""
SCRIPT = "; ".join([*MOUNT_ALL.strip().splitlines(), "while ! test -e /work/gate; do sleep 0.01; done"])


@contextlib.contextmanager
def handing_on(place: Path) -> Iterator[Path]:
    """A filesystem that hands on what is mounted in it, as the agent's root has to be on."""
    mount.mount("node", place, "tmpfs")
    try:
        mount.set_propagation(place, mount.MS_SHARED)
        yield place
    finally:
        mount.unmount_tree(place)
        place.rmdir()


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with handing_on(Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))) as place:
        base = place / f"{place.name}-n"
        base.mkdir()
        with node(base=base) as one:
            yield one


class Pod:
    """Shares of others, and the pod that has mounted them in its volume."""

    def __init__(self, there: Agent, found: dict[str, Path]) -> None:
        self.there, self.found = there, found
        self.known = {kind: digest(path) for kind, path in found.items()}
        self.manifest = MANIFEST.format(image=IMAGE, script=SCRIPT, shares=found["directory"].parent)

    def begin(self) -> None:
        """Once it is wanted: until all is mounted."""
        self.there.until(
            lambda: list(self.there.root.glob("pods/*/volumes/*/work/mounted")), "the shares to be mounted"
        )
        (self.volume,) = self.there.root.glob("pods/*/volumes/*/work")
        self.id = self.there.running("main")
        (self.sandbox,) = [one.id for one in self.there.node.pods()]
        assert {Path(one).name for one in self.mounted()} == KINDS.keys()

    def mounted(self) -> list[str]:
        """What is mounted in its volume."""
        return sorted(one.target for one in mount.mountinfo() if one.target.startswith(f"{self.volume}/"))

    def described(self) -> str:
        return self.there.cli("describe", "pod", "nas", check=False).stdout

    def says_why(self) -> bool:
        """The agent, of its container that cannot be ended."""
        return f"cannot stop container {self.id} yet" in self.described()

    def has_told(self, text: str) -> bool:
        """Of all that was detached."""
        return all(f"detached what was mounted in volume work: {self.volume}/{kind} (" in text for kind in KINDS)

    def is_whole(self) -> bool:
        """Nothing of it has been torn down, and nothing of others has changed."""
        inside = {kind: digest(self.volume / kind) for kind in KINDS if kind != "file"}
        files = os.path.exists(self.volume / "gate") and os.path.exists(self.volume / "mounted")
        return files and inside == {kind: self.known[kind] for kind in inside} and self.others_are_whole()

    def others_are_whole(self) -> bool:
        return {kind: digest(path) for kind, path in self.found.items()} == self.known


@pytest.fixture
def pod(shared: Node) -> Iterator[Pod]:
    with running_agent(shared) as there, shares(there.base / "shares") as found:
        yield Pod(there, found)
        if shared.process is not None and shared.process.poll() is not None:
            shared.start()


def set_flags(path: Path, flags: int) -> None:
    """chattr(1)."""
    with path.open("rb") as file:
        fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("l", flags))


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """A file that nobody can delete meanwhile: what it is in stays to be looked at."""
    path.touch()
    set_flags(path, IMMUTABLE)
    try:
        yield
    finally:
        for one in (path, *path.parents[5].glob(f"trash/*/{path.name}")):
            with contextlib.suppress(FileNotFoundError):
                set_flags(one, 0)


def test_f02_a_pod_whose_task_is_unknown_and_whose_manifest_goes(pod: Pod) -> None:
    """Nothing goes while nobody knows; the shim is killed by hand, and what was detached is told."""
    there = pod.there
    there.write("nas.yaml", pod.manifest)
    pod.begin()
    mounted = pod.mounted()
    with unknown(there.node, pod.sandbox, pod.id, (pod.volume / "gate").touch) as shim, kept(pod.volume / "kept"):
        (there.manifests / "nas.yaml").unlink()
        there.until(lambda: there.shown("nas")[3:] == ["Terminating"], "the pod to be deleted")
        there.until(pod.says_why, "it to be said why the pod stays")
        assert pod.mounted() == mounted
        assert pod.is_whole()
        os.kill(shim, signal.SIGKILL)
        there.until(lambda: f"{there.root}/trash/" in pod.described(), "it to be said what cannot be deleted")
        assert pod.has_told(pod.described())
        assert pod.others_are_whole()
    there.until(lambda: not there.left(), "nothing to be left")
    assert pod.others_are_whole()


def test_f02_a_pod_whose_task_is_unknown_is_deleted_while_agent_and_daemon_die(pod: Pod) -> None:
    there = pod.there
    (there.base / "nas.yaml").write_text(pod.manifest)
    there.until(lambda: (there.root / "agent.sock").exists(), "the agent's socket")
    there.cli("apply", "-f", str(there.base / "nas.yaml"))
    pod.begin()
    mounted = pod.mounted()
    with unknown(there.node, pod.sandbox, pod.id, (pod.volume / "gate").touch) as shim:
        there.cli("delete", "pod", "nas", "--no-wait")
        there.end(signal.SIGKILL)
        there.node.restart()
        there.start()
        there.until(pod.says_why, "the next agent to say why the pod stays")
        there.end(signal.SIGKILL)
        there.node.kill()
        assert pod.mounted() == mounted
        assert pod.is_whole()
        os.kill(shim, signal.SIGKILL)
        there.node.start()
        there.start()
        there.until(lambda: not there.left(), "nothing to be left")
    assert pod.others_are_whole()
    assert pod.has_told(there.log())


def test_f02_a_pod_whose_shim_stands_still_while_it_runs(pod: Pod) -> None:
    """The kernel tells what the shim does not: the pod goes without anybody's help, and nothing of others with it."""
    there = pod.there
    there.write("nas.yaml", pod.manifest)
    pod.begin()
    mounted, pid = pod.mounted(), there.node.pid(pod.id)
    begun = process.start_time(pid)

    def is_gone() -> bool:
        if pod.mounted() != mounted:
            assert process.state(pid) in ("Z", "X", "") or process.start_time(pid) != begun, (
                "its volume is taken apart, and it lives"
            )
        return not there.left()

    with stopped(shim_of(there.node, pod.sandbox)):
        (there.manifests / "nas.yaml").unlink()
        there.until(is_gone, "nothing to be left")
    assert pod.others_are_whole()


def test_f02_what_the_host_has_mounted_in_a_volume(pod: Pod) -> None:
    """By hand, while no agent is there to see it: in the volume, one upon the other, and upon the volume itself."""
    there = pod.there
    there.write("nas.yaml", pod.manifest)
    pod.begin()
    there.end(signal.SIGKILL)
    for number, kind in enumerate(("ext4", "tmpfs", "fuse")):
        (pod.volume / f"host-{number}").mkdir()
        mount.bind(pod.found[kind], pod.volume / f"host-{number}")
    mount.bind(pod.found["ext4"], pod.volume / "host-1")
    mount.bind(pod.found["tmpfs"], pod.volume)
    (there.manifests / "nas.yaml").unlink()
    there.start()
    there.until(lambda: not there.left(), "nothing to be left")
    assert pod.others_are_whole()
    assert not pod.mounted()


def test_f02_an_agent_beside_containerd(tmp_path: Path) -> None:
    """Which takes nothing out of volumes: so the agent does."""
    with (
        serving_cri() as runtime,
        handing_on(tmp_path),
        running_agent(Other(runtime, tmp_path)) as there,
        shares(there.base / "shares") as found,
    ):
        pod = Pod(there, found)
        there.write("nas.yaml", pod.manifest)
        pod.begin()
        (there.manifests / "nas.yaml").unlink()
        there.until(lambda: not there.left(), "nothing to be left")
        assert pod.others_are_whole()
        assert pod.has_told(there.log())
