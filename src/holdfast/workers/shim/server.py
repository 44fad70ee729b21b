"""The shim: containerd's Task API, version 2 and 3, for the containers of one pod, on one thread.

It owns the pod's containers: their stdio, their logs, their exit codes. It needs the daemon for nothing: what nobody
asks for goes on, and what has happened is in exit.json before anybody is told.
"""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from holdfast import __version__
from holdfast.linux import files, process
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import CRIU_TYPE, CriuSettings
from holdfast.model.errors import Damaged
from holdfast.model.witness import SHIM_LOCK, ExitRecord
from holdfast.proto import containerd_task_pb2, task_pb2
from holdfast.ttrpc.server import (
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    Call,
    CallError,
    Server,
)
from holdfast.workers import exits
from holdfast.workers.context import Context
from holdfast.workers.shim import adopt, crilog, podinit, remains, stats
from holdfast.workers.shim.gvisor import Ends
from holdfast.workers.shim.loop import Loop, Pause
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.operations import Operations
from holdfast.workers.shim.owner import Owner
from holdfast.workers.shim.sinks import FILE_SCHEME, PROGRAM_SCHEME
from holdfast.workers.shim.stdio import LOG_SCHEME
from holdfast.workers.shim.task import Process, State, Task, exit_code

SERVICES: Final = frozenset({"containerd.task.v2.Task", "containerd.task.v3.Task"})
SIGNALS: Final = range(1, signal.SIGRTMAX + 1)
LOCK_SECONDS: Final = 5.0
LOCK_PAUSE: Final = 0.002
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

Handler = Callable[[Any, Call], Coroutine[Pause, Any, Message | None]]


