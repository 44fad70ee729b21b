"""A restart on a full disk: what Holdfast and Debian's containerd show of the same three containers, side by side.

Each runtime has its root on an ext4 of 100 MiB of its own, with a pod of three containers: A created, B running, C
exited with 7. The daemon is killed, the disk filled to the last byte, root's share too, and the daemon started; then B
exits with 42, and at last there is room again. Needs root; no network. Exits non-zero unless Holdfast keeps every
promise; containerd is only looked at.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from holdfast.linux import cgroup, files, mount, process
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from peers import IMAGE, Containerd, Holdfast, Peer, images, pod_config

SIZE = 100 << 20
STATES = {0: "created", 1: "running", 2: "exited", 3: "unknown"}
STAGES = ("before", "killed, full, started", "B exited with 42", "killed and started, still full", "room again")
SCRIPTS = {"A": "exit 3", "B": "trap 'exit 42' TERM; while :; do sleep 0.05; done", "C": "exit 7"}
SECONDS = 20.0
console = Console(width=120, highlight=False)


class Failed(Exception):
    """A promise of Holdfast's that did not hold."""


@dataclass
class Play:
    """One runtime's part. `seen` is what it said at each stage."""

    peer: Peer
    disk: Path
    seen: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    start_time: int | None = None
    pod: str = ""

    @property
    def root(self) -> Path:
        return self.peer.base / "root"

    def make(self) -> None:
        peer, config = self.peer, pod_config(self.peer, 1)
        stub = peer.stub()
        self.pod = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=config), timeout=60).pod_sandbox_id
        for name in SCRIPTS:
            self.ids[name] = self.create(name)
        for name in ("B", "C"):
            stub.StartContainer(pb.StartContainerRequest(container_id=self.ids[name]), timeout=60)
        until(lambda: self.look()["C"].startswith("exited"), "C to exit")
        self.pid = self.pid_of(self.ids["B"])
        self.start_time = process.start_time(self.pid)

    def create(self, name: str) -> str:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=IMAGE),
            command=["/bin/sh", "-c", SCRIPTS[name]],
            linux=pb.LinuxContainerConfig(),
        )
        config.linux.security_context.namespace_options.network = pb.NODE
        request = pb.CreateContainerRequest(
            pod_sandbox_id=self.pod, config=config, sandbox_config=pod_config(self.peer, 1)
        )
        return str(self.peer.stub().CreateContainer(request, timeout=60).container_id)

    def pid_of(self, container: str) -> int:
        request = pb.ContainerStatusRequest(container_id=container, verbose=True)
        return int(json.loads(self.peer.stub().ContainerStatus(request, timeout=SECONDS).info["info"])["pid"])

    def look(self) -> dict[str, str]:
        """What the runtime says of each of the three: state, exit code and reason; and how often it lists a name."""
        found = dict.fromkeys(SCRIPTS, "not listed")
        stub = self.peer.stub()
        for one in stub.ListContainers(pb.ListContainersRequest(), timeout=SECONDS).containers:
            try:
                status = stub.ContainerStatus(pb.ContainerStatusRequest(container_id=one.id), timeout=SECONDS).status
            except grpc.RpcError as exc:
                text = f"no status: {exc.code().name.lower()}"
            else:
                text = STATES[status.state]
                text += f" {status.exit_code} {status.reason}" if status.state == pb.CONTAINER_EXITED else ""
            name = one.metadata.name
            found[name] = text if found[name] == "not listed" else f"{found[name]} and {text}"
        return found

    def record(self, stage: str) -> None:
        try:
            self.seen[stage] = self.look()
        except grpc.RpcError as exc:
            self.seen[stage] = dict.fromkeys(SCRIPTS, f"no answer: {exc.code().name.lower()}")

    def start(self) -> None:
        try:
            self.peer.start()
        except grpc.RpcError:
            self.notes.append("the daemon did not come up")

    def second_b(self) -> None:
        """What a kubelet does when its container is not in the list."""
        try:
            self.create("B")
        except grpc.RpcError as exc:
            self.notes.append(f"another container B was refused: {exc.code().name.lower()}")
        else:
            self.notes.append("another container B was made")

    def act(self) -> None:
        self.record(STAGES[0])
        self.peer.kill()
        fill(self.root)
        self.start()
        self.record(STAGES[1])
        self.second_b()
        if process.start_time(self.pid) == self.start_time:
            os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                until(lambda: process.start_time(self.pid) != self.start_time, "B to end")
        else:
            self.notes.append("B itself was ended")
        with contextlib.suppress(TimeoutError, grpc.RpcError):
            until(lambda: self.look()["B"].startswith("exited"), "B to be shown as exited", 5)
        self.record(STAGES[2])
        self.peer.kill()
        self.start()
        self.record(STAGES[3])
        (self.root / "hog").unlink()
        os.sync()
        self.peer.kill()
        self.start()
        self.record(STAGES[4])


