"""Writing down how a container's init ended: before it is reaped, before anybody is told. Shim and keeper alike."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, process
from holdfast.model.errors import Damaged
from holdfast.model.gvisor import KILLED
from holdfast.model.witness import EXIT_FILE, INIT_FILE, ExitRecord, InitRecord, decode_exit, decode_init, encode
from holdfast.workers import context

RECORD_LIMIT: Final = 64 * 1024
ROOM_FILE: Final = "exit.room"
ROOM_BYTES: Final = 4096


def read_init(bundle: Path) -> InitRecord | None:
    """The bundle's init.json; None when there is none or it cannot be read."""
    try:
        return decode_init(files.read_bounded(bundle / INIT_FILE, RECORD_LIMIT))
    except (OSError, Damaged):
        return None


def read_exit(bundle: Path, init: InitRecord) -> ExitRecord | None:
    """The bundle's exit.json, if it is of this very init and can be read."""
    try:
        found = decode_exit(files.read_bounded(bundle / EXIT_FILE, RECORD_LIMIT))
    except (OSError, Damaged):
        return None
    return found if (found.pid, found.start_time) == (init.pid, init.start_time) else None


def describe(init: InitRecord, code: int, status: int, witness: str) -> ExitRecord:
    """The exit record of a zombie, from what waitid(2) says (si_code, si_status) and the cgroup's OOM counter.

    The counter is read while the zombie still keeps the cgroup from being removed.
    """
    number = 0 if code == os.CLD_EXITED else status
    try:
        kills = cgroup.oom_kills(init.cgroup) - init.oom_kills
    except OSError:
        kills = 0
    return ExitRecord(
        pid=init.pid,
        start_time=init.start_time,
        code=128 + number if number else status,
        signal=number,
        oom_killed=number == signal.SIGKILL and kills > 0,
        oom_kills=kills,
        finished_at=time.time_ns(),
        witness=witness,
    )


def write(bundle: Path, record: ExitRecord) -> None:
    """Leave exit.json, unless one is there: the first record of an exit is final.

    Where there is no room for it, it goes into the room that was kept (`keep_room`).
    """
    if (bundle / EXIT_FILE).exists():
        return
    try:
        files.write_atomic(bundle / EXIT_FILE, encode(record), sync=False)
    except OSError:
        if not (bundle / ROOM_FILE).exists():
            raise
        files.overwrite(bundle / ROOM_FILE, encode(record).ljust(ROOM_BYTES))
        files.rename(bundle / ROOM_FILE, bundle / EXIT_FILE)


def record_orphan(pods: Path, pid: int, code: int, status: int) -> None:
    """The end of a process that a dead shim has left to us: if it is a container's init, it is written down.

    The init of several is gVisor's sentry: all of them end with it, but for the sandbox container by being killed.
    """
    try:
        found = find_bundles(pods, pid)
        for bundle, init in found:
            record = describe(init, code, status, "keeper")
            inside = len(found) > 1 and bundle.name != bundle.parent.name
            write(bundle, with_sentry(record) if inside else record)
    except (OSError, ValueError):
        context.report()


def with_sentry(record: ExitRecord) -> ExitRecord:
    """The end of a gVisor container, from that of its sentry."""
    return replace(record, code=KILLED, signal=signal.SIGKILL)


def keep_room(bundle: Path) -> None:
    """Write a page over which exit.json can be written on a disk that is full by then."""
    files.write_atomic(bundle / ROOM_FILE, bytes(ROOM_BYTES), sync=False)


def find_bundles(pods: Path, pid: int) -> list[tuple[Path, InitRecord]]:
    """The bundles whose init is this very process, looked for below every pod's directory."""
    started, found = process.start_time(pid), []
    for path in pods.glob(f"*/*/{INIT_FILE}"):
        init = read_init(path.parent)
        if init is not None and (init.pid, init.start_time) == (pid, started):
            found.append((path.parent, init))
    return found
