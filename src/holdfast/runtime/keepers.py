"""All keepers of a node: the one for what is new, and those that were set aside with what they have.

One is set aside by a daemon of another release, or by one that it did not answer. It goes on serving its pods, whose
shims are replaced by shims of its own, and is told to end once none of them is left.
"""

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from holdfast.model.errors import Unavailable
from holdfast.model.state import ProcessRef
from holdfast.model.tally import Counter, Gauge, Measure, Values, gauge
from holdfast.runtime.keeper import Keeper, WorkerInfo, set_aside

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0  # between two looks at what a keeper still has, unless it tells of an exit before
RETRY_FIRST: Final = 0.25
RETRY_LONGEST: Final = 5.0


class Keepers(Keeper):
    """A connection to the keeper for what is new, and one to each that was set aside. Made by `connect`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._aside: dict[Path, Keeper] = {}
        self._answering: set[Keeper] = set()
        self.replaced = Counter("holdfast_keeper_replaced_total", "Keepers that were gone and had to be replaced.")
        kinds = Gauge("holdfast_workers", "Workers of the keepers that answer, by kind.", self._kinds, ("kind",))
        aside = gauge("holdfast_keepers_set_aside", "Keepers that were set aside.", lambda: len(self._aside))
        self.measures: tuple[Measure, ...] = (*self.forks.measures, self.ends, self.replaced, kinds, aside)

    def find_aside(self) -> list[Path]:
        """Those that were set aside since this was asked last; `attend` is to be run for each."""
        new = [path for path in set_aside(self.path.parent) if path not in self._aside]
        for path in new:
            self._aside[path] = one = Keeper(path)
            one.forks, one.ends = self.forks, self.ends
        return new

    async def attend(self, path: Path, pods: Callable[[], frozenset[str]]) -> None:
        """Stay in touch with one that was set aside until it is gone; have it end when it has none of these pods."""
        one, wait = self._aside[path], RETRY_FIRST
        while path.exists():
            try:
                await one.reconnect()
                wait = RETRY_FIRST
                self._answering.add(one)
                log.info("the keeper at %s was set aside; it goes on with what it has", path)
                await self._see_off(one, pods)
            except Unavailable as exc:
                if isinstance(exc.__cause__, ConnectionRefusedError | FileNotFoundError):
                    for left in (path, path.with_suffix(".lock")):
                        left.unlink(missing_ok=True)
                    break
                log.warning("the keeper at %s does not answer: %s", path, exc)
                self._answering.discard(one)
                await one.aclose()
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LONGEST)
        log.info("the keeper at %s is gone", path)
        self._answering.discard(one)
        del self._aside[path]

    async def _see_off(self, one: Keeper, pods: Callable[[], frozenset[str]]) -> None:
        """Returns when it has hung up."""
        while one.connected:
            workers, held = await one.holdings()
            if not workers and not held & pods():
                await one.shut_down()
            with contextlib.suppress(TimeoutError, StopAsyncIteration):
                async with asyncio.timeout(LOOK_SECONDS):
                    await anext(one.events())

    async def fork(
        self, kind: str, worker_id: str, args: dict[str, object], listen: Path | None = None, fds: Sequence[int] = ()
    ) -> ProcessRef:
        """As Keeper.fork; who adopts is forked by the keeper that holds what there is to adopt."""
        if args.get("adopt") and self._aside and (holder := await self._holder(worker_id)) is not self:
            return await holder.fork(kind, worker_id, args, listen, fds)
        return await super().fork(kind, worker_id, args, listen, fds)

    async def _holder(self, worker_id: str) -> Keeper:
        """Raises Unavailable while one that may be it does not answer."""
        for one in (self, *self._all_aside()):
            if worker_id in (await one.holdings())[1]:
                return one
        return self

    def _kinds(self) -> Values:
        keepers = (self, *self._aside.copy().values())
        return [
            ((kind,), n)
            for kind, n in collections.Counter(k for one in keepers for k in one.workers.copy().values()).items()
        ]

    def _all_aside(self) -> list[Keeper]:
        """Raises Unavailable, at once, while one of them does not answer."""
        if silent := [str(path) for path, one in self._aside.items() if one not in self._answering]:
            raise Unavailable(f"cannot ask the keeper at {silent[0]}: it does not answer")
        return list(self._aside.values())

    async def list_workers(self) -> list[WorkerInfo]:
        """Those of all keepers. Raises Unavailable when one of them does not answer."""
        return [worker for one in (self, *self._all_aside()) for worker in (await one.holdings())[0]]

    async def aclose(self) -> None:
        for one in self._aside.values():
            await one.aclose()
        await super().aclose()
