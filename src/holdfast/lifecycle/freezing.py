"""Containers of a pod that stand still while they are copied: for as long as a daemon lives that wants it, no longer.

The shim freezes them on a lease of some seconds, which is renewed here. A daemon that dies or hangs is noticed by that
the lease runs out; a shim that dies, by whoever adopts the pod. A stop that is asked for meanwhile ends it at once.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast.lifecycle.objects import Container, Pod
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.runtime.shims import Shims
from holdfast.runtime.task import TaskClient

LEASE_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 1.0
THAW_SECONDS: Final = 3.0
ENDING: Final = frozenset({"stop", "remove"})


@dataclass(slots=True)
class Window:
    """The time for which they stood still, in seconds, when it is over. `ended` is for who has killed them in it."""

    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    ended: bool = False

    @property
    def elapsed(self) -> float:
        """For how long they have stood still so far."""
        return self.seconds or time.monotonic() - self.began


class Freezer:
    """Through the shims of the pods."""

    def __init__(self, shims: Shims) -> None:
        self._shims = shims

    @contextlib.asynccontextmanager
    async def frozen(self, pod: Pod, containers: Sequence[Container]) -> AsyncIterator[Window]:
        """Within it these containers, which run, stand still, from one instant on.

        Raises FailedPrecondition when they did not all the time, so that what was copied may not fit together.
        """
        task, ids = await self._shims.task(pod.meta.id), [one.meta.id for one in containers]
        window = Window()
        await task.freeze(ids, LEASE_SECONDS)
        crashpoint("checkpoint.frozen")
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(_keep(window, task, pod, containers), name=f"keep frozen {pod.meta.id}")
                yield window
                keeping.cancel()
            if not window.ended:
                await task.thaw(ids)
        except BaseException as exc:
            with contextlib.suppress(HoldfastError):
                await task.thaw(ids)
            first = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc
            if isinstance(first, HoldfastError) and not window.ended:
                _require_wanted(pod, containers)
            if first is not exc:
                raise first from exc
            raise
        finally:
            window.seconds = window.elapsed
        crashpoint("checkpoint.thawed")

    @contextlib.asynccontextmanager
    async def held(self, pod: Pod) -> AsyncIterator[list[Container]]:
        """Within it the containers of the pod that are added, which were restored and stand still, go on doing so.

        Then they go on, together; before that if the pod is to end, or its shim has died. What asks for them to stand
        still from the first is the start of each, for LEASE_SECONDS.
        """
        held: list[Container] = []
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_held(pod, held), name=f"hold {pod.meta.id}")
                yield held
                keeping.cancel()
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from exc
        finally:
            await self._let_all_go(pod, held)
        crashpoint("restore.let_go")

    async def _keep_held(self, pod: Pod, held: Sequence[Container]) -> None:
        while not (ENDING & pod.intents.keys()):
            await asyncio.sleep(RENEW_SECONDS)
            for one in tuple(held):
                with contextlib.suppress(HoldfastError):
                    await (await self._shims.task(pod.meta.id)).freeze([one.meta.id], LEASE_SECONDS, again=True)
        await self._let_all_go(pod, held)

    async def _let_all_go(self, pod: Pod, held: Sequence[Container]) -> None:
        """One that cannot be told so is not kept: its lease ends."""
        if held:
            with contextlib.suppress(HoldfastError):
                await (await self._shims.task(pod.meta.id)).thaw([one.meta.id for one in held], THAW_SECONDS)

    async def let_go(self, container: Container) -> None:
        """Thaw what an earlier daemon may have left frozen; it is well if nothing was."""
        task = await self._shims.task(container.pod.meta.id)
        with contextlib.suppress(FailedPrecondition):
            await task.thaw([container.meta.id], THAW_SECONDS)


async def _keep(window: Window, task: TaskClient, pod: Pod, containers: Sequence[Container]) -> None:
    """Renew the lease, until that is cancelled. Raises FailedPrecondition if it has run out, or they are to end."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        if window.ended:
            return
        _require_wanted(pod, containers)
        await task.freeze([one.meta.id for one in containers], LEASE_SECONDS, again=True)


def _require_wanted(pod: Pod, containers: Sequence[Container]) -> None:
    """Raise FailedPrecondition when they are to end: whatever else has gone wrong is because of that."""
    for one in containers:
        if under_way := sorted(ENDING & (pod.intents.keys() | one.intents.keys())):
            raise FailedPrecondition(f"cannot go on: a {under_way[0]} of container {one.meta.id} has begun")
        if one.exited.is_set():
            raise FailedPrecondition(f"cannot go on: container {one.meta.id} has ended")