class Shim:
    """Takes calls, notices exits."""

    def __init__(self, context: Context, runtime: Runtime) -> None:
        assert context.listener is not None
        self.loop = Loop(self._orphan)
        self.owner = Owner()
        self._schemes = (FILE_SCHEME, PROGRAM_SCHEME) if context.args.get("namespace") else ()
        self.operations = self._operations = Operations(self.loop, runtime, context)
        self._operations.ended_unseen = self._init_ended
        self.ends = Ends(self.loop, runtime, self.conclude)
        self._tasks = self._operations.tasks
        self._server = Server(self.loop.selector, context.listener, self._take)
        self.loop.clocks.append(self._server)
        self._methods: dict[str, tuple[type[Message], Handler]] = {
            "Create": (task_pb2.CreateTaskRequest, self._create),
            "Start": (task_pb2.StartRequest, self._start),
            "State": (task_pb2.StateRequest, self._state),
            "Wait": (task_pb2.WaitRequest, self._wait),
            "Kill": (task_pb2.KillRequest, self._kill),
            "Delete": (task_pb2.DeleteRequest, self._delete),
            "Exec": (task_pb2.ExecProcessRequest, self._exec),
            "ResizePty": (task_pb2.ResizePtyRequest, self._resize),
            "CloseIO": (task_pb2.CloseIORequest, self._close_io),
            "Pids": (task_pb2.PidsRequest, self._pids),
            "Pause": (task_pb2.PauseRequest, self._pause),
            "Resume": (task_pb2.ResumeRequest, self._resume),
            "Update": (task_pb2.UpdateTaskRequest, self._update),
            "Checkpoint": (task_pb2.CheckpointTaskRequest, self._checkpoint),
            "Stats": (task_pb2.StatsRequest, self._stats),
            "Connect": (task_pb2.ConnectRequest, self._connect),
            "Shutdown": (task_pb2.ShutdownRequest, self._shutdown),
        }

    def _take(self, call: Call) -> None:
        """Begin to serve one request; it is answered when its handler ends."""
        kind, handler = self._methods.get(call.method, (None, None))
        if call.service not in SERVICES or kind is None or handler is None:
            call.fail(UNIMPLEMENTED, f"{call.service}/{call.method} is not served")
            return
        try:
            request = kind.FromString(call.payload)
        except DecodeError as exc:
            call.fail(INVALID_ARGUMENT, f"cannot read the request of {call.method}: {exc}")
            return
        self.loop.start(handler(request, call), lambda reply, error: _finish(call, reply, error))

    # -- calls

    async def _create(self, request: task_pb2.CreateTaskRequest, _call: Call) -> Message:
        _check_id("id", request.id)
        _check_path("bundle", request.bundle)
        if request.checkpoint:
            _check_path("checkpoint", request.checkpoint)
            _check_criu(request.options)
        if request.parent_checkpoint:
            raise CallError(UNIMPLEMENTED, "parent_checkpoint: checkpoints have none")
        for one in request.rootfs:
            if one.target:
                raise CallError(INVALID_ARGUMENT, f"rootfs: a mount below it, at {one.target}, is not supported")
        _check_streams(request, (LOG_SCHEME, *self._schemes))
        reply = await self._operations.create(request)
        task = self._tasks[request.id]
        self.owner.created(task, request)
        self._watch(task, task.init)
        return reply

    async def _start(self, request: task_pb2.StartRequest, _call: Call) -> Message:
        task, one = self._find(request.id, request.exec_id)
        with self.owner.starting(one):
            reply = await (self._operations.start_exec(task, one) if request.exec_id else self._operations.start(task))
            self.owner.started(task, one)
        if not request.exec_id:
            self.ends.await_end(task)
        return reply

    async def _state(self, request: task_pb2.StateRequest, _call: Call) -> Message:
        task, one = self._find(request.id, request.exec_id)
        reply = task_pb2.StateResponse(
            id=task.id,
            exec_id=one.exec_id,
            bundle=str(task.bundle),
            pid=one.pid,
            status=containerd_task_pb2.Status.Name(one.state),
            terminal=one.terminal,
            exit_status=one.exit_code,
        )
        reply.stdin, reply.stdout, reply.stderr = one.paths
        if one.exited_at:
            reply.exited_at.FromNanoseconds(one.exited_at)
        return reply

    async def _wait(self, request: task_pb2.WaitRequest, call: Call) -> Message | None:
        """Answered when the process ends: by whoever notes that, not by this coroutine."""
        _, one = self._find(request.id, request.exec_id)

        def tell() -> None:
            reply = task_pb2.WaitResponse(exit_status=one.exit_code)
            reply.exited_at.FromNanoseconds(one.exited_at)
            call.answer(reply)

        one.when_exited(tell, lambda: call.open)
        return None

    async def _kill(self, request: task_pb2.KillRequest, _call: Call) -> Message:
        """Signals go to the process itself, not through the runtime: nothing that hangs is in their way."""
        task, one = self._find(request.id, request.exec_id)
        if request.signal not in SIGNALS:
            raise CallError(INVALID_ARGUMENT, f"signal: {request.signal} is none")
        if one.state is State.STOPPED:
            raise CallError(NOT_FOUND, f"process {one.pid} of task {task.id} has ended")
        if not one.pid:
            raise CallError(FAILED_PRECONDITION, f"cannot signal task {task.id}: the process has not been started")
        if self._operations.runtime.is_inside(task.id):
            await self._operations.signal(task, one, request.signal, everything=request.all)
            return Empty()
        session = process.session(one.pid)
        if request.all and task.record is not None and not request.exec_id:
            remains.signal_all(task.record.cgroup, request.signal)
        elif one.pinned is not None:
            one.pinned.send(request.signal)
        else:
            os.kill(one.pid, request.signal)  # it is a child that we have not reaped: the number is its own
        if request.all and task.record is not None and request.exec_id and session not in (0, os.getsid(0)):
            remains.signal_session(task.record.cgroup, session, request.signal)
        if request.signal == signal.SIGKILL:  # the v1 freezer keeps even a killed process
            if task.init.state is State.PAUSED:
                await self._operations.freeze(task, "resume")
            self._operations.freezing.thaw(task.id)
        return Empty()

    async def _delete(self, request: task_pb2.DeleteRequest, _call: Call) -> Message:
        task, one = self._find(request.id, request.exec_id)
        if request.exec_id:
            return self._operations.delete_exec(task, one)
        reply = await self._operations.delete(task)
        self.owner.deleted(task, reply)
        return reply

    async def _exec(self, request: task_pb2.ExecProcessRequest, _call: Call) -> Message:
        task = self._task(request.id)
        _check_id("exec_id", request.exec_id)
        _check_streams(request, self._schemes)
        self._operations.prepare_exec(task, request)
        one = task.execs[request.exec_id]
        self.owner.exec_added(task, one)
        self._watch(task, one)
        return Empty()

    async def _resize(self, request: task_pb2.ResizePtyRequest, _call: Call) -> Message:
        _, one = self._find(request.id, request.exec_id)
        try:
            one.stdio.resize(request.width & 0xFFFF, request.height & 0xFFFF)
        except OSError as exc:
            raise CallError(FAILED_PRECONDITION, f"cannot resize terminal: {exc.strerror}") from exc
        return Empty()

    async def _close_io(self, request: task_pb2.CloseIORequest, _call: Call) -> Message:
        task, one = self._find(request.id, request.exec_id)
        if request.stdin:
            self._operations.close_stdin(task, one)
        return Empty()

    async def _pids(self, request: task_pb2.PidsRequest, _call: Call) -> Message:
        task = self._task(request.id)
        found = remains.pids(task.record.cgroup) if task.record is not None else set()
        processes = [containerd_task_pb2.ProcessInfo(pid=pid) for pid in sorted(found)]
        return task_pb2.PidsResponse(processes=processes)

    async def _pause(self, request: task_pb2.PauseRequest, _call: Call) -> Message:
        await self._operations.freeze(task := self._task(request.id), "pause")
        self.owner.froze(task, "pause")
        return Empty()

    async def _resume(self, request: task_pb2.ResumeRequest, _call: Call) -> Message:
        await self._operations.freeze(task := self._task(request.id), "resume")
        self.owner.froze(task, "resume")
        return Empty()

    async def _update(self, request: task_pb2.UpdateTaskRequest, _call: Call) -> Message:
        await self._operations.update(self._task(request.id), request)
        return Empty()

    async def _checkpoint(self, request: task_pb2.CheckpointTaskRequest, _call: Call) -> Message:
        task = self._task(request.id)
        _check_path("path", request.path)
        await self._operations.checkpoint(task, Path(request.path), _check_criu(request.options))
        return Empty()

    async def _stats(self, request: task_pb2.StatsRequest, _call: Call) -> Message:
        task = self._task(request.id)
        if task.record is None or task.init.state is State.STOPPED:
            raise CallError(FAILED_PRECONDITION, f"task {task.id} has no process to measure")
        reply = task_pb2.StatsResponse()
        message = stats.read(task.record.cgroup)
        reply.stats.type_url, reply.stats.value = message.DESCRIPTOR.full_name, message.SerializeToString()
        return reply

    async def _connect(self, request: task_pb2.ConnectRequest, _call: Call) -> Message:
        task = self._tasks.get(request.id)
        return task_pb2.ConnectResponse(
            shim_pid=os.getpid(), task_pid=task.init.pid if task is not None else 0, version=__version__
        )

    async def _shutdown(self, request: task_pb2.ShutdownRequest, _call: Call) -> Message:
        over = request.id not in self._tasks and await self.owner.lets_go(request.id, idle=not self._tasks)
        if over or request.now:
            self.loop.soon(self.stop)  # after the answer has been sent
        return Empty()

    def stop(self) -> None:
        self._operations.freezing.end()
        self.loop.running = False

    def _task(self, task_id: str) -> Task:
        if (task := self._tasks.get(task_id)) is None:
            raise CallError(NOT_FOUND, f"task {task_id} does not exist")
        return task

    def _find(self, task_id: str, exec_id: str) -> tuple[Task, Process]:
        task = self._task(task_id)
        if (one := task.find(exec_id)) is None:
            raise CallError(NOT_FOUND, f"process {exec_id} of task {task_id} does not exist")
        return task, one

    # -- exits

    def _watch(self, task: Task, one: Process) -> None:
        """Have the owner told when a process has ended, if it has ever run."""
        one.when_exited(lambda: self.owner.exited(task, one) if one.exited_at else None, lambda: True)

    def _orphan(self, pid: int, code: int, status: int) -> None:
        """A zombie that no command waits for: an init, an exec, or somebody's grandchild."""
        try:
            inits = [task for task in self._tasks.values() if task.record is not None and task.record.pid == pid]
            for task in inits:  # several only of gVisor's sentry
                self._init_ended(task, code, status)
            for task in () if inits else self._tasks.values():
                for one in task.execs.values():
                    if one.pid == pid:
                        one.stdio.finish()
                        process.reap(pid)
                        one.exited(exit_code(code, status), time.time_ns())
                        return
            if not inits:
                self._operations.unclaimed(pid, code, status)
        finally:
            process.reap(pid)

    def _init_ended(self, task: Task, code: int, status: int) -> None:
        """Write it down, see to the rest of the container, complete its log, reap, tell: in this order."""
        assert task.record is not None
        record = exits.describe(task.record, code, status, "shim")
        if task.init.state is State.STOPPED or self.ends.lose(task, record):
            return
        self.conclude(task, record)
        process.reap(task.record.pid)
        crashpoint("shim.reaped")
        if record.oom_kills > 0:
            self.owner.out_of_memory(task, record.oom_kills)
        task.init.exited(record.code, record.finished_at)

    def conclude(self, task: Task, record: ExitRecord) -> None:
        assert task.record is not None
        try:
            if not task.discarded:
                crashpoint("shim.exit")
                exits.write(task.bundle, record)
                crashpoint("shim.recorded")
        except OSError:
            traceback.print_exc()  # the exit itself is not in doubt: whoever asks us is told
        if not task.own_pids:
            self.loop.start(remains.kill(self.loop, task.record.cgroup), _report)
        try:
            task.init.stdio.finish()
        except OSError:
            traceback.print_exc()


