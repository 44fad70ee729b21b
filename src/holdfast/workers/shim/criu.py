"""Checkpoint and restore of a container's processes by CRIU, through runc, which is given the CRIU to use.

The FIFOs that our containers have for stdio are in no mount that a container sees. CRIU is told of each by mount and
inode, `file[MOUNT:INODE]`, leaves it out of the images, and puts what it is given for it at a restore in its place. As
runc has no word for that, CRIU reads it from a file of settings. Which of them was what is kept beside the images.
"""

import contextlib
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, descriptors, files, mount, namespace, process
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import STDIO_FILE, CriuSettings, decode_stdio
from holdfast.model.errors import Damaged
from holdfast.model.witness import InitRecord
from holdfast.workers.shim import remains
from holdfast.workers.shim.loop import Failed, end_group
from holdfast.workers.shim.oci import ENVIRONMENT, Runtime, memory_file, path_of
from holdfast.workers.shim.task import Task

NUMBERS: Final = {"stdin": 0, "stdout": 1, "stderr": 2}
GHOST_BYTES: Final = (1 << 32) - 1  # files that are open and have no name are in the images, as large as CRIU can say
LOG_BYTES: Final = 16 * 1024 * 1024
PID_LIMIT: Final = 64
ORPHAN_SECONDS: Final = 2
PATIENCE: Final = 10.0  # with a CRIU that nobody waits for any more
PAUSE: Final = 0.01
HOLD_SECONDS: Final = 10.0  # until all that is restored stands still
VAIN_LOOKS: Final = 10  # a second, for CRIU, or who waits for it, to notice that there is nothing to wait for
STATE_LIMIT: Final = 4 * 1024 * 1024
_HARMLESS: Final = "rlimit: Can't setup"  # without CAP_SYS_RESOURCE; it goes on
_DONE: Final = b"finished successfully"
_ERROR: Final = re.compile(rb"Error \([^)]*\): (.*)")


@dataclass(frozen=True, slots=True)
class Revived:
    """The init of a restored container: who it is, whether it is process 1 of a namespace, and its cgroup."""

    pid: int
    start_time: int
    own_pids: bool
    cgroup: str


def dump(runtime: Runtime, task: Task, images: Path, settings: CriuSettings) -> None:
    """Write the images of a frozen container, which stays as it is. Blocks. Raises Failed.

    It ends when CRIU has ended: that writes over the registers of processes for a while to have them run code of its
    own, and where it is killed meanwhile they are let go as they are, and die of it.
    """
    assert task.record is not None
    found = _stdio(task)
    _refuse_processes(task)
    files.write_atomic(images / STDIO_FILE, json.dumps(found).encode(), sync=False)
    lines = [f"external {id}" for id in found.values()]
    options = ["--tcp-established"] if settings.tcp_established else []
    where = ["--image-path", str(images), "--work-path", settings.work, "--leave-running"]
    crashpoint("shim.dumping")
    with (
        to_the_end(task.record.cgroup),
        _configured(lines) as environment,
        _explained(Path(settings.work) / "dump.log"),
    ):
        runtime.run(
            "checkpoint", *where, *options, task.id,
            environment=environment, criu=settings.program, look=Watch(task.record).look,
        )  # fmt: skip
    crashpoint("shim.dumped")


def restore(runtime: Runtime, task: Task) -> Revived:
    """Bring back the processes of a container whose rootfs is mounted. Blocks. Raises Failed, having ended them.

    Those that are to be held CRIU leaves stopped, and they are frozen on return. For a child of the loop, whose mounts
    are its own from then on: see `_leave_mounts`.
    """
    assert task.origin is not None
    _leave_mounts()
    images, settings = task.origin.images, task.origin.settings
    found = _known_stdio(images / STDIO_FILE)
    lines = [f"external {id}" for id in found.values()]
    lines += [f"inherit-fd fd[{NUMBERS[name]}]:{id}" for name, id in found.items()]
    lines += ["leave-stopped"] if settings.held else []
    pid_file = task.bundle / "init.pid"
    where = ["--detach", "--bundle", str(task.bundle), "--pid-file", str(pid_file)]
    where += ["--image-path", str(images), "--work-path", settings.work]
    options = [*task.origin.options, *(["--tcp-established"] if settings.tcp_established else [])]
    crashpoint("shim.restoring")
    try:
        with _configured(lines) as environment, _explained(Path(settings.work) / "restore.log"):
            runtime.run(
                "restore", *where, *options, task.id, fds=task.init.stdio.fds,
                environment=environment, criu=settings.program, look=Watch().look,
            )  # fmt: skip
        crashpoint("shim.restored")
        if settings.held:
            _hold(remains.cgroup_of_bundle(task.bundle))
            crashpoint("shim.held")
        return _revived(runtime, task, int(files.read_bounded(pid_file, PID_LIMIT)))
    except (Failed, OSError, ValueError):
        if path := remains.cgroup_of_bundle(task.bundle):
            with contextlib.suppress(OSError):
                cgroup.kill(path)
        raise
    finally:
        files.unlink(pid_file)


