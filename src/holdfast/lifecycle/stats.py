"""What pods and containers use: the kernel's counters, read in one pass, whatever shim they have and however it is.

Sizes of writable layers come from walks that are remembered: nobody waits long for one, and one that hangs is waited
for by nobody.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.objects import Container, Pod, container_cgroup, pod_cgroup
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.lifecycle.world import World
from holdfast.linux import usage
from holdfast.linux.usage import Interface as Interface  # for those above, who know no kernel
from holdfast.linux.usage import Pressure as Pressure
from holdfast.linux.usage import Usage
from holdfast.model import gvisor
from holdfast.model.errors import DeadlineExceeded
from holdfast.model.state import ContainerState
from holdfast.runtime import command
from holdfast.runtime.handlers import Handlers
from holdfast.snapshots.overlay import Snapshots

LEAST_RATE: Final = 1_000_000_000  # ns between two samples of which a rate is made
WALK_AGE: Final = 10.0  # seconds for which a walk's result holds, or ten times as long as the walk took
WALK_OLDEST: Final = 60.0  # for so much longer it is shown while there is no newer one, and waited for after that
WALK_PATIENCE: Final = 0.5
ASKING_SECONDS: Final = 2.0
ASKED_AT_ONCE: Final = 4  # commands of runsc


@dataclass(frozen=True, slots=True)
class Layer:
    """Of a writable layer: where it is, its bytes and inodes, and when they were counted (ns since the epoch)."""

    place: Path
    bytes: int
    inodes: int
    at: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What something uses at one moment. `rate` is in ns of cpu time a second, None until there are two samples."""

    at: int  # ns since the epoch
    usage: Usage | None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerSample:
    container: Container
    sample: Sample
    layer: Layer | None


@dataclass(frozen=True, slots=True)
class PodSample:
    pod: Pod
    sample: Sample
    interfaces: list[Interface]
    containers: list[ContainerSample]


class Stats:
    """Samples of this node's cgroups; two of the same one make a rate."""

    def __init__(self, world: World, snapshots: Snapshots, background: Background, handlers: Handlers) -> None:
        self._world = world
        self._handlers = handlers
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._rates: dict[str, tuple[int, int, int | None]] = {}  # by cgroup: (monotonic ns, cpu ns, rate)
        self._layers = Layers(world, snapshots, background)

    async def containers(self, wanted: Iterable[Container]) -> list[ContainerSample]:
        """Of each one; its usage is None where it has not started or has ended."""
        found = list(wanted)
        inside = [one for one in found if self._handlers.get(one.pod.meta.handler).gvisor and runs(one)]
        samples, told, layers = await asyncio.gather(
            self._sample([container_cgroup(one) for one in found]),
            asyncio.gather(*(self._ask(one) for one in inside)),
            self._layers.look(found),
        )
        by_id = {one.meta.id: sample for one, sample in zip(inside, told, strict=True)}
        samples = [by_id.get(one.meta.id, sample) for one, sample in zip(found, samples, strict=True)]
        return [
            ContainerSample(one, sample if runs(one) else replace(sample, usage=None, rate=None), layer)
            for one, sample, layer in zip(found, samples, layers, strict=True)
        ]

    async def pods(self, wanted: Iterable[Pod]) -> list[PodSample]:
        """Of each one, with its running containers."""
        found = list(wanted)
        names = {pod.meta.id: Path(pod.status.netns) for pod in found if pod.status.netns}
        samples, networks, inside = await asyncio.gather(
            self._sample([pod_cgroup(pod) for pod in found]),
            in_thread(usage.of_networks, list(names.values())),
            self.containers(one for pod in found for one in pod.containers.values() if runs(one)),
        )
        by_pod: dict[str, list[ContainerSample]] = {pod.meta.id: [] for pod in found}
        for one in inside:
            if one.sample.usage is not None:
                by_pod[one.container.meta.pod_id].append(one)
        return [
            PodSample(pod, sample, networks.get(names.get(pod.meta.id, Path()), []), by_pod[pod.meta.id])
            for pod, sample in zip(found, samples, strict=True)
        ]

    async def counters(self, wanted: Iterable[Container]) -> dict[str, dict[str, int]]:
        """What usage.counters_of tells, by container."""
        paths = {one.meta.id: container_cgroup(one) for one in wanted}
        return await in_thread(lambda: {id: usage.counters_of(path) for id, path in paths.items()})

    async def _sample(self, paths: list[str]) -> list[Sample]:
        self._forget()
        found = await in_thread(lambda: [(time.monotonic_ns(), usage.of_cgroup(path)) for path in paths])
        now = self._world.clock.now()
        return [Sample(now, one, self._rate(path, at, one)) for path, (at, one) in zip(paths, found, strict=True)]

    async def _ask(self, container: Container) -> Sample:
        """Of a container of gVisor, whose processes are in no cgroup of its own: runsc knows, and is not waited for."""
        handler, found = self._handlers.get(container.pod.meta.handler), None
        async with self._asking:
            with contextlib.suppress(DeadlineExceeded):
                said = await command.ask(handler, "events", "--stats", container.meta.id, seconds=ASKING_SECONDS)
                found = gvisor.usage(said or b"")
        if found is None:
            return Sample(self._world.clock.now(), None)
        cpu, memory, processes = found
        used = Usage(cpu=cpu, memory=memory, working_set=memory, processes=processes)
        rate = self._rate(container_cgroup(container), time.monotonic_ns(), used)
        return Sample(self._world.clock.now(), used, rate)

    def _rate(self, path: str, at: int, found: Usage | None) -> int | None:
        """Since the sample before; of samples too close to each other the earlier rate holds."""
        if found is None or found.cpu is None:
            return None
        before = self._rates.get(path)
        if before is None or found.cpu < before[1]:  # it is another cgroup of that name
            self._rates[path] = (at, found.cpu, None)
            return None
        since, cpu, rate = before
        if at - since < LEAST_RATE:
            return rate
        rate = (found.cpu - cpu) * 1_000_000_000 // (at - since)
        self._rates[path] = (at, found.cpu, rate)
        return rate

    def _forget(self) -> None:
        """What is gone, when there is much of it."""
        if len(self._rates) > 2 * (len(self._world.containers) + len(self._world.pods)) + 100:
            known = {container_cgroup(one) for one in self._world.containers.values()}
            known |= {pod_cgroup(pod) for pod in self._world.pods.values()}
            self._rates = {path: one for path, one in self._rates.items() if path in known}


