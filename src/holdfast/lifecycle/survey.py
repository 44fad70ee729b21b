"""One pass over the kernel and the disk: everything that is, or could be, ours. Looks, and neither judges nor acts.

A place that could not be looked at is in `unknown` with the reason. It is never taken for an empty one.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.lifecycle.layout import CHECKPOINTS, RESTORES, Layout
from holdfast.lifecycle.monitor import read_init
from holdfast.linux import cgroup, files, mount, table
from holdfast.linux.mount import MountEntry
from holdfast.linux.table import Listed
from holdfast.model.cgroups import id_in
from holdfast.model.errors import Damaged
from holdfast.model.spec import is_id
from holdfast.model.state import ProcessRef
from holdfast.model.witness import LOGGER_FILE, InitRecord, decode_process
from holdfast.runtime.keeper import WorkerInfo
from holdfast.runtime.streamers import ATTACH, EXEC, RECORDS, kind_of

INSIDE: Final = (EXEC, ATTACH)  # directories of a bundle in which each thing under way in its container has one
RECORD_LIMIT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory; `age` is in seconds, and told of temporary files only."""

    name: str
    kind: str  # "directory", "file", "link", "fifo", "socket" or "other"
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: the two roots, our cgroup, and the cgroups that pods were given."""

    layout: Layout
    cgroup_root: str
    cgroup_parents: frozenset[str]
    known: frozenset[str]  # ids that have a row; the bundles of others are looked into


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen. Paths are real ones; a directory that is missing is an empty one in `files`."""

    place: Place
    root: str
    state: str
    boot_id: str
    processes: tuple[Listed, ...]
    workers: tuple[WorkerInfo, ...] | None  # as the keeper lists them; None when it did not answer
    mounts: tuple[MountEntry, ...]  # below the roots, in the order in which they can be unmounted
    cgroups: tuple[str, ...]  # directly below ours and below those of pods, whose parent precedes them
    files: dict[str, tuple[Entry, ...]]
    inits: dict[str, InitRecord]  # of bundles without a row, by container id
    loggers: dict[str, ProcessRef]  # as bundles name them, by container id
    streamers: dict[str, ProcessRef]  # as they are recorded, by session id
    unknown: dict[str, str]

    def names(self, directory: str) -> tuple[Entry, ...]:
        return self.files.get(directory, ())

    def looked(self, where: str) -> bool:
        """Whether what is not in this directory, or this cgroup, is known not to be there."""
        return not any(where == place or where.startswith(f"{place}/") for place in self.unknown)


def take(place: Place, boot_id: str) -> Survey:
    """Look at everything once; processes first, because what they use outlives them.

    The keeper is to be asked for its workers after that: one that it does not list then is not its own.
    """
    look = _Look(place)
    processes = look.processes()
    mounts = look.mounts()
    look.state_directory()
    look.root_directory()
    inits = look.inits()
    return Survey(
        place=place,
        root=look.root,
        state=look.state,
        boot_id=boot_id,
        processes=processes,
        workers=None,
        mounts=mounts,
        cgroups=look.cgroups(inits),
        files=look.files,
        inits=inits,
        loggers=look.loggers(),
        streamers=look.streamers(),
        unknown=look.unknown,
    )