def _leave_mounts() -> None:
    """Go where nothing that is mounted or unmounted is so for others, and all of it ends with us.

    For a restore runc binds the container's volumes, with all below, to its rootfs, and unmounts them after that: with
    shared mounts that is done to the originals too, so that whatever somebody has mounted in a volume would be gone
    from the host. And a runc that is killed leaves these binds behind.
    """
    namespace.unshare(process.CLONE_NEWNS)
    mount.set_propagation("/", mount.MS_SLAVE, recursive=True)


def _hold(path: str) -> None:
    """Freeze what was left stopped, so that it goes on once it is thawed."""
    cgroup.freeze(path)
    remains.signal_all(path, signal.SIGCONT)
    deadline = time.monotonic() + HOLD_SECONDS
    while not cgroup.frozen(path):
        if time.monotonic() > deadline:
            raise Failed(f"what was restored does not stand still after {HOLD_SECONDS:g} s")
        time.sleep(PAUSE)


def _revived(runtime: Runtime, task: Task, pid: int) -> Revived:
    """It may be over by now; so its start time is what runc has noted of it."""
    state = json.loads(files.read_bounded(Path(runtime.root, task.id, "state.json"), STATE_LIMIT))
    if state["init_process_pid"] != pid:
        raise Failed(f"{runtime.name} tells of pid {pid}, and has noted {state['init_process_pid']}")
    own = not any(one["type"] == "NEWPID" and one.get("path") for one in state["config"]["namespaces"])
    path = remains.cgroup_of_bundle(task.bundle)
    with contextlib.suppress(OSError):  # it has ended
        path = cgroup.of_process(pid)
    return Revived(pid, int(state["init_process_start"]), own, path)


def _known_stdio(path: Path) -> dict[str, str]:
    """As `dump` has left it; nothing in images that somebody else has made, where runc sees to pipes."""
    try:
        return decode_stdio(files.read_bounded(path, STATE_LIMIT))
    except FileNotFoundError:
        return {}
    except Damaged as exc:
        raise Failed(str(exc)) from exc


def _stdio(task: Task) -> dict[str, str]:
    """Which external files CRIU meets as the container's stdin, stdout and stderr. Raises Failed for any other."""
    assert task.record is not None
    ours = _fifos(task)
    found: dict[str, str] = {}
    for pid in sorted(remains.pids(task.record.cgroup)):
        mounts = descriptors.mounts_of(pid)
        for one in descriptors.of(pid):
            if not one.named or one.mount in mounts or (one.kind == stat.S_IFCHR):
                continue
            name = ours.get((one.device, one.inode))
            if name is None:
                raise Failed(f"descriptor {one.number} of process {pid} is {one.link}, which is outside the container")
            id = f"file[{one.mount:x}:{one.inode:x}]"
            if found.setdefault(name, id) != id:
                raise Failed(f"its {name} is open through two mounts")
    return found


def _fifos(task: Task) -> dict[tuple[int, int], str]:
    found = {}
    for name, asked in zip(NUMBERS, task.init.paths, strict=True):
        path = asked if asked.startswith("/") else task.bundle / name
        with contextlib.suppress(OSError):
            seen = os.stat(path)
            found[seen.st_dev, seen.st_ino] = name
    return found


def _refuse_processes(task: Task) -> None:
    """Raise Failed for one that CRIU would not bring back, or would never be done with.

    Whoever is in the container's cgroup without descending from its init was executed there by somebody outside. And
    the kernel lets nobody trace who was stopped before he was frozen (cgroup v1), but has the tracer wait.
    """
    assert task.record is not None
    init = task.record.pid
    for pid in remains.pids(task.record.cgroup):
        one = pid
        while one not in (init, 0, 1):
            one = process.parent(one)
        if one != init:
            raise Failed(f"process {pid} was executed in it and does not descend from its init")
        if process.is_stopped(pid):
            raise Failed(f"process {pid} was stopped by a signal")


