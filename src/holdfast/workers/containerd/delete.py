"""`delete`: what is left to do when a container's shim is gone. containerd asks for it after a clean end as well.

Under containerd a container does not outlive its shim: what still runs is killed. How it ended is in exit.json, if the
shim came so far; what is killed here has ended by SIGKILL. Idempotent.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files, mount, process
from holdfast.model.errors import Damaged
from holdfast.model.witness import EXIT_FILE, SHIM_LOCK, InitRecord, decode_exit
from holdfast.proto import task_pb2
from holdfast.workers import exits
from holdfast.workers.containerd.group import ADDRESS, SCHEME, Group, name_of, read_spec
from holdfast.workers.containerd.request import Request
from holdfast.workers.shim import remains
from holdfast.workers.shim.loop import Failed
from holdfast.workers.shim.oci import Runtime

KILLED: Final = 128 + signal.SIGKILL
ADDRESS_LIMIT: Final = 4096
FROZEN_SECONDS: Final = 0.2  # what does not die of SIGKILL for so long may be paused
END_SECONDS: Final = 2.0
PAUSE: Final = 0.002


def delete(request: Request) -> bytes:
    """The DeleteResponse, serialized. Raises OSError or Failed when something would not go."""
    group = _group(request)
    record = exits.read_init(request.bundle)
    runtime = None
    if group.directory.is_dir():
        with group.locked():
            shim = group.read()
            runtime = shim.get("runtime")
            _settle_shim(group, shim, last=not group.members.keys() - {request.id})
    if request.bundle.is_dir():
        _clean(request, record, Runtime.from_args(runtime, -1) if runtime else None)
    if group.directory.is_dir():  # its OCI runtime's state had to be there until now
        with group.locked():
            if group.leave(request.id):
                group.remove()
    return _response(request.bundle, record).SerializeToString()


def _group(request: Request) -> Group:
    """As `start` has left it in the bundle; where that is not known, as `start` would find it."""
    with contextlib.suppress(OSError):
        address = files.read_bounded(request.bundle / ADDRESS, ADDRESS_LIMIT).decode().strip()
        if address.startswith(f"{SCHEME}{request.state}/"):
            return Group(Path(address.removeprefix(SCHEME)).parent)
    name = name_of(read_spec(request.bundle), request.id)
    return Group.of(request.state, request.address, request.namespace, name)


def _settle_shim(group: Group, shim: dict[str, Any], *, last: bool) -> None:
    """One that runs and has nobody else to serve hangs, or containerd has lost its way to it: it is ended.

    Of one that has ended, what it had set going has ended too when this returns.
    """
    if not isinstance(shim.get("pid"), int):
        return
    with process.pin(shim["pid"], shim.get("start_time")) as pinned:
        if pinned is not None and pinned.alive():
            if not last:
                return
            pinned.send(signal.SIGKILL)
            _ended(pinned, END_SECONDS)
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            os.close(files.lock(group.directory / SHIM_LOCK))
            return
        except BlockingIOError:
            time.sleep(PAUSE)


def _clean(request: Request, record: InitRecord | None, runtime: Runtime | None) -> None:
    path = record.cgroup if record is not None else remains.cgroup_of_bundle(request.bundle)
    if path and remains.holds_us(path):
        path = ""
    if record is not None and record.boot_id == process.boot_id():
        with process.pin(record.pid, record.start_time) as pinned:
            if pinned is not None:
                _kill(pinned, request.id, runtime)
    if path:
        cgroup.kill(path)
    if runtime is not None:
        try:
            runtime.run("delete", "--force", request.id)
        except Failed:
            if Path(runtime.root, request.id).exists():
                raise
    mount.unmount_tree(request.bundle / "rootfs")
    if path:
        cgroup.remove(path)


def _kill(pinned: process.Pinned, container_id: str, runtime: Runtime | None) -> None:
    pinned.send(signal.SIGKILL)
    if not _ended(pinned, FROZEN_SECONDS) and runtime is not None:
        with contextlib.suppress(Failed):
            runtime.run("resume", container_id)  # the v1 freezer keeps even a killed process
        _ended(pinned, END_SECONDS)


def _ended(pinned: process.Pinned, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pinned.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _response(bundle: Path, record: InitRecord | None) -> task_pb2.DeleteResponse:
    reply = task_pb2.DeleteResponse(pid=record.pid if record is not None else 0, exit_status=KILLED)
    reply.exited_at.FromNanoseconds(time.time_ns())
    with contextlib.suppress(OSError, Damaged):
        found = decode_exit(files.read_bounded(os.path.join(bundle, EXIT_FILE), exits.RECORD_LIMIT))
        if record is None or (found.pid, found.start_time) == (record.pid, record.start_time):
            reply.exit_status = found.code
            reply.exited_at.FromNanoseconds(found.finished_at)
    return reply
