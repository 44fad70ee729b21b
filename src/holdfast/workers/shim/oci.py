"""Commands of OCI runtimes (crun, runc, runsc), and the error from their own log when one fails."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files, process
from holdfast.model.gvisor import CREATED, PAUSED, is_of, state_file, status
from holdfast.workers.shim.loop import Failed
from holdfast.workers.shim.spawn import spawn

ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
UMASK: Final = 0o022  # not ours: whoever a container runs as is to look into its cgroup
LOG_LIMIT: Final = 256 * 1024
FLAGS: Final = ("--net-disconnect-ok",)  # else a connection is the end of a sandbox that is checkpointed
STATE_LIMIT: Final = 8 * 1024 * 1024
LOOK_SECONDS: Final = 0.1
_STANDARD: Final = frozenset({0, 1, 2})


@dataclass(frozen=True, slots=True)
class Runtime:
    """One OCI runtime as the daemon configured it.

    `hide` are mounts that it must not see. `image` is a descriptor of its binary as a sealed memfd, or -1: crun and
    runc clone themselves into one before they do anything, and execute themselves again, unless they already are one.
    With `platform` it is gVisor's runsc, and `network` one of model.gvisor.NETWORKS.
    """

    name: str
    binary: str
    root: str
    hide: tuple[str, ...] = ()
    image: int = -1
    seconds: float = 100.0  # that one command may take
    systemd: bool = False  # whether systemd is to make the cgroups
    platform: str = ""
    network: str = ""
    pod_id: str = ""  # which is the id of the sandbox container, where there is one

    @classmethod
    def from_args(cls, args: Mapping[str, Any], image: int) -> "Runtime":
        given = {key: args[key] for key in ("seconds", "systemd", "platform", "network", "pod_id") if key in args}
        return cls(args["name"], args["binary"], args["root"], tuple(args.get("hide", ())), image, **given)

    @property
    def gvisor(self) -> bool:
        return bool(self.platform)

    def is_inside(self, container_id: str) -> bool:
        """Whether its processes are not the host's: it is in a gVisor sandbox, and not that itself."""
        return self.gvisor and container_id != self.pod_id

    def run(
        self,
        *arguments: str,
        fds: Mapping[int, int] | None = None,
        criu: str = "",
        environment: Mapping[str, str] = ENVIRONMENT,
        look: Callable[[int], None] | None = None,
    ) -> None:
        """Run one command to its end; descriptors that are not given are /dev/null. Raises Failed.

        It blocks, so it is for a child of the loop (`Loop.in_child`), which is killed with it when it takes too long.
        `criu` is the program that a runtime is to use for checkpoints; later releases take the one in PATH, whatever
        they are told; `look` is called with the runtime's pid now and then.
        """
        if criu:
            environment = {**environment, "PATH": f"{os.path.dirname(criu)}:{environment['PATH']}"}
        with memory_file("log") as log, _null() as null:
            driver = ["--systemd-cgroup"] if self.systemd else []
            if self.gvisor:
                driver += [f"--platform={self.platform}", f"--network={self.network}", *FLAGS]
            where = ["--root", self.root, "--log", path_of(log), "--log-format", "json"]
            command = [self.binary, *where, *driver, *(["--criu", criu] if criu else []), *arguments]
            streams = {**dict.fromkeys(_STANDARD, null), **(fds or {})}
            try:
                # A start only opens the gate that create has left closed: it looks at no cgroup, nothing needs hiding.
                # But it is then that gVisor takes over the pod's network.
                starts = arguments[0] in (("start", "restore") if self.gvisor else ("start",))
                hide = self.hide if starts == self.gvisor else ()
                before = os.umask(UMASK)
                try:
                    executable = self._executable
                    pid = spawn(command, env=environment, fds=streams, hide=hide, executable=executable, session=False)
                finally:
                    os.umask(before)
            except OSError as exc:
                raise Failed(f"cannot run {self.binary}: {exc.strerror}") from exc
            if look is not None:
                _await(pid, look)
            if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                said = error_text(os.pread(log, LOG_LIMIT, 0))
                raise Failed(said or f"{self.name} {arguments[0]} ended with status {status}")

    def awaits_start(self, container_id: str) -> bool:
        """Whether the container's init still waits at its gate, which a start takes away (of crun and runc alike)."""
        if self.gvisor:
            return self._status(container_id) == CREATED
        return Path(self.root, container_id, "exec.fifo").exists()

    def is_paused(self, container_id: str) -> bool:
        """Whether gVisor has a container down as paused."""
        return self._status(container_id) == PAUSED

    def knows(self, container_id: str) -> bool:
        return self._state(container_id).exists()

    def forget(self, container_id: str) -> None:
        """Remove what it keeps of a container, without asking it."""
        if self.gvisor:
            for path in Path(self.root).glob("*"):
                if is_of(path.name, container_id, self.pod_id):
                    files.unlink(path)
        else:
            files.remove_tree(self._state(container_id))

    def _status(self, container_id: str) -> str:
        state = self._state(container_id)
        return status(files.read_bounded(state, STATE_LIMIT)) if state.exists() else ""

    def _state(self, container_id: str) -> Path:
        return Path(self.root, state_file(container_id, self.pod_id) if self.gvisor else container_id)

    @property
    def _executable(self) -> str | None:
        return f"/proc/self/fd/{self.image}" if self.image >= 0 else None


def error_text(log: bytes) -> str:
    """The last error in a runtime's JSON log; "" when it has none."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal") and entry.get("msg"):
            return str(entry["msg"])
    return ""


def without_endless_quota(resources: bytes) -> tuple[bytes, bool]:
    """linux.resources without a quota of -1, and whether it had one that somebody else has to see to.

    crun writes it as an unsigned number to cgroup v1, which does not take that (seen with 1.8.1).
    """
    if "cpu" not in cgroup.hierarchies():
        return resources, False
    try:
        found = json.loads(resources)
        if found["cpu"]["quota"] != -1:
            return resources, False
        del found["cpu"]["quota"]
    except (ValueError, LookupError, TypeError):
        return resources, False
    return json.dumps(found).encode(), True


@contextlib.contextmanager
def memory_file(name: str, content: bytes = b"") -> Iterator[int]:
    """A file that exists only as long as it is needed and that another process can open by `path_of`."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        if content:
            os.write(fd, content)
            os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def path_of(fd: int) -> str:
    """A path by which another process can open one of our descriptors while we have it."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def _await(pid: int, look: Callable[[int], None]) -> None:
    """Until it has ended; it may be what `look` sees, or does, that ends it."""
    with process.pin(pid, None) as one:
        while one is not None and one.alive(LOOK_SECONDS):
            look(pid)


@contextlib.contextmanager
def _null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
