"""Making one volume, and its end. Each can be done again, from wherever it was cut short; all of them block.

Nobody does two at the same volume at once (executor.py).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.agent.pod.volumes import HostPath
from holdfast.agent.volumes import emptydir, files, hostpath, journal, memory, ownership, subpath, teardown
from holdfast.agent.volumes.emptydir import EmptyDir
from holdfast.agent.volumes.journal import Entry
from holdfast.agent.volumes.paths import EMPTY_DIR, Key, Paths, listed
from holdfast.agent.volumes.teardown import Teardown
from holdfast.agent.volumes.world import Desired, Files
from holdfast.linux.files import mkdir
from holdfast.linux.inject import crashpoint
from holdfast.linux.mount import MountEntry

FILES_MODE: Final = 0o755


class Kept(Exception):
    """A volume, or something of it, is still there; the text says why. `detached` is what was taken out of it."""

    def __init__(self, why: str, detached: tuple[MountEntry, ...]) -> None:
        super().__init__(why)
        self.detached = detached


def set_up(paths: Paths, wanted: Desired) -> str:
    """Returns the path that containers are given. Raises OSError, ValueError."""
    key, content = wanted.key, wanted.content
    if isinstance(content, EmptyDir):
        return os.fspath(emptydir.set_up(paths, key, wanted.shape, content))
    assert content is not None
    journal.write(
        paths, key, Entry(wanted.shape)
    )  # also for what is the host's: there may be parts of it for containers
    crashpoint("volume.journalled")
    if isinstance(content, HostPath):
        return hostpath.check(content)
    return os.fspath(_set_up_files(paths, key, content))


def _set_up_files(paths: Paths, key: Key, content: Files) -> Path:
    place = paths.volume(key.uid, key.kind, key.name)
    mkdir(place, parents=True, exist_ok=True)
    if os.stat(place).st_mode & FILES_MODE != FILES_MODE:
        os.chmod(place, FILES_MODE)
    crashpoint("volume.made")
    if content.in_memory:
        memory.set_up(place)
    files.write(place, content.payload, content.group)
    if content.group is not None:
        descriptor = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            ownership.give(descriptor, content.group, read_only=True)
        finally:
            os.close(descriptor)
    return place


def tear_down(paths: Paths, key: Key) -> tuple[MountEntry, ...]:
    """For whoever has seen proof that no container of the pod lives. Returns what others had mounted. Raises Kept."""
    detached: list[MountEntry] = []
    reasons: list[str] = []
    try:
        _unbind(paths, key)
        crashpoint("volume.unbound")
        device = emptydir.own_device(paths, key)
        for done in _torn_down(paths, key):
            detached += (one for one in done.detached if one.device != device)
            if done.kept:
                reasons.append(done.kept)
        if not reasons:
            if key.kind == EMPTY_DIR:
                emptydir.release(paths, key)
            crashpoint("volume.released")
            journal.remove(paths, key)
    except OSError as exc:
        reasons.append(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))
    if reasons:
        raise Kept("; ".join(reasons), tuple(detached))
    return tuple(detached)


def _torn_down(paths: Paths, key: Key) -> Iterator[Teardown]:
    place = paths.volume(key.uid, key.kind, key.name)
    for volume in (place, paths.sized(key.uid, key.name)) if key.kind == EMPTY_DIR else (place,):
        discarded = paths.discarded(key.uid, key.name)
        yield _as_it_was(teardown.tear_down(volume, discarded), volume, discarded)
    for left in paths.discards(key):
        yield _as_it_was(teardown.empty(left), place, left)


def _as_it_was(done: Teardown, volume: Path, discarded: Path) -> Teardown:
    """What was mounted is told by the names by which whoever mounted it knows it."""

    def named(one: MountEntry) -> MountEntry:
        below = one.target.removeprefix(f"{discarded}/")
        return one if below == one.target else replace(one, target=f"{volume}/{below}")

    return replace(done, detached=tuple(map(named, done.detached)))


def _unbind(paths: Paths, key: Key) -> None:
    """The parts of the volume that containers had. What lies in their places is not deleted: only empty names are."""
    for container in listed(paths.subpaths(key.uid, key.name)):
        for part in listed(container):
            subpath.unbind(part)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(container)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(paths.subpaths(key.uid, key.name))