def _finish(call: Call, reply: Message | None, error: Exception | None) -> None:
    if isinstance(error, CallError):
        call.fail(error.code, str(error))
    elif error is not None:
        traceback.print_exception(error)
        call.fail(INTERNAL, f"cannot serve {call.method}: {type(error).__name__}: {error}")
    elif reply is not None:
        call.answer(reply)


def _report(_: object, error: Exception | None) -> None:
    if error is not None:
        traceback.print_exception(error)


def _check_id(field: str, value: str) -> None:
    if _ID.fullmatch(value) is None:
        raise CallError(INVALID_ARGUMENT, f"{field}: {value!r} is not an id")


def _check_path(field: str, value: str) -> None:
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise CallError(INVALID_ARGUMENT, f"{field}: {value!r} is not an absolute path")


def _check_criu(options: Any_) -> CriuSettings:
    """What the daemon asks of CRIU; containerd's own way of asking is not served."""
    if options.type_url != CRIU_TYPE:
        raise CallError(UNIMPLEMENTED, f"options: checkpoints as {options.type_url!r} asks for are not supported")
    try:
        return CriuSettings.decode(options.value)
    except Damaged as exc:
        raise CallError(INVALID_ARGUMENT, f"options: {exc}") from exc


def _check_streams(request: task_pb2.CreateTaskRequest | task_pb2.ExecProcessRequest, schemes: tuple[str, ...]) -> None:
    """Streams are paths of FIFOs; output may also go where one of `schemes` says."""
    for field in ("stdin", "stdout", "stderr"):
        value: str = getattr(request, field)
        for scheme in () if field == "stdin" else schemes:
            if value.startswith(scheme):
                value = value.removeprefix(scheme)
                value = value.partition("?")[0] if scheme == PROGRAM_SCHEME else value
                break
        if value:
            _check_path(field, value)


def take_pod(directory: Path) -> int:
    """Lock the pod: held by its shim and by whatever the shim has forked to do its work, until all of them are gone."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return files.lock(directory / SHIM_LOCK)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCK_PAUSE)


def main(context: Context) -> None:
    """A worker's life: be the reaper of what the OCI runtime leaves, serve until told to shut down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the keeper has done with SIGHUP, SIGINT and SIGPIPE
    process.set_child_subreaper()
    arguments = context.args
    directory, init_cgroup = Path(arguments["directory"]), arguments.get("init_cgroup", "")
    adopts, shared = arguments.get("adopt", False), arguments.get("pid_namespace", False)
    lock = take_pod(directory)
    init = None
    if shared:
        init = podinit.adopt(directory, init_cgroup) if adopts else podinit.pin(podinit.start(directory, init_cgroup))
    shim = Shim(context, Runtime.from_args(arguments["runtime"], context.fds[0] if context.fds else -1))
    if adopts:
        adopt.adopt(shim.loop, shim.operations, shim.conclude, directory, context, shim.ends.await_end)
    context.ready()
    crashpoint("shim.ready")
    shim.loop.run()
    crilog.last_words()
    if init is not None:
        podinit.end(init)
    os.close(lock)
    sys.stderr.flush()