class Layers:
    """Bytes and inodes of writable layers. One walk at a time, so that statistics take no more than a disk can bear."""

    def __init__(self, world: World, snapshots: Snapshots, background: Background) -> None:
        self._world = world
        self._snapshots = snapshots
        self._background = background
        self._known: dict[str, tuple[float, Layer]] = {}  # by snapshot: until when it holds (monotonic), and what
        self._turn = asyncio.Semaphore(1)

    async def look(self, wanted: list[Container]) -> list[Layer | None]:
        """What is known, waiting a little for what is not, or has not been looked at for long."""
        now = time.monotonic()
        keys = [one.meta.snapshot_key for one in wanted]
        if stale := [key for key in keys if key not in self._known or self._known[key][0] < now]:
            there = {one.meta.snapshot_key for one in self._world.containers.values()}
            self._known = {key: one for key, one in self._known.items() if key in there}
            walks = {key: self._background.start(f"walk {key}", self._walk(key)) for key in stale}
            oldest = now - WALK_OLDEST
            if missed := [walks[key] for key in stale if key not in self._known or self._known[key][0] < oldest]:
                await asyncio.wait(missed, timeout=WALK_PATIENCE)
        return [self._known[key][1] if key in self._known else None for key in keys]

    async def _walk(self, key: str) -> None:
        async with self._turn:
            began = time.monotonic()
            try:
                place = self._snapshots.place(key)
                size, inodes = await in_thread(walk, place)
            except (OSError, LookupError):
                return
            took = time.monotonic() - began
            layer = Layer(place, size, inodes, self._world.clock.now())
            self._known[key] = (time.monotonic() + max(WALK_AGE, 10 * took), layer)


def runs(container: Container) -> bool:
    """Whether it may: one that has ended has a cgroup for a moment still."""
    return container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN)


def walk(top: Path) -> tuple[int, int]:
    """(bytes on disk, inodes) of a directory and what is below it; a file with several names counts once. Blocks."""
    size, inodes = 0, 0
    seen: set[tuple[int, int]] = set()
    places = [os.fspath(top)]
    first = os.lstat(top)
    size, inodes = first.st_blocks * 512, 1
    while places:
        try:
            entries = os.scandir(places.pop())
        except FileNotFoundError:
            continue  # whoever runs there may remove what he likes meanwhile
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if (identity := (status.st_dev, status.st_ino)) in seen:
                        continue
                    seen.add(identity)
                size += status.st_blocks * 512
                inodes += 1
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
    return size, inodes
