"""Logs that have grown are rotated, as by a kubelet; its names, limits and order (pkg/kubelet/logs).

    0.log                       what the runtime writes to
    0.log.20260102-030405       the one before: the runtime wrote to it until it had reopened
    0.log.20260101-030405.gz    older ones

No line is lost whatever ends in between: while there is no 0.log nothing is done but reopening it, and where it cannot
be reopened the old one gets its name back, by a link, which never takes the place of anything. Only what is older than
a 0.log that has been reopened is packed or removed.
"""

import asyncio
import calendar
import contextlib
import gzip
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.agent.plan.observed import Run, State
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import convert
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.runtime import Runtime
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model.errors import HoldfastError
from holdfast.model.tally import OK, Counter

log = logging.getLogger(__name__)

PACKED: Final = ".gz"
HALF: Final = ".tmp"  # packed
STAMP: Final = "%Y%m%d-%H%M%S"
SUFFIX: Final = re.compile(r"\.\d{8}-\d{6}(\.gz)?")
PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each container's log: the bytes from which on it is rotated, 0 for never; the files that it may have, itself
    among them; and the seconds between looks."""

    size: int = 10 << 20
    files: int = 5
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """`size` is None if there is no such log. `older` are what is behind its name in those of files that were rotated
    away, the oldest first; `needless` in those of files that hold nothing which another does not."""

    size: int | None = None
    older: tuple[str, ...] = ()
    needless: tuple[str, ...] = ()

    @property
    def newest(self) -> str:
        """That to which the runtime may write still; "" if there is none."""
        return self.older[-1] if self.older and not self.older[-1].endswith(PACKED) else ""


# -- what there is, and what is to be done


def sort(suffixes: Collection[str], same: Collection[str], size: int | None) -> Found:
    """`same` are those of files that are the log itself by another name. Pure."""
    half = {one for one in suffixes if one.endswith(HALF) and SUFFIX.fullmatch(one.removesuffix(HALF))}
    whole = {one for one in suffixes if SUFFIX.fullmatch(one)}
    twice = {one for one in whole if f"{one}{PACKED}" in whole} | set(same)
    return Found(size, tuple(sorted(whole - twice)), tuple(sorted(half | twice)))


def excess(older: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """What has to go before one more is rotated away."""
    return older[: max(len(older) - max(limits.files - 2, 0), 0)]


def next_suffix(older: tuple[str, ...], now: float) -> str:
    """Later than all there are, whatever the clock says."""
    stamps = [time.strptime(one.removesuffix(PACKED), f".{STAMP}") for one in older[-1:]]
    return f".{time.strftime(STAMP, time.gmtime(max(now, *(calendar.timegm(one) + 1 for one in stamps), 0)))}"


def look(path: Path) -> Found:
    """Raises OSError."""
    same, suffixes, size, own = [], [], None, None
    with contextlib.suppress(FileNotFoundError):
        own = os.lstat(path)
        size = own.st_size
    with contextlib.suppress(FileNotFoundError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f"{path.name}."):
                suffixes.append(suffix := entry.name.removeprefix(path.name))
                same += [suffix] if own is not None and entry.inode() == own.st_ino else []
    return sort(suffixes, same, size)


# -- steps; each may be cut short anywhere, and is begun again


def make_room(path: Path, found: Found, limits: Limits) -> None:
    """Remove what is too much, and pack what nobody writes to any more. Raises OSError."""
    gone = excess(found.older, limits)
    for suffix in (*found.needless, *gone):
        files.unlink(f"{path}{suffix}")
    for suffix in found.older:
        if suffix not in gone and not suffix.endswith(PACKED):
            pack(f"{path}{suffix}")


def pack(path: str) -> None:
    """A log as a gzip file, which is on disk before the log goes. Raises OSError."""
    half = f"{path}{PACKED}{HALF}"
    with open(path, "rb") as plain, open(half, "wb") as file:
        os.fchmod(file.fileno(), os.fstat(plain.fileno()).st_mode & 0o777)
        with gzip.GzipFile("", "wb", fileobj=file) as packed:
            shutil.copyfileobj(plain, packed, PIECE)
        file.flush()
        files.fsync(file.fileno(), half)
    files.rename(half, f"{path}{PACKED}")
    crashpoint("agent.log.packed")
    files.unlink(path)


def put_back(path: Path, suffix: str) -> None:
    """Unless there is a log again. Raises OSError."""
    try:
        files.link(f"{path}{suffix}", path)
    except FileExistsError:
        return
    crashpoint("agent.log.linked")
    files.unlink(f"{path}{suffix}")


def remove(path: Path) -> None:
    """A log with all that was rotated away of it. Raises OSError."""
    found = look(path)
    for suffix in (*found.needless, *found.older, ""):
        files.unlink(f"{path}{suffix}")


# -- all logs, again and again


class Rotation:
    """One pod's logs are looked at by one task at a time: a runtime that does not answer for one holds up no other."""

    def __init__(
        self, runtime: Runtime, node: Node, limits: Limits, rotations: Counter, clock: Callable[[], float] = time.time
    ) -> None:
        self._runtime = runtime
        self._node = node
        self._limits = limits
        self._rotations = rotations
        self._clock = clock
        self._busy: set[str] = set()
        self._said: dict[str, str] = {}

    async def run(self, pods: Callable[[], Iterable[tuple[Pod, tuple[Run, ...]]]]) -> None:
        """Until it is cancelled; `pods` are those that there are now, with the runs of their containers."""
        async with asyncio.TaskGroup() as group:
            while self._limits.size:
                there = list(pods())
                ids = {run.id for _, runs in there for run in runs}
                self._said = {key: why for key, why in self._said.items() if key in ids}
                for pod, runs in there:
                    if (uid := pod.metadata.uid) not in self._busy:
                        self._busy.add(uid)
                        group.create_task(self._tend(pod, runs), name=f"logs of pod {uid}")
                await asyncio.sleep(self._limits.seconds)

    async def _tend(self, pod: Pod, runs: tuple[Run, ...]) -> None:
        try:
            for run in runs:
                await self._try(pod, run)
        finally:
            self._busy.discard(pod.metadata.uid)

    async def _try(self, pod: Pod, run: Run) -> None:
        """A log that cannot be rotated is written to as it is: it is said once."""
        path = Path(convert.log_path(pod, self._node, run.name, run.attempt))
        try:
            await self._look_at(path, run)
            self._said.pop(run.id, None)
        except (HoldfastError, OSError) as exc:
            self._rotations.add("failed")
            why = getattr(exc, "strerror", None) or str(exc)
            if self._said.get(run.id) != why:
                log.warning("cannot rotate %s: %s", path, why)
            self._said[run.id] = why

    async def _look_at(self, path: Path, run: Run) -> None:
        found = await in_thread(look, path)
        if found.size is None:
            if run.state is State.RUNNING:
                await self._reopen(path, run, found.newest)
            elif run.state is State.EXITED and found.newest:
                await in_thread(put_back, path, found.newest)
        elif run.state is State.RUNNING and found.size > self._limits.size:
            await self._rotate(path, run, found)

    async def _rotate(self, path: Path, run: Run, found: Found) -> None:
        await in_thread(make_room, path, found, self._limits)
        crashpoint("agent.log.room")
        suffix = next_suffix(found.older, self._clock())
        await in_thread(files.rename, path, f"{path}{suffix}")
        crashpoint("agent.log.renamed")
        await self._reopen(path, run, suffix)
        crashpoint("agent.log.reopened")
        self._rotations.add(OK)

    async def _reopen(self, path: Path, run: Run, newest: str) -> None:
        try:
            await self._runtime.reopen_log(run.id)
        except HoldfastError:
            if newest:
                await in_thread(put_back, path, newest)
            raise
