"""Creating the same thing twice: the second request joins the first, or gets its result, or learns who has the name.

A client whose call has timed out asks again, in the same words. The work goes on without it meanwhile, so that there is
nothing to collide with. Only a request that says something else, or comes when its object has gone on to another state,
is refused: with the holder's id, how long it has been so, and what it is at.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import within
from holdfast.model.errors import AlreadyExists, HoldfastError
from holdfast.model.state import ContainerState, PodState

T = TypeVar("T", bound=Pod | Container)

Key = tuple[object, ...]


class Joins(Generic[T]):
    """Requests under way, by the identity of what they make. `find` gives a holder by its id."""

    def __init__(self, find: Callable[[str], T | None], now: Callable[[], int], seconds: float) -> None:
        self._find = find
        self._now = now
        self._seconds = seconds
        self._under_way: dict[Key, tuple[Any, asyncio.Future[T]]] = {}

    async def once(self, key: Key, request: Any, make: Callable[[], Awaitable[T]], same: Callable[[T], bool]) -> T:
        """Make it, or join whoever does, or return what was made if it is still the `same` as it would be made now.

        Raises AlreadyExists, and whatever `make` does.
        """
        known = self._under_way.get(key)
        if known is not None and known[0] == request:
            return await asyncio.shield(known[1])
        if known is not None:
            return await self._make(make, same)  # the store says who has the name
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._under_way[key] = (request, future)
        try:
            made = await self._make(make, same)
        except BaseException as exc:
            future.set_exception(exc if isinstance(exc, Exception) else HoldfastError("cannot go on: it was given up"))
            future.exception()  # heard, even if nobody has joined
            raise
        else:
            future.set_result(made)
            return made
        finally:
            del self._under_way[key]

    async def _make(self, make: Callable[[], Awaitable[T]], same: Callable[[T], bool]) -> T:
        try:
            return await make()
        except AlreadyExists as exc:
            holder = self._find(exc.holder)
            if holder is None:
                raise
            if not holder.acknowledged and not holder.stage:  # being undone
                await within(self._seconds, holder.gone.wait(), f"undo what was begun of {holder.meta.id}")
                return await make()
            if same(holder):
                return holder
            raise AlreadyExists(f"{exc}, {standing(holder, self._now())}", exc.holder) from exc


def standing(holder: Pod | Container, now: int) -> str:
    """What it is at, and for how long: "being created for 12 s (preparing its snapshot)", "RUNNING for 3 s"."""
    if not holder.acknowledged:
        return f"being created for {_seconds(now - holder.meta.created_at)} ({holder.stage})"
    if under_way := sorted(holder.intents):
        since = min(intent.since for intent in holder.intents.values())
        return f"{holder.state}, a {' and a '.join(under_way)} being under way for {_seconds(now - since)}"
    return f"{holder.state} for {_seconds(now - _since(holder))}"


def _since(holder: Pod | Container) -> int:
    """When it has come into its state."""
    created = holder.meta.created_at
    if isinstance(holder, Pod):
        return created if holder.state is PodState.READY else holder.status.stopped_at or created
    status = holder.status
    since = {ContainerState.CREATED: created, ContainerState.EXITED: status.finished_at}
    return since.get(holder.state, status.started_at) or created


def _seconds(ns: int) -> str:
    return f"{max(0, ns) / 1e9:.0f} s"
