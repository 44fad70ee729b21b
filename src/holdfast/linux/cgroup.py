"""Control groups by path below every hierarchy: cgroup v2, v1, and hosts that have both (cgroups(7))."""

import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.linux import process
from holdfast.linux.inject import fault

ROOT: Final = Path("/sys/fs/cgroup")
UNIFIED: Final = ROOT / "unified"
KILL_SECONDS: Final = 2.0
KILL_PAUSE: Final = 0.005
CREATE_TRIES: Final = 100


@functools.cache
def hierarchies() -> dict[str, Path]:
    """Where each hierarchy is mounted: {"": ...} for v2, one entry a controller for v1, both on a hybrid host."""
    found: dict[str, Path] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in map(os.fsdecode, file):  # what else is mounted may be called anything
            before, _, after = line.partition(" - ")
            target, (fstype, _, options) = before.split()[4], after.split()[:3]
            if fstype == "cgroup2":
                found.setdefault("", Path(target))  # the first: a later one is somebody's copy
            elif fstype == "cgroup":
                names = [part for part in options.split(",") if part not in ("rw", "ro", "xattr", "clone_children")]
                for name in names:
                    found.setdefault(name.removeprefix("name="), Path(target))
    return found


def mode() -> str:
    """ "v2", "v1", or "hybrid" where v1 controllers are used and a v2 mount exists as well."""
    found = hierarchies()
    if set(found) == {""}:
        return "v2"
    return "hybrid" if "" in found else "v1"


def _directories(path: str) -> list[Path]:
    relative = path.strip("/")
    if not relative or ".." in relative.split("/"):
        raise ValueError(f"cgroup path {path!r} is not a path below the root")
    return [top / relative for top in dict.fromkeys(hierarchies().values())]


def _memory(path: str) -> Path:
    found = hierarchies()
    return found.get("memory", found.get("", ROOT)) / path.strip("/")


def create(path: str) -> None:
    """Make the cgroup in every hierarchy, with its parents; on v2 the parents' controllers are passed down.

    A parent that somebody removes in between, because nothing is in it, is made again.
    """
    for directory in _directories(path):
        fault("cgroup-mkdir", directory)
        for left in reversed(range(CREATE_TRIES)):
            try:
                _create(directory)
                break
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.EEXIST) or not left:
                    raise


def _create(directory: Path) -> None:
    if directory.is_relative_to(hierarchies().get("cpuset", Path("/nowhere"))):
        _create_cpuset(directory)
    elif mode() == "v2":
        _create_v2(directory)
    else:
        _make(directory)