def clear(peer: Peer) -> None:
    """End all that a runtime has, by itself as far as it knows, and then by hand."""
    with contextlib.suppress(grpc.RpcError, OSError):
        stub = peer.stub()
        for pod in stub.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=SECONDS).items:
            stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            stub.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
    with contextlib.suppress(OSError):
        cgroup.kill(peer.cgroup)
    for pid in peer.shim_pids():
        with process.pin(pid, None) as pinned:
            if pinned is not None:
                pinned.send(signal.SIGKILL)


def until(condition, what: str, seconds: float = SECONDS) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def fill(place: Path) -> None:
    """Every block of a filesystem."""
    size = 4 << 20
    with open(place / "hog", "wb", buffering=0) as file:
        while size >= 512:
            try:
                file.write(b"h" * size)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                size //= 2
        os.fsync(file.fileno())


@contextlib.contextmanager
def stage(peer: Peer, archives: list[Path]) -> Iterator[Play]:
    """The runtime, started, with its root on a disk of its own."""
    disk, root = peer.base / "disk", peer.base / "root"
    with open(disk, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    root.mkdir()
    subprocess.run(["mount", "-o", "loop", disk, root], check=True)
    try:
        peer.start()
        play = Play(peer, disk)
        try:
            for archive in archives:
                peer.load_image(archive)
            yield play
        finally:
            clear(play.peer)
            play.peer.stop()
    finally:
        with contextlib.suppress(OSError):
            mount.unmount_tree(str(peer.base))


def show(plays: list[Play]) -> None:
    table = Table(title="what the CRI says of A (created), B (running) and C (exited with 7)", show_lines=True)
    table.add_column("")
    for play in plays:
        table.add_column(play.peer.name)
    for when in STAGES:
        table.add_row(when, *("\n".join(f"{n}  {text}" for n, text in play.seen[when].items()) for play in plays))
    table.add_row("", *("\n".join(play.notes) for play in plays))
    console.print(table)


def check(play: Play) -> None:
    """Holdfast's promises."""
    still = {"A": "created", "B": "running", "C": "exited 7 Error"}
    later = {**still, "B": "exited 42 Error"}
    for when, expected in zip(STAGES, (still, still, later, later, later), strict=True):
        if play.seen[when] != expected:
            raise Failed(f"{when}: {play.seen[when]}, not {expected}")
    if play.notes != ["another container B was refused: already_exists"]:
        raise Failed("; ".join(play.notes) or "another container B was not refused")


def told(play: Callable[[Path], None], moral: str) -> int:
    """Play in a directory of its own, which a failure leaves to be looked at. Returns the exit status."""
    if os.geteuid() != 0:
        print("demo: needs root", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="hf-demo-"))
    try:
        play(base)
    except (Failed, TimeoutError, grpc.RpcError, subprocess.SubprocessError) as exc:
        print(f"demo: FAILED: {exc}\ndemo: kept for you to look at: {base}", file=sys.stderr)
        return 1
    files.remove_tree(base)
    print(f"demo: {moral}")
    return 0


def both(base: Path) -> None:
    """One runtime after the other."""
    plays = []
    archives = images(base)
    for kind, wanted in ((Holdfast, archives[:1]), (Containerd, archives)):
        with stage(kind(base, "crun"), wanted) as play:
            play.make()
            play.act()
            plays.append(play)
    show(plays)
    check(plays[0])


if __name__ == "__main__":
    sys.exit(told(both, "holdfast showed all three as they were, at every stage"))
