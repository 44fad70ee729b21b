"""OOM kills in a shim's containers as they happen, for as long as they run; under holdfastd the daemon looks itself."""

import selectors
import traceback
from collections.abc import Callable
from typing import Final

from holdfast.linux import cgroup, oom
from holdfast.workers.shim import remains
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.task import Task

COUNTED_SECONDS: Final = 1.0  # within which a kill that v1 has announced is counted
PAUSE: Final = 0.05


class Ooms:
    """`tell(task)` is called whenever the count of kills since a task's creation has grown."""

    def __init__(self, loop: Loop, tell: Callable[[Task], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._notices = oom.open_notices()
        self._tasks: dict[str, Task] = {}  # by cgroup
        self._told: dict[str, int] = {}  # by cgroup
        loop.selector.register(self._notices.fileno(), selectors.EVENT_READ, self._read)

    def watch(self, task: Task) -> None:
        """Best effort: a container that has its cgroup no longer, or none, is told of when it ends."""
        assert task.record is not None
        if remains.holds_us(task.record.cgroup):
            return
        self._tasks[task.record.cgroup] = task
        try:
            self._notices.add(task.record.cgroup)
        except OSError:
            return

    def known(self, task: Task, kills: int) -> None:
        """So many there have been by now."""
        assert task.record is not None
        path = task.record.cgroup
        if kills > self._told.get(path, 0):
            self._told[path] = kills
            self._tell(task)

    def forget(self, task: Task) -> None:
        if task.record is not None:
            self._notices.remove(task.record.cgroup)
            self._tasks.pop(task.record.cgroup, None)
            self._told.pop(task.record.cgroup, None)

    def _read(self, _: int) -> None:
        for path in self._notices.read():
            if (task := self._tasks.get(path)) is not None:
                self._loop.start(self._look(task, path), _report)

    async def _look(self, task: Task, path: str) -> None:
        assert task.record is not None
        for _ in range(int(COUNTED_SECONDS / PAUSE)):
            try:
                kills = cgroup.oom_kills(path) - task.record.oom_kills
            except OSError:  # the cgroup is gone: whoever noted the exit has counted
                return
            if self._tasks.get(path) is not task or kills > self._told.get(path, 0):
                break
            await self._loop.sleep(PAUSE)
        else:
            return
        if self._tasks.get(path) is task:
            self.known(task, kills)


def _report(_: object, error: Exception | None) -> None:
    if error is not None:
        traceback.print_exception(error)
