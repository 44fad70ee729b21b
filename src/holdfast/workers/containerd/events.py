"""What containerd is told of tasks: its own event messages, each in an envelope with its topic."""

import contextlib
import os
import time
from collections.abc import Container, Iterator
from typing import Final

from google.protobuf.message import Message

from holdfast.proto import containerd_events_pb2 as events
from holdfast.proto import events_ttrpc_pb2, task_pb2
from holdfast.workers.containerd.forward import Forwarder
from holdfast.workers.containerd.group import Group
from holdfast.workers.containerd.oom import Ooms
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.owner import Owner
from holdfast.workers.shim.task import Process, Task

TOPICS: Final = {
    events.TaskCreate: "/tasks/create",
    events.TaskStart: "/tasks/start",
    events.TaskOOM: "/tasks/oom",
    events.TaskExit: "/tasks/exit",
    events.TaskDelete: "/tasks/delete",
    events.TaskExecAdded: "/tasks/exec-added",
    events.TaskExecStarted: "/tasks/exec-started",
    events.TaskPaused: "/tasks/paused",
    events.TaskResumed: "/tasks/resumed",
}
FORGOTTEN_SECONDS: Final = 60.0  # a Create follows its `start` at once, and a Shutdown its Delete
LOCK_SECONDS: Final = 3.0
LOCK_PAUSE: Final = 0.01


class Containerd(Owner):
    """containerd as the shim's owner: it is told of everything, and its containers join and leave the group."""

    def __init__(self, loop: Loop, forwarder: Forwarder, namespace: str, group: Group) -> None:
        self._loop = loop
        self._forwarder = forwarder
        self._namespace = namespace
        self._group = group
        self._ooms = Ooms(loop, lambda task: self.tell(events.TaskOOM(container_id=task.id)))
        self._idle: dict[str, float] = {}  # members without a task, and since when they have been seen so
        self._held: dict[int, list[events.TaskExit]] = {}  # exits of processes that are being started, by id()

    def tell(self, event: Message) -> None:
        request = events_ttrpc_pb2.ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.namespace, envelope.topic = self._namespace, TOPICS[type(event)]
        envelope.event.type_url, envelope.event.value = event.DESCRIPTOR.full_name, event.SerializeToString()
        self._forwarder.put(request.SerializeToString())

    def created(self, task: Task, request: task_pb2.CreateTaskRequest) -> None:
        event = events.TaskCreate(container_id=task.id, bundle=request.bundle, rootfs=request.rootfs, pid=task.init.pid)
        event.io.stdin, event.io.stdout, event.io.stderr = request.stdin, request.stdout, request.stderr
        event.io.terminal = request.terminal
        self.tell(event)
        self._ooms.watch(task)

    @contextlib.contextmanager
    def starting(self, one: Process) -> Iterator[None]:
        self._held.setdefault(id(one), [])
        try:
            yield
        finally:
            for event in self._held.pop(id(one), []):
                self.tell(event)

    def started(self, task: Task, one: Process) -> None:
        if one.exec_id:
            self.tell(events.TaskExecStarted(container_id=task.id, exec_id=one.exec_id, pid=one.pid))
        else:
            self.tell(events.TaskStart(container_id=task.id, pid=one.pid))

    def exited(self, task: Task, one: Process) -> None:
        event = events.TaskExit(container_id=task.id, id=one.exec_id or task.id, pid=one.pid, exit_status=one.exit_code)
        event.exited_at.FromNanoseconds(one.exited_at)
        if id(one) in self._held:
            self._held[id(one)].append(event)
        else:
            self.tell(event)

    def out_of_memory(self, task: Task, kills: int) -> None:
        self._ooms.known(task, kills)

    def deleted(self, task: Task, reply: task_pb2.DeleteResponse) -> None:
        event = events.TaskDelete(container_id=task.id, pid=reply.pid, exit_status=reply.exit_status)
        event.exited_at.CopyFrom(reply.exited_at)
        self.tell(event)
        self._ooms.forget(task)

    def exec_added(self, task: Task, one: Process) -> None:
        self.tell(events.TaskExecAdded(container_id=task.id, exec_id=one.exec_id))

    def froze(self, task: Task, verb: str) -> None:
        kind = events.TaskPaused if verb == "pause" else events.TaskResumed
        self.tell(kind(container_id=task.id))

    async def lets_go(self, member: str, *, idle: bool) -> bool:
        """A member leaves. The last one takes the group with it, so that nobody can join any more.

        A task that is left then is one that a `delete` has ended behind our back.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while (descriptor := self._group.try_lock()) is None:
            if time.monotonic() > deadline:
                return False
            await self._loop.sleep(LOCK_PAUSE)
        try:
            if not self._group.leave(member):
                return False
            self._group.remove()
            return True
        finally:
            os.close(descriptor)

    async def look_after(self, tasks: Container[str]) -> bool:
        """Let go of those whom containerd has forgotten. Returns whether nobody is left.

        It was killed between a `start` and its Create, or between Delete and Shutdown: they have no task, and their
        bundle is gone; or 1.6 has loaded it as a shim's, and asks for nothing more until that shim hangs up.
        """
        now = time.monotonic()
        members = {name: bundle for name, bundle in self._group.members.items() if name not in tasks}
        self._idle = {name: self._idle.get(name, now) for name in members}
        for name, bundle in members.items():
            forgotten = now - self._idle[name] > FORGOTTEN_SECONDS or not os.path.isdir(bundle)
            if forgotten and await self.lets_go(name, idle=True):
                return True
        return False
