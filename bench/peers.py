"""The runtimes under test, each a real daemon in directories of its own, driven over the same CRI."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from image import build_busybox_image

from holdfast.linux import cgroup
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

BIN = Path(sys.executable).parent
IMAGE = "docker.io/bench/busybox:latest"
PAUSE = "docker.io/bench/pause:latest"  # containerd's sandbox container; busybox asleep, some KiB more than the usual
START_SECONDS = 60.0


class Peer:
    """A daemon that can be started, killed and started again."""

    name = ""

    def __init__(self, base: Path, runtime: str) -> None:
        self.base = base / self.name
        self.base.mkdir()
        self.runtime = runtime
        self.socket = self.base / "cri.sock"
        self.cgroup = f"/{base.name}-{self.name}"
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def load_image(self, archive: Path) -> None:
        raise NotImplementedError

    def shim_pids(self) -> list[int]:
        """The processes that exist because of pods, other than the containers themselves."""
        raise NotImplementedError

    def daemon_pids(self) -> list[int]:
        """The processes that there is one of, however many pods there are."""
        assert self.process is not None
        return [self.process.pid]

    def start(self) -> float:
        """Returns the seconds from exec until ListContainers is answered."""
        began = time.monotonic()
        with open(self.base / "log", "ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        deadline = began + START_SECONDS
        while True:
            try:
                with grpc.insecure_channel(f"unix:{self.socket}") as channel:
                    RuntimeServiceStub(channel).ListContainers(pb.ListContainersRequest(), timeout=START_SECONDS)
                    return time.monotonic() - began
            except grpc.RpcError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.005)

    def stub(self) -> RuntimeServiceStub:
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        return RuntimeServiceStub(self._channel)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)
        with contextlib.suppress(OSError):
            cgroup.remove(self.cgroup)

    def _end(self, number: int) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=30)


class Holdfast(Peer):
    name = "holdfast"

    def command(self) -> list[str]:
        config = self.base / "config.toml"
        config.write_text(
            f'cgroup_root = "{self.cgroup}"\ndefault_runtime = "{self.runtime}"\nlog_root = "{self.base}/logs"\n'
            'log_level = "warning"\n'
        )
        state = ["--root", f"{self.base}/root", "--state", f"{self.base}/state"]
        return [str(BIN / "holdfastd"), *state, "--socket", str(self.socket), "--config", str(config)]

    def load_image(self, archive: Path) -> None:
        command = [BIN / "holdfast", "--socket", self.socket, "image", "import", archive]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def shim_pids(self) -> list[int]:
        from holdfast.runtime.keeper import workers

        return [worker.pid for worker in workers(self.base / "state") if worker.kind == "shim"]

    def daemon_pids(self) -> list[int]:
        """With the keeper and its template."""
        found = [*super().daemon_pids(), (keeper := self._keeper())]
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return found + [int(child) for child in children if int(child) not in self.shim_pids()]

    def _keeper(self) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.connect(str(self.base / "state" / "keeper.sock"))
            return int(struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

    def stop(self) -> None:
        from holdfast.runtime.keeper import shut_down

        super().stop()
        shut_down(self.base / "state")


class Containerd(Peer):
    name = "containerd"
    private = "/"  # what of the host's mounts it does not share with the host, in neither direction

    def command(self) -> list[str]:
        config = self.base / "config.toml"
        config.write_text(
            f"""version = 2
root = "{self.base}/root"
state = "{self.base}/state"
[grpc]
address = "{self.socket}"
[ttrpc]
address = "{self.base}/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{self.base}/cni-bin"
conf_dir = "{self.base}/cni-conf"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{self.runtime}"
"""
        )
        # The cgroup2 mount of a hybrid host is hidden from the whole daemon, which is what crun needs; nothing is
        # added to its paths that way.
        hide = f"mount --make-rprivate {self.private} && umount -l /sys/fs/cgroup/unified 2>/dev/null"
        return ["unshare", "-m", "--propagation", "unchanged", "sh", "-c", f"{hide}; exec containerd --config {config}"]

    def load_image(self, archive: Path) -> None:
        command = ["ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", archive]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def shim_pids(self) -> list[int]:
        """Shims and pause containers: a pod's cost before it does anything."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self._is_ours((entry / "cmdline").read_text().split("\0")):
                    found.append(int(entry.name))
        return found

    def _is_ours(self, argv: list[str]) -> bool:
        return str(self.socket) in argv and "containerd-shim" in argv[0]


def images(base: Path) -> list[Path]:
    """Archives of IMAGE and PAUSE."""
    (base / "pause").mkdir()
    return [
        build_busybox_image(base, "bench/busybox:latest"),
        build_busybox_image(base / "pause", "bench/pause:latest", Cmd=["/bin/sleep", "infinity"]),
    ]


def pss(pid: int) -> int:
    """Proportional set size in KiB (proc(5), smaps_rollup)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


@contextlib.contextmanager
def running(peer: Peer, archives: list[Path]) -> Iterator[Peer]:
    peer.start()
    try:
        for archive in archives:
            peer.load_image(archive)
        yield peer
    finally:
        peer.stop()


def pod_config(peer: Peer, number: int) -> pb.PodSandboxConfig:
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER, ipc=pb.POD)
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=f"pod-{number}", namespace="bench", uid=f"uid-{number}"),
        log_directory=str(peer.base / "pod-logs"),
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=f"{peer.cgroup}/{number}",
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=options),
        ),
    )


def container_config(number: int) -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=f"c-{number}"),
        image=pb.ImageSpec(image=IMAGE),
        command=["/bin/sleep", "100000"],
        log_path=f"c-{number}.log",
        linux=pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(
                namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER, ipc=pb.POD)
            )
        ),
    )


def environment() -> str:
    """One line on where this was measured."""
    versions = [
        subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
        for name in ("containerd", "crun", "runc")
    ]
    firsts = "; ".join(text.splitlines()[0].strip() for text in versions if text)
    return f"{os.cpu_count()} cores, Linux {os.uname().release}; {firsts}"