def _make(directory: Path) -> None:
    """With its parents, for all to look into, whatever our umask is: whoever a container runs as finds its limits."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make(directory.parent)
        os.mkdir(directory)
    os.chmod(directory, 0o755)


def _create_cpuset(directory: Path) -> None:
    """A new v1 cpuset is empty and takes no process until it is told which cpus and memory nodes it has."""
    top = hierarchies()["cpuset"]
    for level in [*reversed(directory.relative_to(top).parents), directory.relative_to(top)]:
        one = top / level
        _make(one)
        if one == top:
            continue
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (one / name).read_text().strip():
                (one / name).write_text((one.parent / name).read_text())


def _create_v2(directory: Path) -> None:
    top = hierarchies()[""]
    for level in reversed(directory.relative_to(top).parents):
        one = top / level
        _make(one)
        for name in (one / "cgroup.controllers").read_text().split():
            try:
                (one / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError as exc:
                if exc.errno not in (errno.EBUSY, errno.ENOTSUP, errno.EINVAL):  # has processes of its own, or cannot
                    raise
    _make(directory)


def exists(path: str) -> bool:
    """Whether any hierarchy has it."""
    return any(directory.is_dir() for directory in _directories(path))


def children(path: str) -> set[str]:
    """Names of the cgroups directly below, of all hierarchies."""
    names: set[str] = set()
    for directory in _directories(path):
        fault("cgroup-list", directory)
        try:
            with os.scandir(directory) as entries:
                names.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            continue
    return names


def remove(path: str) -> None:
    """Remove the cgroup and those below it from every hierarchy. Idempotent; EBUSY while it has processes."""
    for directory in _directories(path):
        for level, _, _ in os.walk(directory, topdown=False):
            try:
                fault("cgroup-rmdir", level)
                os.rmdir(level)
            except FileNotFoundError:
                continue


def remove_if_empty(path: str) -> None:
    """Remove the cgroup itself where nothing is in it or below it; where something is, it stays."""
    for directory in _directories(path):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def pids(path: str) -> set[int]:
    """Every process in the cgroup or below it, in any hierarchy."""
    found: set[int] = set()
    for directory in _directories(path):
        for level, _, _ in os.walk(directory, onerror=_unless_gone):
            try:
                fault("cgroup-read", level)
                found.update(map(int, Path(level, "cgroup.procs").read_text().split()))
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                    raise
    return found


def _unless_gone(error: OSError) -> None:
    """A cgroup that cannot be listed is not an empty one."""
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error


def enter(path: str, pid: int) -> None:
    """Move a process into the cgroup, in every hierarchy."""
    for directory in _directories(path):
        fault("cgroup-write", directory)
        (directory / "cgroup.procs").write_text(str(pid))


def populated(path: str) -> bool:
    """Whether any process is in it."""
    return bool(pids(path))


def kill(path: str, seconds: float = KILL_SECONDS) -> None:
    """SIGKILL every process in it until none is left. Raises OSError EBUSY when some do not die in time.

    A freezer of version 1 keeps even who was killed: it lets go. When time is up they are looked for once more, as it
    may be ourselves who were late.
    """
    whole = hierarchies().get("", Path("/nowhere")) / path.strip("/") / "cgroup.kill"
    deadline, is_late = time.monotonic() + seconds, False
    while alive := [pid for pid in pids(path) if process.state(pid) not in ("Z", "X", "")]:
        if is_late:
            raise OSError(errno.EBUSY, f"processes outlive SIGKILL: {sorted(alive)}", path)
        if mode() == "v2" and whole.exists():
            whole.write_text("1")
        else:
            _kill_each(path, alive)
            _thaw_all(path)
        is_late = time.monotonic() > deadline
        time.sleep(KILL_PAUSE)


def _thaw_all(path: str) -> None:
    """The cgroup and those below it, with version 1."""
    if "freezer" not in hierarchies():
        return
    top = hierarchies()["freezer"]
    for level, _, _ in os.walk(top / path.strip("/"), onerror=_unless_gone):
        below = os.path.relpath(level, top)
        if (read(below, "freezer", "freezer.state") or "THAWED") != "THAWED":
            thaw(below)


def _kill_each(path: str, found: list[int]) -> None:
    """Pin them, look again who is in the cgroup, then kill: a number may be another process by now."""
    pinned = [one for one in (process.open_pinned(pid, None) for pid in found) if one is not None]
    try:
        still = pids(path)
        for one in pinned:
            if one.pid in still:
                one.send(signal.SIGKILL)
    finally:
        for one in pinned:
            one.close()


def freeze(path: str) -> None:
    """Have whoever is in it stop as soon as may be; `frozen` tells when all have. It may be said again."""
    _set_freezer(path, "FROZEN", "1")


def thaw(path: str) -> None:
    """Let them go on. One that is gone has nobody to hold up."""
    try:
        _set_freezer(path, "THAWED", "0")
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def frozen(path: str) -> bool:
    """Whether all in it have stopped: what they have in memory, and on disk, changes no more."""
    if "freezer" in hierarchies():
        return read(path, "freezer", "freezer.state") == "FROZEN"
    return "frozen 1" in (read(path, "", "cgroup.events") or "").splitlines()


def _set_freezer(path: str, v1: str, v2: str) -> None:
    on_v1 = "freezer" in hierarchies()
    file = _file(path, "freezer", "freezer.state" if on_v1 else "cgroup.freeze")
    fault("cgroup-write", file)
    file.write_text(v1 if on_v1 else v2)


def has(path: str, controller: str, name: str) -> bool:
    """Whether a cgroup has this file; with v2 there is one hierarchy for all controllers."""
    return _file(path, controller, name).exists()


def read(path: str, controller: str, name: str) -> str | None:
    """What a file of a cgroup says; None when there is none."""
    try:
        return _file(path, controller, name).read_text().strip()
    except FileNotFoundError:
        return None


def change(path: str, changes: Iterable[tuple[str, str, str]]) -> None:
    """Write (controller, file, value), in order: all, or none, because what was there before is written back.

    Raises OSError with the file's name.
    """
    undo: list[tuple[Path, str]] = []
    try:
        for controller, name, value in changes:
            file = _file(path, controller, name)
            before = file.read_text().strip()
            fault("cgroup-write", file)
            file.write_text(value)
            undo.append((file, before))
    except OSError as exc:
        exc.filename = exc.filename or str(file)
        for written, before in reversed(undo):
            with contextlib.suppress(OSError):
                written.write_text(before)
        raise


def _file(path: str, controller: str, name: str) -> Path:
    found = hierarchies()
    top = found.get(controller, found.get("", ROOT)) if controller else found.get("", ROOT)
    return top / path.strip("/") / name


def oom_kills(path: str) -> int:
    """How many of its processes the kernel has killed for want of memory. Raises OSError ENOENT when it is gone."""
    directory = _memory(path)
    name = "memory.oom_control" if "memory" in hierarchies() else "memory.events"
    if not (directory / name).exists() and directory.is_dir():
        return 0
    for line in (directory / name).read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0


def of_process(pid: int) -> str:
    """The cgroup a process is in: that of the memory controller on v1. Of one that is gone ProcessLookupError."""
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        entries = [os.fsdecode(line.rstrip(b"\n")).split(":", 2) for line in file]
    for _, controllers, path in entries:
        if "memory" in controllers.split(","):
            return path
    for _, controllers, path in entries:
        if not controllers:
            return path
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}/cgroup")


def entrance(path: str) -> str:
    """The file to which a process writes 0 to enter the cgroup, in one hierarchy: enough to be found again."""
    return str(_directories(path)[0] / "cgroup.procs")
