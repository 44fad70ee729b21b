"""Shims of others, as containerd's Runtime v2 has them: their commands `start` and `delete`, and where they listen.

A shim is started from the pod's first bundle, which bears the pod's id, and serves all of its containers. Its commands
are run by a worker of the keeper, so what they leave behind is in nobody's way and the keeper's to reap. The socket is
wherever the shim likes, which may be outside our directories: it is removed with the shim.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import secrets
import signal
import socket
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files, process, table
from holdfast.linux.inject import crashpoint
from holdfast.linux.patience import patience
from holdfast.model.errors import Damaged, DeadlineExceeded, Unavailable
from holdfast.model.state import ProcessRef
from holdfast.runtime.handlers import Handler
from holdfast.runtime.keeper import Keeper

log = logging.getLogger(__name__)

BOOTSTRAP: Final = "shim.json"  # in the pod's directory: how its shim is reached
ADDRESS: Final = "address"  # the same in the shim's own words, in the bundle
LOG: Final = "log"
LIMIT: Final = 64 * 1024
COMMAND_SECONDS: Final = 30.0
PREFIX: Final = "unix://"
VERSIONS: Final = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where a shim listens, and with which version of the Task API."""

    path: str
    version: int = 2

    @property
    def service(self) -> str:
        return VERSIONS[self.version]


def parse(said: bytes) -> Bootstrap:
    """What `start` answers: an address, or JSON with one. Raises Damaged."""
    text = said.decode(errors="replace").strip()
    version, address, protocol = 2, text, "ttrpc"
    if text.startswith("{"):
        try:
            answer = json.loads(text)
            version, address = int(answer.get("version", 2)), str(answer["address"])
            protocol = str(answer.get("protocol", "ttrpc"))
        except (ValueError, LookupError, AttributeError, TypeError) as exc:
            raise Damaged(f"its answer cannot be read: {text[:200]!r}") from exc
    path = address.removeprefix(PREFIX)
    if protocol != "ttrpc" or version not in VERSIONS:
        raise Damaged(f"it speaks {protocol} of version {version}; only ttrpc of version 2 or 3 is known here")
    if not address.startswith(PREFIX) or not path.startswith("/") or "\0" in path:
        raise Damaged(f"its address is not the path of a unix socket: {address[:200]!r}")
    return Bootstrap(path, version)


