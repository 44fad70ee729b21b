"""The shim: containerd's Runtime v2 Task API for the containers of one pod. Forked by the keeper; outlives the daemon.

Exits: a dead init stays a zombie until its exit file is written; only then is it reaped and anybody told. So if the
shim dies in between, the keeper inherits the zombie and does the same.
"""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from holdfast.linux import process
from holdfast.proto import task_pb2
from holdfast.ttrpc.server import (
    ALREADY_EXISTS,
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
from holdfast.workers.shim import podinit
from holdfast.workers.shim.loop import Loop, Operation
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.operations import Operations
from holdfast.workers.shim.task import Process, State, Task, has_own_pid_namespace

SERVICES: Final = frozenset({"containerd.task.v2.Task", "containerd.task.v3.Task"})
VERSION: Final = "v2"
ID: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
Answer = Message | Operation | None

REQUESTS: Final[dict[str, type[Message]]] = {
    "State": task_pb2.StateRequest,
    "Create": task_pb2.CreateTaskRequest,
    "Start": task_pb2.StartRequest,
    "Delete": task_pb2.DeleteRequest,
    "Pids": task_pb2.PidsRequest,
    "Pause": task_pb2.PauseRequest,
    "Resume": task_pb2.ResumeRequest,
    "Kill": task_pb2.KillRequest,
    "Exec": task_pb2.ExecProcessRequest,
    "ResizePty": task_pb2.ResizePtyRequest,
    "CloseIO": task_pb2.CloseIORequest,
    "Update": task_pb2.UpdateTaskRequest,
    "Wait": task_pb2.WaitRequest,
    "Stats": task_pb2.StatsRequest,
    "Connect": task_pb2.ConnectRequest,
    "Shutdown": task_pb2.ShutdownRequest,
}


class Shim:
    """One pod's shim."""

    def __init__(self, context: Context) -> None:
        runtime = context.args["runtime"]
        self.loop = Loop(self._orphan)
        self.tasks: dict[str, Task] = {}
        self.operations = Operations(
            self.loop,
            Runtime(runtime["name"], runtime["binary"], runtime["root"], tuple(runtime["hide"])),
            context,
            self.tasks,
        )
        assert context.listener is not None
        self._server = Server(self.loop.selector, context.listener, self._handle)

    # -- calls

    def _handle(self, call: Call) -> None:
        request_type = REQUESTS.get(call.method)
        if call.service not in SERVICES or request_type is None:
            call.fail(UNIMPLEMENTED, f"{call.service}/{call.method} is not implemented")
            return
        try:
            request = request_type.FromString(call.payload)
            answer: Answer = getattr(self, f"_{call.method.lower()}")(request, call)
        except DecodeError as exc:
            call.fail(INVALID_ARGUMENT, f"cannot read {call.method} request: {exc}")
        except Exception as exc:
            _fail(call, exc)
        else:
            if isinstance(answer, Message):
                call.answer(answer)
            elif answer is not None:
                self.loop.submit(request.id, answer, lambda result, error: _finish(call, result, error))  # type: ignore[attr-defined]

    def _create(self, request: task_pb2.CreateTaskRequest, call: Call) -> Answer:
        if not ID.match(request.id):
            raise CallError(INVALID_ARGUMENT, f"id: {request.id!r} is not an id")
        if not os.path.isabs(request.bundle):
            raise CallError(INVALID_ARGUMENT, f"bundle: {request.bundle!r} is not absolute")
        if request.checkpoint:
            raise CallError(UNIMPLEMENTED, "checkpoint: restoring is not implemented")
        if request.id in self.tasks:
            raise CallError(ALREADY_EXISTS, f"task {request.id} exists")
        return self.operations.create(request)

    def _start(self, request: task_pb2.StartRequest, call: Call) -> Answer:
        task, one = self._find(request.id, request.exec_id)
        return self.operations.start_exec(task, one) if request.exec_id else self.operations.start(task)

    def _delete(self, request: task_pb2.DeleteRequest, call: Call) -> Answer:
        task, one = self._find(request.id, request.exec_id)
        return self.operations.delete_exec(task, one) if request.exec_id else self.operations.delete(task)

    def _pause(self, request: task_pb2.PauseRequest, call: Call) -> Answer:
        return self.operations.freeze(self._task(request.id), "pause", State.RUNNING, State.PAUSED)

    def _resume(self, request: task_pb2.ResumeRequest, call: Call) -> Answer:
        return self.operations.freeze(self._task(request.id), "resume", State.PAUSED, State.RUNNING)

    def _update(self, request: task_pb2.UpdateTaskRequest, call: Call) -> Answer:
        return self.operations.update(self._task(request.id), request)

    def _exec(self, request: task_pb2.ExecProcessRequest, call: Call) -> Answer:
        return self.operations.add_exec(self._task(request.id), request)

    def _state(self, request: task_pb2.StateRequest, call: Call) -> Answer:
        task, one = self._find(request.id, request.exec_id)
        reply = task_pb2.StateResponse(id=task.id, bundle=str(task.bundle), pid=one.pid, status=int(one.state))  # type: ignore[arg-type]
        reply.stdin, reply.stdout, reply.stderr = one.paths
        reply.terminal, reply.exec_id, reply.exit_status = one.terminal, one.exec_id, one.exit_code
        if one.exited_at:
            reply.exited_at.FromNanoseconds(one.exited_at)
        return reply

    def _wait(self, request: task_pb2.WaitRequest, call: Call) -> Answer:
        _, one = self._find(request.id, request.exec_id)

        def tell() -> None:
            reply = task_pb2.WaitResponse(exit_status=one.exit_code)
            reply.exited_at.FromNanoseconds(one.exited_at)
            call.answer(reply)

        if one.state is State.STOPPED:
            tell()
        else:
            one.waiters.append(tell)
        return None

    def _kill(self, request: task_pb2.KillRequest, call: Call) -> Answer:
        task, one = self._find(request.id, request.exec_id)
        if request.all:
            self.operations.signal_all(task, request.signal)
            return task_pb2.StartResponse()
        with process.pin(one.pid, one.start_time) as pinned:
            if not one.pid or pinned is None or not pinned.send(request.signal):
                raise CallError(NOT_FOUND, f"process {request.exec_id or request.id} has ended")
        return task_pb2.StartResponse()

    def _pids(self, request: task_pb2.PidsRequest, call: Call) -> Answer:
        reply = task_pb2.PidsResponse()
        for pid in sorted(self.operations.pids(self._task(request.id))):
            reply.processes.add(pid=pid)
        return reply

    def _stats(self, request: task_pb2.StatsRequest, call: Call) -> Answer:
        from holdfast.workers.shim.stats import collect

        task = self._task(request.id)
        if task.init is None:
            raise CallError(FAILED_PRECONDITION, f"task {task.id} has no cgroup yet")
        return task_pb2.StatsResponse(stats=collect(task.init.cgroup))

    def _resizepty(self, request: task_pb2.ResizePtyRequest, call: Call) -> Answer:
        _, one = self._find(request.id, request.exec_id)
        if one.stdio.master < 0:
            raise CallError(FAILED_PRECONDITION, f"process {request.exec_id or request.id} has no terminal")
        one.stdio.resize(request.width, request.height)
        return task_pb2.StartResponse()

    def _closeio(self, request: task_pb2.CloseIORequest, call: Call) -> Answer:
        _, one = self._find(request.id, request.exec_id)
        if request.stdin:
            one.stdio.close_stdin()
        return task_pb2.StartResponse()

    def _connect(self, request: task_pb2.ConnectRequest, call: Call) -> Answer:
        task = self.tasks.get(request.id)
        pid = task.process.pid if task is not None else 0
        return task_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=VERSION)

    def _shutdown(self, request: task_pb2.ShutdownRequest, call: Call) -> Answer:
        if not self.tasks or request.now:
            self.loop.running = False
        return task_pb2.StartResponse()

    def _task(self, task_id: str) -> Task:
        if (task := self.tasks.get(task_id)) is None:
            raise CallError(NOT_FOUND, f"task {task_id} does not exist")
        return task

    def _find(self, task_id: str, exec_id: str) -> tuple[Task, Process]:
        task = self._task(task_id)
        if (one := task.find(exec_id)) is None:
            raise CallError(NOT_FOUND, f"process {exec_id} of task {task_id} does not exist")
        return task, one

    # -- exits

    def _orphan(self, pid: int, code: int, status: int) -> None:
        """A zombie that no operation waits for: an init, an exec, or somebody's grandchild."""
        for task in self.tasks.values():
            if task.init is not None and task.init.pid == pid:
                self._init_ended(task, code, status)
                return
            for one in task.execs.values():
                if one.pid == pid:
                    process.reap(pid)
                    self._exec_ended(one, code, status)
                    return
        self.operations.unclaimed(pid, code, status)
        process.reap(pid)

    def _init_ended(self, task: Task, code: int, status: int) -> None:
        """Write it down, see to the rest of the container, finish its log, reap, tell: in this order."""
        assert task.init is not None
        record = exits.describe(task.init, code, status, "shim")
        if not task.process.exited_at:
            exits.write(task.bundle, record)
        if not has_own_pid_namespace(task.bundle):
            self.operations.signal_all(task, signal.SIGKILL)
        task.process.stdio.drain()
        process.reap(task.init.pid)
        task.process.exited(record.code, record.finished_at)

    def _exec_ended(self, one: Process, code: int, status: int) -> None:

        one.stdio.drain()
        one.exited(status if code == os.CLD_EXITED else 128 + status, time.time_ns())


def _finish(call: Call, result: Any, error: Exception | None) -> None:
    if error is not None:
        _fail(call, error)
    else:
        call.answer(result)


def _fail(call: Call, error: Exception) -> None:
    if isinstance(error, CallError):
        call.fail(error.code, str(error))
    else:
        call.fail(INTERNAL, f"{type(error).__name__}: {error}")


def main(context: Context) -> None:
    """A worker's life: be the reaper of what the OCI runtime leaves, serve until told to shut down."""
    process.set_child_subreaper()
    directory = Path(context.args["directory"])
    init = podinit.start(directory, context.args["init_cgroup"]) if context.args["pid_namespace"] else 0
    shim = Shim(context)
    context.ready()
    shim.loop.run()
    if init:
        podinit.end(init)
