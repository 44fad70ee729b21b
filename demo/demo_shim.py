"""The death of a shim and of its daemon at once: what becomes of a container in Holdfast and in Debian's containerd.

It counts, ten times a second, into a file and to its log. Its shim and the daemon are killed with SIGKILL at the same
moment, and the daemon is started again; then the container's process is told to end with 42. Both runtimes have
directories of their own. Needs root; no network. Exits non-zero unless Holdfast keeps every promise; containerd is
only looked at.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.table import Table

from holdfast.linux import cgroup, mount, process
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from demo_full_disk import SECONDS, STATES, Failed, clear, console, told, until
from peers import IMAGE, Containerd, Holdfast, Peer, images, pod_config, running

COUNT = "trap 'exit 42' TERM; n=0; while :; do n=$((n+1)); echo $n > /data/count; echo count $n; sleep 0.1; done"
STAGES = ("before", "shim and daemon killed, daemon started", "the process told to end with 42")
WATCH_SECONDS = 3.0


@dataclass
class Play:
    """One runtime's part. `seen` is what the CRI said, what the process did, and what the log has, at each stage."""

    peer: Peer
    seen: dict[str, list[str]] = field(default_factory=dict)
    id: str = ""
    pid: int = 0
    start_time: int | None = None

    def act(self) -> None:
        self.make()
        until(lambda: self.count() > 5, "it to count")
        self.record(STAGES[0])
        self.strike()
        before = self.count()
        with contextlib.suppress(TimeoutError):
            until(lambda: self.count() > before + 5, "it to count on", WATCH_SECONDS)
        self.record(STAGES[1])
        if self.lives():
            os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            until(lambda: not self.lives(), "it to end", WATCH_SECONDS)
            until(lambda: self.said().startswith("exited"), "its exit to be seen", WATCH_SECONDS)
        self.record(STAGES[2])

    def make(self) -> None:
        stub, sandbox = self.peer.stub(), pod_config(self.peer, 1)
        pod = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=sandbox), timeout=60).pod_sandbox_id
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="counter"),
            image=pb.ImageSpec(image=IMAGE),
            command=["/bin/sh", "-c", COUNT],
            log_path="counter.log",
            mounts=[pb.Mount(host_path=str(self.data), container_path="/data")],
            linux=pb.LinuxContainerConfig(),
        )
        config.linux.security_context.namespace_options.network = pb.NODE
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        self.data.mkdir()
        self.id = stub.CreateContainer(request, timeout=60).container_id
        stub.StartContainer(pb.StartContainerRequest(container_id=self.id), timeout=60)
        until(lambda: self.count() > 0, "it to begin")
        self.pid = self.find()
        self.start_time = process.start_time(self.pid)

    def strike(self) -> None:
        """The shim and the daemon at once; then the daemon again."""
        daemon = self.peer.process
        assert daemon is not None
        for pid in (*self.peer.shim_pids(), daemon.pid):
            os.kill(pid, signal.SIGKILL)
        self.peer.kill()
        self.peer.start()

    @property
    def data(self) -> Path:
        return self.peer.base / "data"

    def count(self) -> int:
        """How far it has counted; the file is empty for a moment each time."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.data / "count").read_text())
        return 0

    def find(self) -> int:
        """The pid of the container's init: the one of the cgroup whose parent is outside of it."""
        inside = cgroup.pids(f"{self.peer.cgroup}/1/{self.id}")
        return min(inside, key=lambda pid: process.start_time(pid) or 0)

    def lives(self) -> bool:
        return process.start_time(self.pid) == self.start_time and process.state(self.pid) not in ("Z", "X", "")

    def said(self) -> str:
        """State, exit code and reason by the CRI."""
        request = pb.ContainerStatusRequest(container_id=self.id)
        try:
            status = self.peer.stub().ContainerStatus(request, timeout=SECONDS).status
        except grpc.RpcError as exc:
            return f"no status: {exc.code().name.lower()}"
        code = f" {status.exit_code} {status.reason}" if status.state == pb.CONTAINER_EXITED else ""
        return STATES[status.state] + code

    def record(self, stage: str) -> None:
        first = self.count()
        with contextlib.suppress(TimeoutError):
            until(lambda: self.count() > first, "it to count", 1)
        counts = "counts on" if self.count() > first else "does not count"
        process = f"pid {self.pid} lives and {counts}" if self.lives() else f"pid {self.pid} is gone"
        self.seen[stage] = [f"the CRI says: {self.said()}", process, self.log()]

    def log(self) -> str:
        """Whether every number up to the last is in the log, or accounted for."""
        text = (self.peer.base / "pod-logs" / "counter.log").read_text()
        words = [line.split(" ", 3)[3] for line in text.splitlines()]
        numbers = {int(word.split()[1]) for word in words if word.startswith("count ")}
        lost = " and a line that says what is lost" if any("holdfast: lost" in word for word in words) else ""
        return f"its log has {len(numbers)} of {max(numbers)} numbers{lost}"


def show(plays: list[Play]) -> None:
    table = Table(title="a container that counts, its shim and its daemon SIGKILLed at once", show_lines=True)
    table.add_column("")
    for play in plays:
        table.add_column(play.peer.name)
    for when in STAGES:
        table.add_row(when, *("\n".join(play.seen[when]) for play in plays))
    console.print(table)


def check(play: Play) -> None:
    """Holdfast's promises."""
    runs = ["the CRI says: running", f"pid {play.pid} lives and counts on"]
    ended = ["the CRI says: exited 42 Error", f"pid {play.pid} is gone"]
    for when, expected in zip(STAGES, (runs, runs, ended), strict=True):
        if play.seen[when][:2] != expected:
            raise Failed(f"{when}: {play.seen[when]}, not {expected}")


def both(base: Path) -> None:
    """One runtime after the other."""
    plays = []
    archives = images(base)
    for kind, wanted in ((Holdfast, archives[:1]), (Containerd, archives)):
        play = Play(kind(base, "crun"))
        plays.append(play)
        with running(play.peer, wanted):
            try:
                play.act()
            finally:
                clear(play.peer)
        with contextlib.suppress(OSError):
            mount.unmount_tree(str(play.peer.base))
    show(plays)
    check(plays[0])


if __name__ == "__main__":
    sys.exit(told(both, "in holdfast it was the same process that went on, and its exit code was exact"))
