"""A node whose pods are gVisor's, and the volumes that a kubelet would give them."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.model.gvisor import FILESTORE
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from kit.node import Node, node
from kit.tools import RUNSC

RUNTIMES = {
    "runsc": {"binary": RUNSC},
    "ptrace": {"binary": RUNSC, "platform": "ptrace"},
    "isolated": {"binary": RUNSC, "isolated": True},
}
COUNT = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done"


@contextlib.contextmanager
def gvisor_node(**settings: Any) -> Iterator[Node]:
    base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
    with node("runsc", base, runtimes=RUNTIMES, volume_roots=[str(base / "kubelet")], **settings) as one:
        yield one


def emptydir(one: Node, config: pb.PodSandboxConfig, name: str = "workspace") -> Path:
    """The pod's volume, where a kubelet would have made it."""
    path = one.base / "kubelet/pods" / config.metadata.uid / "volumes/kubernetes.io~empty-dir" / name
    path.mkdir(parents=True)
    path.chmod(0o777)
    return path


def mounted(volume: Path, at: str = "/workspace", *, readonly: bool = False) -> pb.Mount:
    return pb.Mount(host_path=str(volume), container_path=at, readonly=readonly)


def filestores(volume: Path) -> list[Path]:
    return sorted(volume.glob(f"{FILESTORE}*"))


def shim(one: Node, pod: str) -> int:
    """The pid of the pod's shim."""
    (found,) = [worker.pid for worker in keeper.workers(one.state) if (worker.kind, worker.id) == ("shim", pod)]
    return found


def used(volume: Path) -> int:
    """Bytes that a volume's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in volume.iterdir())


def resident(pid: int) -> int:
    """Bytes of a process's memory that are no file's (proc(5), status)."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def kill_sentry(one: Node, container: str) -> None:
    """SIGKILL for the process that is the kernel of a container's pod."""
    os.kill(one.pid(container), signal.SIGKILL)


def lines(one: Node, container: str) -> list[str]:
    """What a container has said, without what the log adds to it, and without a record that is being written."""
    return [line.split(" ", 3)[3] for line in one.container_log(container).decode().split("\n")[:-1]]


def last_number(one: Node, container: str) -> int:
    """Where a container has got to that counts; 0 before it has begun."""
    return int((lines(one, container) or ["0"])[-1])


def numbers(one: Node, container: str) -> list[int]:
    """What a container has counted to, one by one."""
    return [int(line) for line in lines(one, container)]
