"""A real shim, with real containers, for tests: in a process of its own, without a keeper.

As a program it is that process: `python shim_kit.py ARGS_JSON READY_FD [IMAGE_FD]`.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.linux import cgroup, files, mount, process, sockets
from holdfast.model.spec import Mount
from holdfast.model.witness import EXIT_FILE, ExitRecord, decode_exit
from holdfast.runtime.task import TaskClient
from holdfast.workers.context import Context

BUSYBOX = "/bin/busybox"
APPLETS = (
    "sh",
    "sleep",
    "cat",
    "echo",
    "true",
    "seq",
    "head",
    "tail",
    "dd",
    "kill",
    "stty",
    "wc",
    "tr",
    "usleep",
    "ps",
)
UNIFIED = "/sys/fs/cgroup/unified"


def busybox_rootfs(directory: Path) -> Path:
    """A root filesystem with busybox in it."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc", "data"):
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


def runtime_args(name: str, root: Path) -> dict[str, Any]:
    hide = [UNIFIED] if name == "crun" and cgroup.mode() == "hybrid" else []
    return {"name": name, "binary": shutil.which(name), "root": str(root), "hide": hide}


def sealed_copy(binary: str) -> int:
    """A descriptor of a program in memory that nobody can change."""
    fd = os.memfd_create(Path(binary).name, os.MFD_ALLOW_SEALING)
    with open(binary, "rb") as source:
        while chunk := source.read(1 << 20):
            os.write(fd, chunk)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


@dataclass
class Container:
    """What a test knows of one container."""

    id: str
    bundle: Path
    rootfs: list[Mount]
    log: Path

    @property
    def exit(self) -> ExitRecord:
        return decode_exit((self.bundle / EXIT_FILE).read_bytes())

    def records(self) -> list[tuple[str, str, bytes]]:
        """(stream, tag, line) of every log record."""
        found = []
        for record in self.log.read_bytes().split(b"\n")[:-1]:
            _, stream, tag, line = record.split(b" ", 3)
            found.append((stream.decode(), tag.decode(), line))
        return found

    def text(self, stream: str = "stdout") -> bytes:
        """What the container has written to a stream, put together again."""
        return b"".join(line + (b"\n" if tag == "F" else b"") for one, tag, line in self.records() if one == stream)


