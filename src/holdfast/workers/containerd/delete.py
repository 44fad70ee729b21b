"""`delete`: what is left to do when a container's shim is gone. containerd asks for it after a clean end as well.

Under containerd a container does not outlive its shim: what still runs is killed. How it ended is in exit.json, if the
shim came so far; what is killed here has ended by SIGKILL; of what had ended before the kernel may know. Idempotent.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files, mount, process
from holdfast.model.errors import Damaged
from holdfast.model.witness import EXIT_FILE, INIT_FILE, SHIM_LOCK, InitRecord, decode_exit, decode_init
from holdfast.workers.containerd.group import ADDRESS, SCHEME, Group, name_of, read_spec
from holdfast.workers.containerd.request import Request

KILLED: Final = 128 + signal.SIGKILL
EXIT_LOST: Final = 255  # it has ended and nobody has kept how
ADDRESS_LIMIT: Final = 4096
NS: Final = 1_000_000_000
LENGTH_DELIMITED: Final = 2
RECORD_LIMIT: Final = 64 * 1024
FROZEN_SECONDS: Final = 0.2  # what does not die of SIGKILL for so long may be paused
END_SECONDS: Final = 2.0
PAUSE: Final = 0.002


def delete(request: Request) -> bytes:
    """The DeleteResponse, serialized. Raises OSError or Failed when something would not go."""
    group = _group(request)
    record = _read_init(request.bundle)
    runtime, code = None, None
    if group.directory.is_dir():
        with group.locked():
            shim = group.read()
            runtime = shim.get("runtime")
            _settle_shim(group, shim, last=not group.members.keys() - {request.id})
    if request.bundle.is_dir():
        code = _clean(request, record, runtime)
    if group.directory.is_dir():  # its OCI runtime's state had to be there until now
        with group.locked():
            if group.leave(request.id):
                group.remove()
    return _response(request.bundle, record, EXIT_LOST if code is None else code)


def _read_init(bundle: Path) -> InitRecord | None:
    try:
        return decode_init(files.read_bounded(bundle / INIT_FILE, RECORD_LIMIT))
    except (OSError, Damaged):
        return None


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


def _clean(request: Request, record: InitRecord | None, runtime: dict[str, Any] | None) -> int | None:
    """After a clean end the runtime knows of nothing and there is no cgroup, so nothing to import for either.

    Returns the init's exit code; None when it cannot be told.
    """
    code = None
    busy = record is None or not record.cgroup.strip("/") or cgroup.exists(record.cgroup)
    if busy or (runtime is not None and Path(runtime["root"], request.id).exists()):
        code = _kill_all(request, record, runtime)
    mount.unmount_tree(request.bundle / "rootfs")
    return code


def _kill_all(request: Request, record: InitRecord | None, arguments: dict[str, Any] | None) -> int | None:
    from holdfast.workers.shim import remains
    from holdfast.workers.shim.loop import Failed
    from holdfast.workers.shim.oci import Runtime

    runtime = Runtime.from_args(arguments, process.sealed_crun(arguments["binary"])) if arguments else None
    path = record.cgroup if record is not None else remains.cgroup_of_bundle(request.bundle)
    if path and remains.holds_us(path):
        path = ""
    code = None
    if record is not None and record.boot_id == process.boot_id():
        with process.pin(record.pid, record.start_time) as pinned:
            if pinned is not None:
                lived = pinned.alive()
                pinned.send(signal.SIGKILL)
                if not _ended(pinned, FROZEN_SECONDS) and runtime is not None:
                    with contextlib.suppress(Failed):
                        runtime.run("resume", request.id)  # the v1 freezer keeps even a killed process
                    _ended(pinned, END_SECONDS)
                status = pinned.wait_status(record.start_time)
                code = (KILLED if lived else None) if status is None else _exit_code(status)
    if path:
        cgroup.kill(path)
    if runtime is not None:
        try:
            runtime.run("delete", "--force", request.id)
        except Failed:
            if Path(runtime.root, request.id).exists():
                raise
    if path:
        cgroup.remove(path)
    return code


def _exit_code(status: int) -> int:
    """Of a wait status, as shells have it."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _ended(pinned: process.Pinned, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pinned.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _response(bundle: Path, record: InitRecord | None, code: int) -> bytes:
    pid, at = (record.pid if record is not None else 0), time.time_ns()
    with contextlib.suppress(OSError, Damaged):
        found = decode_exit(files.read_bounded(os.path.join(bundle, EXIT_FILE), RECORD_LIMIT))
        if record is None or (found.pid, found.start_time) == (record.pid, record.start_time):
            code, at = found.code, found.finished_at
    return encode_response(pid, code, at)


def encode_response(pid: int, code: int, at: int) -> bytes:
    """A DeleteResponse by hand: to import protobuf would take longer than all the rest after a clean end."""
    seconds, nanoseconds = divmod(at, NS)
    when = _field(1, seconds) + _field(2, nanoseconds)
    return _field(1, pid) + _field(2, code) + bytes([3 << 3 | LENGTH_DELIMITED, len(when)]) + when


def _field(number: int, value: int) -> bytes:
    """A varint field of a protobuf message; nothing for 0."""
    out = bytearray([number << 3])
    left = value
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out) if value else b""