class ForeignShims:
    """Their commands and addresses, by pod. `events` is the socket at which the daemon takes their events."""

    def __init__(self, pods: Path, keeper: Keeper, events: Path) -> None:
        self._pods = pods
        self._keeper = keeper
        self._events = events

    async def start(self, pod_id: str, handler: Handler) -> Bootstrap:
        """Start the pod's shim from its sandbox bundle. Raises Unavailable, DeadlineExceeded."""
        said, complaint = await self._run(handler, pod_id, pod_id, "start")
        crashpoint("foreign.answered")
        try:
            found = parse(said)
        except Damaged as exc:
            why = complaint or str(exc)
            raise Unavailable(f"cannot start shim {handler.shim} of pod {pod_id}: {why}") from exc
        files.write_atomic(self._pods / pod_id / BOOTSTRAP, json.dumps(asdict(found)).encode(), sync=False)
        return found

    async def delete(self, pod_id: str, task_id: str, handler: Handler) -> None:
        """What a shim that is dead has left of a task: its processes, the runtime's state, its mounts."""
        said, complaint = await self._run(handler, pod_id, task_id, "delete")
        if not said and complaint:
            log.warning("%s delete of %s: %s", handler.shim, task_id, complaint)

    def find(self, pod_id: str) -> Bootstrap | None:
        """Where the pod's shim listens; None where it is one of ours. Told by the shim itself if we had no time to."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            found = Bootstrap(**json.loads(files.read_bounded(self._pods / pod_id / BOOTSTRAP, LIMIT)))
            if found.version in VERSIONS:
                return found
        with contextlib.suppress(FileNotFoundError, Damaged):
            return parse(files.read_bounded(self._pods / pod_id / pod_id / ADDRESS, LIMIT))
        return None

    def is_shim(self, pid: int, pod_id: str) -> bool:
        """Whether this process was started as the pod's shim, at our events socket."""
        return self._names(process.arguments(pid), pod_id)

    def search(self, pod_id: str) -> list[ProcessRef]:
        """Every process that was started as the pod's shim, for when none answers. Blocks."""
        if not (self._pods / pod_id / pod_id).exists():
            return []  # without a sandbox bundle none was
        found = [one for one in table.processes()[0] if one.alive and self._names(one.argv, pod_id)]
        return [ProcessRef(one.pid, one.start_time, process.boot_id()) for one in found]

    def _names(self, words: Sequence[str], pod_id: str) -> bool:
        pairs = list(itertools.pairwise(words))
        return ("-id", pod_id) in pairs and ("-address", str(self._events)) in pairs

    def forget(self, pod_id: str) -> None:
        """The pod's shim is dead: remove the socket that it has left, and nothing but a socket."""
        if (found := self.find(pod_id)) is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(found.path).st_mode):
                files.unlink(found.path)
        files.unlink(self._pods / pod_id / BOOTSTRAP)

    def prepare(self, bundle: Path, handler: Handler) -> None:
        """What a shim expects in a bundle beside config.json: its log, and the runtime that `delete` is to use."""
        for name, content in ((LOG, b""), ("runtime", handler.binary.encode())):
            files.write_atomic(bundle / name, content, sync=False)

    async def _run(self, handler: Handler, pod_id: str, task_id: str, verb: str) -> tuple[bytes, str]:
        """(stdout, the end of stderr) of one command of the shim, run from the task's bundle."""
        bundle = self._pods / pod_id / task_id
        address = str(self._events)
        command = [
            handler.shim, "-namespace", handler.name, "-address", address, "-publish-binary", "/bin/true",
            "-id", task_id, *(["-bundle", str(bundle)] if verb == "delete" else []), verb,
        ]  # fmt: skip
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "NAMESPACE": handler.name,
            "TTRPC_ADDRESS": address,
            "GRPC_ADDRESS": address,
            "MAX_SHIM_VERSION": str(max(VERSIONS)),
        }
        args: dict[str, object] = {"command": command, "directory": str(bundle), "environment": environment}
        ours, theirs = socket.socketpair()
        options, complaints = os.memfd_create("options"), os.memfd_create("stderr")
        try:
            os.pwrite(options, handler.options, 0)
            with ours:
                ours.setblocking(False)
                with theirs:
                    fds = [options, theirs.fileno(), complaints]
                    name = f"foreign-{secrets.token_hex(4)}"
                    worker = await self._keeper.fork("foreign", name, args, fds=fds)
                said = await _hear(ours, worker, f"{handler.shim} {verb} of {task_id}")
            size = os.fstat(complaints).st_size
            complaint = os.pread(complaints, LIMIT, max(0, size - LIMIT)).decode(errors="replace").strip()
            return said, complaint.rpartition("\n")[2]
        finally:
            os.close(options)
            os.close(complaints)


async def _hear(line: socket.socket, worker: ProcessRef, what: str) -> bytes:
    """All that a command has to say. Raises DeadlineExceeded after its time, having killed it."""
    said = bytearray()
    try:
        async with patience(COMMAND_SECONDS):
            while len(said) < LIMIT and (data := await asyncio.get_running_loop().sock_recv(line, LIMIT)):
                said += data
    except TimeoutError as exc:
        with process.pin(worker.pid, worker.start_time) as pinned:
            if pinned is not None:
                pinned.send(signal.SIGKILL)
        raise DeadlineExceeded(f"cannot run {what}: no end after {COMMAND_SECONDS:g} s") from exc
    return bytes(said)
