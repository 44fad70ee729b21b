"""The end of a pod in whose emptyDir others' shares are mounted: what a kubelet's delete leaves of them.

A privileged container mounts a share of each kind in its volume, with bidirectional propagation. Its shim stands still
(SIGSTOP), so that nobody can tell of its task; the pod is to be stopped. The shim is killed by hand, the pod is stopped
and removed, and then the volume is deleted as a kubelet does it: recursively, wherever that leads. Once under Holdfast,
once under Debian's containerd. Needs root; no network. Exits non-zero unless Holdfast's part leaves every canary as it
was; containerd is only looked at. With --docs the table is printed as docs/DATA.md has it.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.table import Table

from holdfast.linux import mount
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from demo_full_disk import Failed, clear, console, told, until
from peers import IMAGE, Containerd, Holdfast, Peer, environment, images, pod_config, running
from shares import FILES, KINDS, MOUNT_ALL, alive, digest, shares

IMPATIENT_SECONDS = 2.0  # a kubelet waits for two minutes, and asks again
SECONDS = 60.0


class Sharing(Containerd):
    """It shares its mounts with the host, as a node's does."""

    private = "/sys/fs/cgroup"


@dataclass
class Play:
    """One runtime's part."""

    peer: Peer
    said: dict[str, str] = field(default_factory=dict)  # by what was done
    canaries: dict[str, tuple[int, bool]] = field(default_factory=dict)  # by kind: how many are left; all is as it was
    pod: str = ""

    @property
    def volume(self) -> Path:
        return self.peer.base / "node/pods/uid-1/volumes/kubernetes.io~empty-dir/work"

    def act(self, found: dict[str, Path]) -> None:
        known = {kind: digest(path) for kind, path in found.items()}
        self.volume.mkdir(parents=True)
        self.make(found["directory"].parent)
        until((self.volume / "mounted").exists, "the container to have mounted the shares")
        shims = self.peer.shim_pids()
        for pid in shims:
            os.kill(pid, signal.SIGSTOP)
        self.said["StopPodSandbox, its shim standing still"] = self.ask("StopPodSandbox", IMPATIENT_SECONDS)
        for pid in shims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.said["StopPodSandbox, its shim killed by hand"] = self.ask("StopPodSandbox", SECONDS)
        self.said["RemovePodSandbox"] = self.ask("RemovePodSandbox", SECONDS)
        inside = [one for one in mount.mountinfo() if one.target.startswith(f"{self.volume}/")]
        self.said["mounted in the volume then"] = f"{len(inside)} mounts" if inside else "nothing"
        shutil.rmtree(self.volume, ignore_errors=True)  # noqa: TID251  (that is the point)
        self.canaries = {kind: (alive(path), digest(path) == known[kind]) for kind, path in found.items()}

    def make(self, place: Path) -> None:
        stub, sandbox = self.peer.stub(), pod_config(self.peer, 1)
        sandbox.linux.security_context.privileged = True
        self.pod = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=sandbox), timeout=SECONDS).pod_sandbox_id
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=IMAGE),
            command=["/bin/sh", "-c", f"{MOUNT_ALL} exec sleep 1000"],
            log_path="main.log",
            mounts=[
                pb.Mount(host_path=str(self.volume), container_path="/work", propagation=pb.PROPAGATION_BIDIRECTIONAL),
                pb.Mount(host_path=str(place), container_path="/shares"),
            ],
            linux=pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True)),
        )
        config.linux.security_context.namespace_options.network = pb.NODE
        request = pb.CreateContainerRequest(pod_sandbox_id=self.pod, config=config, sandbox_config=sandbox)
        container = stub.CreateContainer(request, timeout=SECONDS).container_id
        stub.StartContainer(pb.StartContainerRequest(container_id=container), timeout=SECONDS)

    def ask(self, method: str, seconds: float) -> str:
        request = getattr(pb, f"{method}Request")(pod_sandbox_id=self.pod)
        try:
            getattr(self.peer.stub(), method)(request, timeout=seconds)
        except grpc.RpcError as exc:
            return str(exc.code().name.lower())
        return "done"


@contextlib.contextmanager
def stage(peer: Peer, archives: list[Path]) -> Iterator[dict[str, Path]]:
    """The runtime, started, with shares on a filesystem that hands on what is mounted in it, as a node's does."""
    place = peer.base / "node"
    place.mkdir()
    mount.mount("node", place, "tmpfs")
    try:
        mount.set_propagation(place, mount.MS_SHARED)
        with shares(place / "shares") as found, running(peer, archives):
            try:
                yield found
            finally:
                clear(peer)
                mount.unmount_tree(place / "pods")
    finally:
        with contextlib.suppress(OSError):
            mount.unmount_tree(str(peer.base))


def show(plays: list[Play]) -> None:
    table = Table(title="others' shares in a pod's volume, after its recursive delete")
    table.add_column("")
    for play in plays:
        table.add_column(play.peer.name)
    for step in plays[0].said:
        table.add_row(step, *(play.said[step] for play in plays))
    table.add_section()
    for kind, words in KINDS.items():
        table.add_row(words, *(left(play, kind) for play in plays))
    console.print(table)


def left(play: Play, kind: str) -> str:
    return f"{play.canaries[kind][0]} of {FILES} files left"


def docs(plays: list[Play]) -> Iterator[str]:
    """The same in Markdown."""
    yield f"Measured {time.strftime('%Y-%m-%d')} by `demo/demo_volumes.py --docs`: {environment()}."
    yield ""
    yield f"| what is mounted in the volume | {' | '.join(play.peer.name for play in plays)} |"
    yield f"| --- |{' --- |' * len(plays)}"
    for kind, words in KINDS.items():
        yield f"| {words} | {' | '.join(left(play, kind) for play in plays)} |"


def check(play: Play) -> None:
    """Holdfast's promise."""
    lost = [KINDS[kind] for kind, (number, same) in play.canaries.items() if number != FILES or not same]
    if lost:
        raise Failed(f"files were lost in {', '.join(lost)}")
    if play.volume.exists():
        raise Failed("the volume is still there")


def both(base: Path) -> None:
    """One runtime after the other."""
    plays = []
    archives = images(base)
    for kind, wanted in ((Holdfast, archives[:1]), (Sharing, archives)):
        play = Play(kind(base, "crun"))
        plays.append(play)
        with stage(play.peer, wanted) as found:
            play.act(found)
            if kind is Holdfast:
                check(play)
    if "--docs" in sys.argv:
        print("\n".join(docs(plays)))
    else:
        show(plays)


if __name__ == "__main__":
    sys.exit(told(both, "under holdfast not one file of others was lost"))