class Watch:
    """Over a runtime that has CRIU at work, from a child of the loop: what it would wait for without an end.

    A CRIU that was killed may leave children of its own, which have its socket, stopped: runc waits for their answer.
    So it does for those whom CRIU was bringing back, who wait for CRIU, in sessions of their own.
    A container that was ended is nobody's to dump, and a CRIU that does not notice holds up its removal.
    """

    def __init__(self, record: InitRecord | None = None) -> None:
        """`record` is that of the container that is dumped."""
        self._record = record
        self._seen: dict[str, int] = {}

    def look(self, runtime: int) -> None:
        """End whoever keeps that runtime waiting in vain. To be called again and again."""
        if self._lasts("CRIU has ended", any(process.state(pid) == "Z" for pid in process.children(runtime))):
            _end_all_but(runtime)
            _end(process.children(runtime), lambda pid: process.parent(pid) == runtime)
        record = self._record
        if record is not None and self._lasts("container has ended", process.is_dying(record.pid, record.start_time)):
            _end_all_but()

    def _lasts(self, what: str, now: bool) -> bool:
        """Whether it has been so for longer than whoever comes to his end by himself takes.

        Counted in looks: while the whole machine stands still nobody comes to anything.
        """
        self._seen[what] = self._seen.get(what, 0) + 1 if now else 0
        return self._seen[what] > VAIN_LOOKS


def _others() -> set[int]:
    """Who lives in our process group beside us."""
    return set(process.in_group(os.getpgrp())) - {os.getpid()}


def _end_all_but(*spared: int) -> None:
    """SIGKILL to our process group but to us and to these."""
    _end(_others().difference(spared), lambda pid: pid in _others())


def _end(found: Iterable[int], still: Callable[[int], bool]) -> None:
    """SIGKILL to those of whom it is still so once they are pinned: a number may be another process by now."""
    for pid in found:
        with process.pin(pid, None) as one:
            if one is not None and still(pid):
                one.send(signal.SIGKILL)


@contextlib.contextmanager
def to_the_end(path: str) -> Iterator[None]:
    """Wait for CRIU, which may go on when runc has gone; when our shim has, not for long: its successor waits for us.

    The cgroup that a shim that is dead has frozen is thawed then. What is left stopped of a CRIU that was killed too is
    ended. For a child of the loop.
    """
    orphaned = False

    def shim_is_gone(*_: object) -> None:
        nonlocal orphaned
        orphaned = True
        signal.alarm(ORPHAN_SECONDS)

    signal.signal(signal.SIGALRM, end_group)
    signal.signal(signal.SIGUSR2, shim_is_gone)
    try:
        yield
    finally:
        deadline = time.monotonic() + PATIENCE
        while (left := _others()) and time.monotonic() < deadline and any(process.state(pid) != "T" for pid in left):
            time.sleep(PAUSE)
        if left:
            _end_all_but()
        if orphaned:
            cgroup.thaw(path)


@contextlib.contextmanager
def _configured(lines: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """The environment in which CRIU finds these settings.

    It need not lock the network: all of a container stands still already, and who is killed over a lock leaves it.
    """
    text = "\n".join([*lines, f"ghost-limit {GHOST_BYTES}", "network-lock skip", ""])
    with memory_file("criu.conf", text.encode()) as settings:
        yield {**ENVIRONMENT, "CRIU_CONFIG_FILE": path_of(settings)}


@contextlib.contextmanager
def _explained(log: Path) -> Iterator[None]:
    """A failure of runc's with CRIU's own words, which it only points to."""
    try:
        yield
    except Failed as exc:
        raise Failed(f"{_first_error(log) or exc}") from exc


def _first_error(log: Path) -> str:
    """CRIU's log says first what went wrong, and then all that went wrong because of it; or it breaks off."""
    try:
        with open(log, "rb") as file:
            text = file.read(LOG_BYTES)
    except OSError:
        return ""
    errors = (match[1].decode(errors="replace").strip() for match in _ERROR.finditer(text))
    cut_off = "" if _DONE in text else "CRIU was ended before it was done, by somebody or for want of memory"
    return next((f"CRIU: {error}" for error in errors if not error.startswith(_HARMLESS)), cut_off)


def user_of(bundle: Path) -> tuple[int, int]:
    """Whose stdio is to be: who the container runs as, which runc does not see to at a restore."""
    spec: dict[str, Any] = json.loads(files.read_bounded(bundle / "config.json", STATE_LIMIT))
    user = spec["process"]["user"]
    return int(user["uid"]), int(user["gid"])
