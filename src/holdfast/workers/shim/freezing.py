"""Freezing tasks of the pod, all at one instant, for whoever copies what they are: on a lease.

Whoever has them frozen says so again before the lease is over, else they are thawed; so nobody's death leaves a
container standing still. After a shim's own death the one that adopts the pod thaws; what was paused bears a mark.
"""

import json
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final

from holdfast.linux import cgroup, files
from holdfast.linux.inject import crashpoint
from holdfast.ttrpc.server import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, CallError
from holdfast.workers.shim.failures import as_call_error
from holdfast.workers.shim.loop import Loop, Timer
from holdfast.workers.shim.loop import Pause as Pausing
from holdfast.workers.shim.task import State, Task

MARK: Final = "frozen"  # in the bundle of what is paused, for as long as it is
FREEZE_SECONDS: Final = 10.0  # until all have stopped; what waits in the kernel may take longer, and is let go
PAUSE: Final = 0.002
AGAIN: Final = 50  # pauses after which it is said again: a fork may have slipped through (cgroup v1)
THAW_FIRST: Final = 2  # which is how often of that they are let go first: execve(2) waits for threads that are frozen
RETRY_SECONDS: Final = 1.0


Pause = Callable[[str], Coroutine[Pausing, Any, None]]  # told "pause" or "resume"


class Freezing:
    """What is frozen, and until when."""

    def __init__(self, loop: Loop, tasks: dict[str, Task], pause: Pause | None = None) -> None:
        """`pause` is for tasks that no freezer can stop without what has to write them: gVisor's, all of the pod."""
        self._loop = loop
        self._pause = pause
        self._tasks = tasks
        self._leases: dict[str, Timer] = {}
        self._resuming = 0

    async def freeze(self, asked: str) -> None:
        """Freeze tasks, or keep those frozen that are. All of them or none."""
        ids, seconds, again = _parse(asked)
        if again:
            if missing := [id for id in ids if id not in self._leases]:
                raise CallError(FAILED_PRECONDITION, f"cannot keep task {missing[0]} frozen: it was thawed meanwhile")
        else:
            tasks = [self._running(id) for id in ids]
            try:
                await self._freeze(tasks)
            except (CallError, OSError) as exc:
                for task in tasks:
                    self.thaw(task.id)
                raise as_call_error(exc, f"cannot freeze task {ids[0]}") from exc
        for id in ids:
            self._lease(id, seconds)

    def hold(self, task: Task, seconds: float) -> None:
        """Of one that was restored frozen: it goes on when its lease is over."""
        self._lease(task.id, seconds)

    async def thaw_asked(self, asked: str) -> None:
        """Raises FAILED_PRECONDITION if one was thawed before: what was copied meanwhile may not fit together."""
        ids, _, _ = _parse(asked)
        early = [id for id in ids if id not in self._leases]
        for id in ids:
            self.thaw(id)
        while self._resuming:
            await self._loop.sleep(PAUSE)
        if early:
            raise CallError(FAILED_PRECONDITION, f"cannot thaw task {early[0]}: it was thawed before")

    def thaw(self, id: str) -> None:
        """Let it go on, if it is frozen."""
        if (timer := self._leases.pop(id, None)) is not None:
            timer.cancel()
        task = self._tasks.get(id)
        if task is None or task.record is None:
            return
        if self._pause is not None:
            self.resume([task])
            return
        try:
            cgroup.thaw(task.record.cgroup)
        except OSError:
            traceback.print_exc()
            self._lease(id, RETRY_SECONDS)

    def resume(self, tasks: list[Task]) -> None:
        """Have what was paused, not frozen, go on when none of it is to stand still any more."""
        marked = [task for task in tasks if (task.bundle / MARK).exists()]
        if marked and not self._leases and self._pause is not None:
            self._resuming += 1
            self._loop.start(self._pause("resume"), lambda _, error: self._resumed(error))

    def _resumed(self, error: Exception | None) -> None:
        self._resuming -= 1
        for task in self._tasks.values():
            if error is None:
                files.unlink(task.bundle / MARK)
            elif (task.bundle / MARK).exists():
                self._lease(task.id, RETRY_SECONDS)
        if error is not None:
            traceback.print_exception(error)

    def dumped(self, task: Task) -> None:
        """Its images were written, or not: what was thawed meanwhile, CRIU may have frozen again at its end."""
        if self._pause is None and task.id not in self._leases:
            self.thaw(task.id)

    async def thawed(self, task: Task) -> None:
        """Wait until it is not frozen: what is executed in it now would stand still, and spoil the copy."""
        while task.id in self._leases:
            await self._loop.sleep(PAUSE)

    def end(self) -> None:
        """The shim is about to end, and with it all leases."""
        for id in tuple(self._leases):
            self.thaw(id)

    def is_frozen(self, task: Task) -> bool:
        return task.id in self._leases or (self._pause is not None and bool(self._leases))

    async def _freeze(self, tasks: list[Task]) -> None:
        for task in tasks:
            if self._pause is not None:
                (task.bundle / MARK).touch(0o600)
            self._lease(task.id, FREEZE_SECONDS * 2)
        crashpoint("shim.freezing")
        if self._pause is not None:
            await self._pause("pause")
            crashpoint("shim.frozen")
            return
        paths = [task.record.cgroup for task in tasks if task.record is not None]
        for path in paths:
            cgroup.freeze(path)
        for turn in range(1, int(FREEZE_SECONDS / PAUSE)):
            if all(map(cgroup.frozen, paths)):
                crashpoint("shim.frozen")
                return
            await self._loop.sleep(PAUSE)
            if turn % (AGAIN * THAW_FIRST) == 0:
                for path in paths:
                    cgroup.thaw(path)
                await self._loop.sleep(PAUSE)
            for path in paths if turn % AGAIN == 0 else ():
                cgroup.freeze(path)
        raise CallError(FAILED_PRECONDITION, f"cannot freeze: no end after {FREEZE_SECONDS:g} s")

    def _lease(self, id: str, seconds: float) -> None:
        if (timer := self._leases.get(id)) is not None:
            timer.cancel()
        self._leases[id] = self._loop.timers.add(seconds, lambda: self.thaw(id))

    def _running(self, id: str) -> Task:
        task = self._tasks.get(id)
        if task is None:
            raise CallError(NOT_FOUND, f"task {id} does not exist")
        if task.init.state is not State.RUNNING or task.record is None or id in self._leases:
            condition = "frozen" if id in self._leases else task.init.state.name.lower()
            raise CallError(FAILED_PRECONDITION, f"cannot freeze task {id}: it is {condition}")
        if task.dumping:  # which takes the freezer for its own
            raise CallError(FAILED_PRECONDITION, f"cannot freeze task {id}: an earlier checkpoint has not ended yet")
        return task


def _parse(asked: str) -> tuple[list[str], float, bool]:
    try:
        data: dict[str, Any] = json.loads(asked)
        return [str(id) for id in data["tasks"]], float(data.get("seconds", 0)), bool(data.get("again", False))
    except (ValueError, LookupError, TypeError) as exc:
        raise CallError(INVALID_ARGUMENT, f"annotations: {asked!r} cannot be read: {exc}") from exc