@dataclass
class ShimKit:
    """One pod: its directory, its shim process, its containers."""

    base: Path
    runtime: str
    lower: Path
    pid_namespace: bool = False
    sealed: bool = False
    binary: str = ""
    parent: str = ""
    more: dict[str, Any] = field(default_factory=dict)  # of the runtime's arguments
    containers: list[Container] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.parent = f"/hf-shim-{os.getpid()}-{time.monotonic_ns()}"
        self.directory = self.base / "pod"
        self.directory.mkdir(mode=0o700)

    @property
    def socket(self) -> Path:
        return self.directory / "shim.sock"

    def start(self, *, adopt: bool = False) -> None:
        """Run the shim; it is ready when this returns."""
        cgroup.create(self.parent)
        args: dict[str, Any] = {
            "id": "pod",
            "directory": str(self.directory),
            "runtime": runtime_args(self.runtime, self.base / "oci"),
            "pid_namespace": self.pid_namespace,
            "adopt": adopt,
        }
        args["runtime"] |= self.more
        if self.binary:
            args["runtime"]["binary"] = self.binary
        told, tell = os.pipe()
        image = [sealed_copy(args["runtime"]["binary"])] if self.sealed else []
        command = [sys.executable, __file__, json.dumps(args), str(tell), *map(str, image)]
        self.process = subprocess.Popen(command, pass_fds=[tell, *image], start_new_session=True)
        for fd in (tell, *image):
            os.close(fd)
        with os.fdopen(told, "rb") as ready:
            assert ready.read() == b"1", "the shim has not become ready"

    def spec(self, args: list[str], name: str, **changes: Any) -> dict[str, Any]:
        """An OCI spec; `changes`: terminal, user, memory (bytes), pid (namespace path, "" for the host's)."""
        namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]
        if (pid := changes.get("pid")) is None:
            namespaces.append({"type": "pid"})
        elif pid:
            namespaces.append({"type": "pid", "path": pid})
        resources: dict[str, Any] = {"pids": {"limit": 200}}
        if memory := changes.get("memory"):
            resources["memory"] = {"limit": memory, "swap": memory}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": changes.get("terminal", False),
                "user": {"uid": changes.get("user", 0), "gid": changes.get("user", 0)},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
                *changes.get("mounts", []),
            ],
            "linux": {"cgroupsPath": f"{self.parent}/{name}", "namespaces": namespaces, "resources": resources},
        }

    def container(self, name: str, args: list[str] | str, **changes: Any) -> Container:
        """A bundle, ready to be created. A string is run by the shell."""
        bundle = self.directory / name
        bundle.mkdir(mode=0o700)
        command = ["sh", "-c", args] if isinstance(args, str) else args
        (bundle / "config.json").write_text(json.dumps(self.spec(command, name, **changes)))
        writable = self.base / f"writable-{name}"
        for part in ("upper", "work"):
            (writable / part).mkdir(parents=True)
        options = (f"lowerdir={self.lower}", f"upperdir={writable}/upper", f"workdir={writable}/work")
        log = self.base / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        made = Container(name, bundle, [Mount("overlay", "overlay", options=options)], log)
        self.containers.append(made)
        return made

    async def connect(self) -> TaskClient:
        return await TaskClient.connect(self.socket)

    async def create(self, client: TaskClient, one: Container, **streams: Any) -> int:
        """Create it, its output going to its log unless said otherwise."""
        log = f"cri://{one.log}"
        wanted = {"stdout": log, "stderr": log, **streams}
        return await client.create(one.id, bundle=one.bundle, rootfs=one.rootfs, **wanted)

    async def run(self, client: TaskClient, name: str, args: list[str] | str, **changes: Any) -> Container:
        streams = {key: changes.pop(key) for key in ("stdin", "stdout", "stderr") if key in changes}
        one = self.container(name, args, **changes)
        await self.create(client, one, terminal=changes.get("terminal", False), **streams)
        await client.start(one.id)
        return one

    def stop(self) -> None:
        """End the shim and whatever it has left, whether the test has passed or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for _ in range(500):
            with contextlib.suppress(OSError):
                cgroup.kill(self.parent)
                cgroup.remove(self.parent)
            if not cgroup.exists(self.parent):
                break
            time.sleep(0.01)
        mount.unmount_tree(self.base)
        files.remove_tree(self.base)
        assert not cgroup.exists(self.parent)

    def leftovers(self) -> list[str]:
        """What deleted tasks should not have left."""
        found = [entry.target for entry in mount.mounts_below(self.base)]
        found += sorted(cgroup.children(self.parent))
        oci = self.base / "oci"
        found += [entry.name for entry in oci.iterdir()] if oci.exists() else []
        for one in self.containers:
            found += [entry.name for entry in one.bundle.iterdir() if entry.name not in KEPT]
        return found


KEPT = {"config.json", "rootfs", "init.json", "exit.json"}


@contextlib.contextmanager
def running_shim(base: Path, runtime: str, lower: Path, **how: Any) -> Iterator[ShimKit]:
    made = ShimKit(base, runtime, lower, **how)
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition that nothing can be awaited for."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def reader(path: Path) -> AsyncIterator[bytearray]:
    """A FIFO, and what comes out of it, as it comes."""
    files.fifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    data = bytearray()
    loop = asyncio.get_running_loop()

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            if not (chunk := os.read(fd, 65536)):
                loop.remove_reader(fd)
            data.extend(chunk)

    loop.add_reader(fd, take)
    try:
        yield data
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _main() -> None:
    """The shim's process: what the keeper does for a worker, without the keeper."""
    from holdfast.workers.shim import server

    args, (ready_fd, *image) = json.loads(sys.argv[1]), map(int, sys.argv[2:])
    for fd in image:
        os.set_inheritable(fd, False)
    os.set_inheritable(ready_fd, False)
    os.umask(0o077)
    listener = sockets.listen(Path(args["directory"]) / "shim.sock", socket.SOCK_STREAM)

    def ready() -> None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)

    process.set_name("hf-shim-test")
    server.main(Context("pod", args, image, listener, ready, lambda key, fds: None, lambda key: None))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _main()
