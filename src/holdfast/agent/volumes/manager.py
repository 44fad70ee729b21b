"""The volumes of all pods: told what is wanted, it sees to it that it is there, and that what is not wanted goes.

What was there before is learnt once, at the beginning; after that it is looked each second, and whenever something has
changed, what is to be done next (plan.py), and that is done (executor.py).
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.agent.pod.containers import Container, VolumeMount
from holdfast.agent.pod.env import Facts, expand
from holdfast.agent.pod.spec import Pod
from holdfast.agent.pod.volumes import Volume
from holdfast.agent.volumes import plan, subpath, world
from holdfast.agent.volumes.executor import Executor
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.agent.volumes.plan import Attempt, Operation
from holdfast.agent.volumes.world import Desired, State
from holdfast.linux import mount, nested
from holdfast.linux.mount import MountEntry
from holdfast.linux.threads import in_thread

log = logging.getLogger(__name__)

PERIOD: Final = 1.0  # seconds
PROOF_SECONDS: Final = 60.0


class NotReady(Exception):
    """A volume is not there yet, or not as a container wants it; the text says why."""


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """One volumeMount, for a runtime: a path of the host, or an image."""

    volume: str
    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_read_only: str = "Disabled"
    propagation: str = "None"
    image: str = ""
    image_pull_policy: str = ""
    image_sub_path: str = ""


class Manager:
    """`proven_dead` says whether certainly no container of a pod lives; `facts` what files may be made of, now."""

    def __init__(
        self, root: Path, proven_dead: Callable[[str], Awaitable[bool]], facts: Callable[[Pod], Facts]
    ) -> None:
        self._paths = Paths(Path(os.path.realpath(root)))  # as mountinfo has it
        self._proven_dead = proven_dead
        self._facts = facts
        self._executor = Executor(self._paths)
        self._pods: dict[str, Pod] = {}
        self._complete = False
        self._desired: dict[str, tuple[Pod, Facts, list[Desired]]] = {}
        self._unread = "what is there has not been learnt yet"
        self._dead: set[str] = set()
        self._asking: set[str] = set()
        self._unproven: dict[str, Attempt] = {}
        self._wake = asyncio.Event()

    # -- what others ask for

    def want(self, pods: Iterable[Pod], complete: bool) -> None:
        """All pods whose volumes are wanted, those included that are being stopped. `complete`: there are no others."""
        self._pods = {pod.metadata.uid: pod for pod in pods}
        self._complete = complete
        self._refresh()
        self._wake.set()
        self._executor.changes.tell()

    def prove_again(self, uid: str) -> None:
        """Without a pause: what kept it from being proven dead may be over."""
        self._unproven.pop(uid, None)
        self._wake.set()

    async def ready(self, uid: str, seconds: float = 0.0) -> dict[str, str]:
        """The host's paths of a pod's volumes by their names, "" for images, once all of them are set up.

        Raises NotReady, after at most so many seconds.
        """
        await self._executor.changes.until(lambda: uid in self._pods and not self._missing(uid), seconds)
        if uid not in self._pods:
            raise NotReady("the pod is not wanted, or was not named yet")
        if missing := self._missing(uid):
            raise NotReady("; ".join(missing))
        return {volume.name: self._path(self._pods[uid], volume) for volume in self._pods[uid].spec.volumes}

    async def mounts(self, pod: Pod, container: Container, environment: Mapping[str, str]) -> list[ContainerMount]:
        """What a container that is about to be made is given; parts of volumes are bound anew. Raises NotReady."""
        volumes = {volume.name: volume for volume in pod.spec.volumes}
        return [
            await self._mount(pod, container, index, one, volumes[one.name], environment)
            for index, one in enumerate(container.volume_mounts)
        ]

    async def gone(self, uid: str, seconds: float = 0.0) -> list[str]:
        """Nothing once nothing of a pod's volumes is there any more, else what is and why."""
        await self._executor.changes.until(lambda: not self._unread and not self._left(uid), seconds)
        if self._unread:
            return [self._unread]
        return [self._why_left(key) for key in self._left(uid)]

    @contextlib.asynccontextmanager
    async def watched(self, uid: str) -> AsyncIterator[None]:
        """While a pod's sandboxes are stopped: a runtime may take out of volumes what others have mounted in them, as
        ours does (ADR 38), and that is told as if it had been done here."""
        places = {os.fspath(self._paths.volume(uid, key.kind, key.name)): key for key in self._left(uid)}
        before = await in_thread(_mounted, places, {})
        try:
            yield
        finally:
            after = await in_thread(_mounted, places, before)
            for place, key in places.items():
                gone = [one for which, one in before.items() if which[0] == place and which not in after]
                self._executor.has_detached(key, gone)

    def told(self, uid: str) -> list[str]:
        """For whoever looks at the pod: what was detached from its volumes, what is not ready or not gone, and why."""
        if uid in self._pods:
            stale = [(one.key.name, one.problem or self._executor.words(one.key)) for one in self._wanted(uid)]
            words = [f"volume {name}: {why}" for name, why in stale if why]
            return [*self._executor.events(uid), *dict.fromkeys((*self._missing(uid), *words))]
        return [*self._executor.events(uid), *map(self._why_left, self._left(uid))]

    # -- what goes on by itself

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._unread:
            await self._learn()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._refresh()
                self._reconcile(group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD):
                        await self._wake.wait()

    async def _learn(self) -> None:
        try:
            self._executor.volumes = await in_thread(world.find, self._paths)
            self._unread = ""
            self._executor.changes.tell()
        except OSError as exc:
            if str(exc) not in self._unread:
                log.warning("cannot learn what volumes there are: %s", exc)
            self._unread = f"what is there cannot be learnt: {exc}"
            await asyncio.sleep(PERIOD)

    def _refresh(self) -> None:
        """What is wanted, as pods and the sources of their files are now."""
        before, self._desired = self._desired, {}
        for uid, pod in self._pods.items():
            facts, known = self._facts(pod), before.get(uid)
            same = known is not None and known[0] is pod and known[1] == facts
            self._desired[uid] = known if known is not None and same else (pod, facts, world.desired(pod, facts))

    def _reconcile(self, group: asyncio.TaskGroup) -> None:
        wanted = {one.key: one for _, _, found in self._desired.values() for one in found}
        now = time.monotonic_ns()
        executor = self._executor
        for operation in plan.plan(wanted, executor.world, self._complete, self._dead, now):
            executor.begin(operation)
            name = f"{type(operation).__name__} {operation.key.uid} {operation.key.name}"
            group.create_task(self._do(operation), name=name)
        self._dead.clear()  # a proof is good for what is begun with it
        for uid in plan.to_be_proven(wanted, executor.world, self._complete, now):
            attempt = self._unproven.get(uid)
            if uid not in self._asking and (attempt is None or attempt.due <= now):
                self._asking.add(uid)
                group.create_task(self._prove(uid), name=f"prove dead {uid}")
        executor.forget_attempts(wanted)
        present = {key.uid for key in executor.volumes}
        self._unproven = {uid: one for uid, one in self._unproven.items() if uid in present}

    async def _do(self, operation: Operation) -> None:
        await self._executor.run(operation)
        self._wake.set()

    async def _prove(self, uid: str) -> None:
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                async with self.watched(uid):
                    is_dead = await self._proven_dead(uid)
            why = "it is not proven that all of its containers are dead"
        except Exception as exc:  # whatever the runtime answers: it is no proof
            is_dead, why = False, f"it cannot be told whether its containers are dead: {exc or type(exc).__name__}"
        self._asking.discard(uid)
        if is_dead:
            self._unproven.pop(uid, None)
            self._dead.add(uid)
            self._wake.set()
        else:
            self._unproven[uid] = plan.failed(self._unproven.get(uid), time.monotonic_ns(), why)
            self._executor.changes.tell()

    # -- what is known of them

    def _wanted(self, uid: str) -> list[Desired]:
        return self._desired[uid][2] if uid in self._desired else []

    def _left(self, uid: str) -> list[Key]:
        return sorted(key for key in {*self._executor.volumes, *self._executor.busy} if key.uid == uid)

    def _why_left(self, key: Key) -> str:
        unproven = self._unproven.get(key.uid)
        why = self._executor.words(key) or (unproven.why if unproven is not None else "")
        return f"volume {key.name}: {why or 'is to be torn down'}"

    def _missing(self, uid: str) -> list[str]:
        """What of a pod's volumes is not ready, and why."""
        if self._unread:
            return [self._unread]
        return [f"volume {one.key.name}: {self._why_missing(one)}" for one in self._wanted(uid) if self._lacks(one)]

    def _lacks(self, one: Desired) -> bool:
        found = self._executor.volumes.get(one.key)
        is_there = found is not None and found.state is State.READY
        return not is_there or bool(found and one.shape and found.shape != one.shape)

    def _why_missing(self, one: Desired) -> str:
        why = one.problem or self._executor.words(one.key)
        others = [key for key in self._left(one.key.uid) if key.name == one.key.name and key != one.key]
        found = self._executor.volumes.get(one.key)
        if not why and (others or (found is not None and found.shape not in ("", one.shape))):
            unproven = self._unproven.get(one.key.uid)
            return f"is another one still, which has to go first{f': {unproven.why}' if unproven else ''}"
        return why or "is being set up"

    def _path(self, pod: Pod, volume: Volume) -> str:
        return "" if volume.image is not None else self._executor.volumes[world.key_of(pod, volume)].path

    # -- what containers get

    async def _mount(
        self,
        pod: Pod,
        container: Container,
        index: int,
        one: VolumeMount,
        volume: Volume,
        environment: Mapping[str, str],
    ) -> ContainerMount:
        part = _part(one, environment)
        if volume.image is not None:
            return ContainerMount(
                volume.name,
                one.mount_path,
                readonly=True,  # an image is nobody's to write to
                image=volume.image.reference,
                image_pull_policy=volume.image.pull_policy,
                image_sub_path=part,
            )
        key = world.key_of(pod, volume)
        path = self._ready_path(key)
        if part:
            async with self._executor.alone(key, "bound"):
                place = Path(os.path.realpath(self._ready_path(key)))  # a host's path may have links in it
                target = self._paths.subpath(key.uid, key.name, container.name, index)
                path = os.fspath(target)
                try:
                    await in_thread(_bind_anew, place, part, target)
                except (OSError, ValueError) as exc:
                    raise NotReady(f"volume {key.name}: subPath {part!r}: {exc}") from exc
        return ContainerMount(
            volume.name,
            one.mount_path,
            path,
            readonly=one.read_only or world.is_read_only(key),
            recursive_read_only=one.recursive_read_only,
            propagation=one.mount_propagation,
        )

    def _ready_path(self, key: Key) -> str:
        wanted = next((one for one in self._wanted(key.uid) if one.key == key), None)
        if self._unread or wanted is None:
            raise NotReady(f"volume {key.name}: {self._unread or 'is not wanted, or was not named yet'}")
        if self._lacks(wanted):
            raise NotReady(f"volume {key.name}: {self._why_missing(wanted)}")
        return self._executor.volumes[key].path


_Mounted = Mapping[tuple[str, int, str], MountEntry]  # by volume, id and target


def _mounted(volumes: Iterable[str], otherwise: _Mounted) -> _Mounted:
    """What others have mounted in these directories; `otherwise` when it cannot be told."""
    try:
        mounts = mount.mountinfo()
    except OSError:
        return otherwise
    found = ((volume, one) for volume in volumes for one in nested.strangers(volume, mounts))
    return {(volume, one.id, one.target): one for volume, one in found}


def _bind_anew(volume: Path, part: str, target: Path) -> None:
    subpath.unbind(target)
    subpath.bind(volume, part, target)


def _part(one: VolumeMount, environment: Mapping[str, str]) -> str:
    """The subPath, with variables of the container's in it. Raises NotReady."""

    def value(name: str) -> str:
        if name not in environment:
            raise NotReady(f"volume {one.name}: subPathExpr {one.sub_path_expr!r}: there is no variable {name}")
        return environment[name]

    return one.sub_path or expand(one.sub_path_expr, value)
