"""Checkpoints that the agent keeps of its pods: so many bytes, for so long, and the oldest goes first.

They are archives below ROOT/checkpoints, as `holdfast checkpoint` makes them; what they are of and how old they are is
told by the files themselves. A pod goes on, and is asked by no probe while it stands still: it would not answer.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from holdfast.agent.sync.runtime import Runtime
from holdfast.agent.sync.worker import Worker
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted

log = logging.getLogger(__name__)

NS: Final = 1_000_000_000
LOOK: Final = 60.0  # seconds between looks for what has become too old
SUFFIXES: Final = {"": ".tar", "zstd": ".tar.zst"}


@dataclass(frozen=True, slots=True, order=True)
class Kept:
    """One archive; `at` in ns since the epoch."""

    at: int
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Retention:
    """What may be kept: bytes of all together, and ns; 0 for no limit."""

    quota: int = 0
    age: int = 0


def surplus(kept: Iterable[Kept], retention: Retention, now: int) -> list[Kept]:
    """What has to go: all that is too old, and then the oldest, until the rest is within the quota."""
    ordered = sorted(kept)
    gone = [one for one in ordered if retention.age and now - one.at > retention.age]
    rest = ordered[len(gone) :]
    size = sum(one.bytes for one in rest)
    while retention.quota and size > retention.quota:
        gone.append(oldest := rest.pop(0))
        size -= oldest.bytes
    return gone


class Checkpoints:
    """Of one agent; made one at a time."""

    def __init__(self, directory: Path, runtime: Runtime, retention: Retention, clock: Callable[[], int]) -> None:
        self._directory = directory
        self._runtime = runtime
        self._retention = retention
        self._clock = clock
        self._making = asyncio.Lock()

    async def make(self, worker: Worker, compress: str) -> tuple[Kept, float]:
        """Of a pod, which goes on. Returns for how many seconds it stood still as well.

        Raises HoldfastError: FailedPrecondition and ResourceExhausted before anything was frozen; then nothing is left.
        """
        if compress not in SUFFIXES:
            raise InvalidArgument(f"compress: {compress!r} is none of zstd")
        meta, sandbox = worker.pod.metadata, worker.there.current
        if sandbox is None or not sandbox.ready:
            raise FailedPrecondition(f"cannot checkpoint pod {meta.namespace}/{meta.name}: it does not run")
        async with self._making:
            await in_thread(files.make_private, self._directory)
            moment = datetime.fromtimestamp(self._clock() / NS, UTC)
            name = f"{meta.namespace}_{meta.name}_{moment:%Y%m%dT%H%M%S.%f}{SUFFIXES[compress]}"
            crashpoint("agent.checkpoint")
            async with worker.unprobed():
                place = str(self._directory / name)
                seconds = await self._runtime.checkpoint(sandbox.id, place, compress, self._retention.quota)
            crashpoint("agent.checkpointed")
            [made] = [one for one in await self.all() if one.name == name]
            if self._retention.quota and made.bytes > self._retention.quota:  # which was not to be foreseen
                await in_thread(files.unlink, self.path(made))
                raise ResourceExhausted(f"cannot keep {name}: it is larger than all checkpoints together may be")
            await self._prune()
        return made, seconds

    async def all(self) -> list[Kept]:
        """The oldest first."""
        return await in_thread(self._list)

    async def remove(self, name: str) -> None:
        """Raises NotFound."""
        if all(one.name != name for one in await self.all()):
            raise NotFound(f"there is no checkpoint {name}")
        await in_thread(files.unlink, self._directory / name)

    async def look_after(self) -> None:
        """Remove what becomes too old. Never ends."""
        while True:
            try:
                await self._prune()
            except OSError as exc:
                log.warning("cannot look after checkpoints: %s", exc)
            await asyncio.sleep(LOOK)

    async def _prune(self) -> list[Kept]:
        gone = surplus(await self.all(), self._retention, self._clock())
        for one in gone:
            await in_thread(files.unlink, self._directory / one.name)
            log.info("checkpoint %s has been removed: it is beyond what may be kept", one.name)
        return gone

    def path(self, one: Kept) -> Path:
        return self._directory / one.name

    def _list(self) -> list[Kept]:
        found = []
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        for name in names:
            try:
                status = os.lstat(self._directory / name)
            except FileNotFoundError:  # it has been removed meanwhile
                continue
            if stat.S_ISREG(status.st_mode) and name.endswith(tuple(SUFFIXES.values())) and not name.startswith("."):
                found.append(Kept(status.st_mtime_ns, name, status.st_size))
        return sorted(found)
