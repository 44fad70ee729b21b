"""Whoever a shim belongs to, as far as it has to be told things and be asked."""

import contextlib
from collections.abc import Iterator

from holdfast.proto import task_pb2
from holdfast.workers.shim.task import Process, Task


class Owner:
    """holdfastd: it asks for what it wants to know, and ends the shim when it is time."""

    def created(self, task: Task, request: task_pb2.CreateTaskRequest) -> None:
        """A task has been created."""

    @contextlib.contextmanager
    def starting(self, one: Process) -> Iterator[None]:
        """While a process is being started, its end is not told: nothing ends before it has begun."""
        yield

    def started(self, task: Task, one: Process) -> None:
        """An init, or an exec, runs."""

    def exited(self, task: Task, one: Process) -> None:
        """It has ended."""

    def out_of_memory(self, task: Task, kills: int) -> None:
        """The task has ended, and the kernel has killed so many of its processes for want of memory."""

    def deleted(self, task: Task, reply: task_pb2.DeleteResponse) -> None:
        """A task, not an exec, has been deleted."""

    def exec_added(self, task: Task, one: Process) -> None:
        """A process is to be executed in a task."""

    def froze(self, task: Task, verb: str) -> None:
        """A task was made to "pause" or to "resume"."""

    async def lets_go(self, member: str, *, idle: bool) -> bool:
        """A container is done with the shim, which is `idle` without any task. Returns whether nobody is left."""
        return idle