class _Look:
    """Collects what is seen and what could not be."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.root = os.path.realpath(place.layout.root)
        self.state = os.path.realpath(place.layout.state)
        self.files: dict[str, tuple[Entry, ...]] = {}
        self.unknown: dict[str, str] = {}

    def processes(self) -> tuple[Listed, ...]:
        try:
            found, unread = table.processes()
        except OSError as exc:
            self.unknown["/proc"] = str(exc)
            return ()
        self.unknown |= {f"pid {pid}": str(exc) for pid, exc in unread.items()}
        return tuple(found)

    def mounts(self) -> tuple[MountEntry, ...]:
        found: dict[int, MountEntry] = {}
        try:
            for top in (self.state, self.root):
                found |= {entry.id: entry for entry in mount.mounts_below(top) if entry.target != top}
        except OSError as exc:
            self.unknown["mounts"] = str(exc)
        return tuple(found.values())

    def state_directory(self) -> None:
        state = self.state
        self._list(state)
        for runtime in self._directories(f"{state}/oci"):
            self._list(runtime)
        for pod in self._directories(f"{state}/pods"):
            for directory in self._directories(pod):
                name = os.path.basename(directory)
                if name == RECORDS:
                    self._list(directory)
                for entry in self._list(directory) if is_id(name) else ():
                    if entry.name in INSIDE:
                        self._list(f"{directory}/{entry.name}")

    def root_directory(self) -> None:
        for name in ("", "/content/sha256", "/copies", "/ingest", "/snapshots", f"/{CHECKPOINTS}", f"/{RESTORES}"):
            self._list(f"{self.root}{name}")

    def inits(self) -> dict[str, InitRecord]:
        """Whom the bundles without a row have started."""
        found = {}
        for directory in [path for path in self.files if is_id(os.path.basename(path))]:
            name = os.path.basename(directory)
            if name in self._place.known or os.path.dirname(directory) == f"{self.state}/pods":
                continue
            try:
                init = read_init(Path(directory))
            except OSError as exc:
                self.unknown[directory] = str(exc)
                continue
            if init is not None:
                found[name] = init
        return found

    def loggers(self) -> dict[str, ProcessRef]:
        found = {}
        for directory, entries in self.files.items():
            named = any(entry.name == LOGGER_FILE for entry in entries)
            if named and (logger := self._process(directory, LOGGER_FILE)) is not None:
                found[os.path.basename(directory)] = logger
        return found

    def streamers(self) -> dict[str, ProcessRef]:
        found = {}
        for directory in [path for path in self.files if os.path.basename(path) == RECORDS]:
            for name in (entry.name for entry in self.files[directory] if kind_of(entry.name)):
                if (streamer := self._process(directory, name)) is not None:
                    found[name] = streamer
        return found

    def _process(self, directory: str, name: str) -> ProcessRef | None:
        """Whom a file names."""
        try:
            return decode_process(files.read_bounded(f"{directory}/{name}", RECORD_LIMIT))
        except (FileNotFoundError, Damaged):
            return None
        except OSError as exc:
            self.unknown[directory] = str(exc)
            return None

    def cgroups(self, inits: dict[str, InitRecord]) -> tuple[str, ...]:
        """Of `inits` only those cgroups that bear the container's own id."""
        top = self._place.cgroup_root
        parents = [f"{top}/{name}" for name in self._children(top)]
        found = dict.fromkeys(parents)
        for parent in dict.fromkeys((*parents, *sorted(self._place.cgroup_parents))):
            if id_in(os.path.basename(parent)) or parent in self._place.cgroup_parents:
                if self._exists(parent):
                    found[parent] = None
                found |= dict.fromkeys(f"{parent}/{name}" for name in self._children(parent))
        for container_id, init in inits.items():
            if id_in(os.path.basename(init.cgroup)) == container_id and self._exists(init.cgroup):
                found[init.cgroup] = None
        return tuple(found)

    def _exists(self, path: str) -> bool:
        try:
            return cgroup.exists(path)
        except (OSError, ValueError) as exc:
            self.unknown[path] = str(exc)
            return False

    def _children(self, path: str) -> list[str]:
        try:
            return sorted(cgroup.children(path))
        except (OSError, ValueError) as exc:
            self.unknown[path] = str(exc)
            return []

    def _directories(self, path: str) -> list[str]:
        return [f"{path}/{entry.name}" for entry in self._list(path) if entry.kind == "directory"]

    def _list(self, path: str) -> tuple[Entry, ...]:
        try:
            with os.scandir(path) as entries:
                found = [one for entry in entries if (one := _entry(entry)) is not None]
        except FileNotFoundError:
            found = []
        except OSError as exc:
            self.unknown[path] = str(exc)
            found = []
        self.files[path] = tuple(sorted(found, key=lambda entry: entry.name))
        return self.files[path]


def _entry(entry: os.DirEntry[str]) -> Entry | None:
    """What the directory itself tells needs no look at the file; None for one that has gone meanwhile."""
    if entry.is_dir(follow_symlinks=False):
        return Entry(entry.name, "directory")
    if entry.is_symlink():
        return Entry(entry.name, "link")
    if entry.is_file(follow_symlinks=False):
        return Entry(entry.name, "file", files.temporary_age(entry.name))
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    kinds = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    return Entry(entry.name, kinds.get(stat.S_IFMT(found.st_mode), "other"))
