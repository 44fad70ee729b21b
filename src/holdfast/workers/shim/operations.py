"""What the shim does with the OCI runtime: create, start, exec, delete and the rest, each a generator.

An operation yields the pid of a runtime command and is resumed with its exit status; see loop.py.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, mount, process
from holdfast.model.spec import Mount
from holdfast.model.witness import EXIT_FILE, INIT_FILE, InitRecord, encode
from holdfast.proto import task_pb2
from holdfast.ttrpc.server import ALREADY_EXISTS, FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, CallError
from holdfast.workers.context import Context
from holdfast.workers.shim.loop import UNCLAIMED, Loop, Operation
from holdfast.workers.shim.oci import Runtime, error_text
from holdfast.workers.shim.stdio import Stdio
from holdfast.workers.shim.task import Process, State, Task

REOPEN_LOG: Final = "holdfast.io/reopen-log"
_Empty = task_pb2.StartResponse  # no fields set: the same bytes as google.protobuf.Empty


class Operations:
    """The shim's hands."""

    def __init__(self, loop: Loop, runtime: Runtime, context: Context, tasks: dict[str, Task]) -> None:
        self._loop = loop
        self._runtime = runtime
        self._context = context
        self._tasks = tasks
        self._unclaimed: dict[int, tuple[int, int]] = {}

    def create(self, request: task_pb2.CreateTaskRequest) -> Operation:
        """Mount the rootfs, open the streams, have the runtime create the container, write init.json."""
        bundle = Path(request.bundle)
        paths = (request.stdin, request.stdout, request.stderr)
        stdio = Stdio(self._loop.selector, bundle)
        task = Task(request.id, bundle, Process("", stdio, paths=paths, terminal=request.terminal))
        self._tasks[task.id] = task
        try:
            for name in (INIT_FILE, EXIT_FILE):
                (bundle / name).unlink(missing_ok=True)
            self._mount_rootfs(task, request)
            stdio.open_container(*paths, request.terminal)
            pid_file = bundle / "init.pid"
            options = ["--console-socket", stdio.console] if request.terminal else []
            arguments = ["create", "--bundle", str(bundle), "--pid-file", str(pid_file), *options, task.id]
            status = yield self._runtime.run(task.log, stdio.fds, *arguments)
            if status:
                raise CallError(INTERNAL, error_text(task.log) or f"{self._runtime.name} create ended with {status}")
            if request.terminal:
                stdio.take_console()
            self._created(task, int(pid_file.read_text()))
        except BaseException:
            yield from self._undo_create(task)
            raise
        stdio.given()
        for key, fd in stdio.kept.items():
            self._context.hold(f"{task.id}/{key}", [fd])
        return task_pb2.CreateTaskResponse(pid=task.process.pid)

    def start(self, task: Task) -> Operation:
        """init.json says that the start was reached before the runtime is told to."""
        if task.process.state is not State.CREATED or task.init is None:
            raise CallError(FAILED_PRECONDITION, f"cannot start task {task.id}: it is {task.process.state.name}")
        old = task.init
        task.init = InitRecord(old.pid, old.start_time, old.boot_id, old.cgroup, old.oom_kills, True)
        files.write_atomic(task.bundle / INIT_FILE, encode(task.init), sync=False)
        status = yield self._runtime.quietly(task.log, "start", task.id)
        if status:
            raise CallError(INTERNAL, error_text(task.log) or f"{self._runtime.name} start ended with {status}")
        if task.process.state is State.CREATED:
            task.process.state = State.RUNNING
        return task_pb2.StartResponse(pid=task.process.pid)

    def delete(self, task: Task) -> Operation:
        """Runtime state, mounts, FIFOs; what was never started leaves no witness that it ever ran."""
        if task.process.state in (State.RUNNING, State.PAUSED):
            raise CallError(FAILED_PRECONDITION, f"cannot delete task {task.id}: it is {task.process.state.name}")
        never_started = task.process.state is State.CREATED
        if never_started:
            task.process.exited_at = time.time_ns()  # its end, which comes with the deletion, is nobody's exit
        status = yield self._runtime.quietly(task.log, "delete", "--force", task.id)
        if status and Path(self._runtime.root, task.id).exists():
            raise CallError(INTERNAL, error_text(task.log) or f"{self._runtime.name} delete ended with {status}")
        if never_started:
            (task.bundle / INIT_FILE).unlink(missing_ok=True)
        self._let_go(task)
        reply = task_pb2.DeleteResponse(pid=task.process.pid, exit_status=task.process.exit_code)
        reply.exited_at.FromNanoseconds(task.process.exited_at)
        return reply

    def freeze(self, task: Task, verb: str, before: State, after: State) -> Operation:
        if task.process.state is not before:
            raise CallError(FAILED_PRECONDITION, f"cannot {verb} task {task.id}: it is {task.process.state.name}")
        status = yield self._runtime.quietly(task.log, verb, task.id)
        if status:
            raise CallError(INTERNAL, error_text(task.log) or f"{self._runtime.name} {verb} ended with {status}")
        if task.process.state is before:
            task.process.state = after
        return _Empty()

    def update(self, task: Task, request: task_pb2.UpdateTaskRequest) -> Operation:
        """Change limits; with the annotation REOPEN_LOG, which no other call has room for, open the log anew."""
        if REOPEN_LOG in request.annotations and task.process.stdio.log is not None:
            task.process.stdio.log.reopen()
        if request.resources.value:
            path = task.bundle / "resources.json"
            files.write_atomic(path, request.resources.value, sync=False)
            status = yield self._runtime.quietly(task.log, "update", "--resources", str(path), task.id)
            if status:
                raise CallError(INTERNAL, error_text(task.log) or f"{self._runtime.name} update ended with {status}")
        return _Empty()

    def add_exec(self, task: Task, request: task_pb2.ExecProcessRequest) -> Operation:
        """Remember a process to be executed; `start` runs it."""
        if not request.exec_id or "/" in request.exec_id:
            raise CallError(INVALID_ARGUMENT, f"exec_id: {request.exec_id!r} is not an id")
        if request.exec_id in task.execs:
            raise CallError(ALREADY_EXISTS, f"process {request.exec_id} of task {task.id} exists")
        paths = (request.stdin, request.stdout, request.stderr)
        directory = task.bundle / "exec" / request.exec_id
        files.make_private(directory)
        one = Process(request.exec_id, Stdio(self._loop.selector, directory), State.CREATED, paths=paths)
        one.terminal, one.spec = request.terminal, json.loads(request.spec.value)
        task.execs[request.exec_id] = one
        return _Empty()
        yield  # a generator like the others

    def start_exec(self, task: Task, one: Process) -> Operation:
        if one.state is not State.CREATED or one.pid:
            raise CallError(FAILED_PRECONDITION, f"cannot start process {one.exec_id}: it is {one.state.name}")
        if task.process.state is not State.RUNNING:
            raise CallError(FAILED_PRECONDITION, f"cannot exec in task {task.id}: it is {task.process.state.name}")
        directory = task.bundle / "exec" / one.exec_id
        log = directory / "oci.log"
        try:
            one.stdio.open_exec(*one.paths, one.terminal)
            files.write_atomic(directory / "process.json", json.dumps(one.spec).encode(), sync=False)
            options = ["--console-socket", one.stdio.console, "--tty"] if one.terminal else []
            places = ["--process", str(directory / "process.json"), "--pid-file", str(directory / "pid")]
            arguments = ["exec", "--detach", *places, *options, task.id]
            status = yield self._runtime.run(log, one.stdio.fds, *arguments)
            if status:
                raise CallError(INTERNAL, error_text(log) or f"{self._runtime.name} exec ended with {status}")
            if one.terminal:
                one.stdio.take_console()
        except BaseException:
            one.stdio.close()
            one.exited(126, time.time_ns())
            raise
        one.stdio.given()
        one.pid = int((directory / "pid").read_text())
        one.start_time = process.start_time(one.pid) or 0
        one.state = State.RUNNING
        self._claim(one)
        return task_pb2.StartResponse(pid=one.pid)

    def delete_exec(self, task: Task, one: Process) -> Operation:
        if one.state in (State.RUNNING, State.PAUSED):
            raise CallError(FAILED_PRECONDITION, f"cannot delete process {one.exec_id}: it is {one.state.name}")
        one.stdio.close()
        del task.execs[one.exec_id]
        reply = task_pb2.DeleteResponse(pid=one.pid, exit_status=one.exit_code)
        reply.exited_at.FromNanoseconds(one.exited_at)
        return reply
        yield  # a generator like the others

    def unclaimed(self, pid: int, code: int, status: int) -> None:
        """Remember the end of a child that nobody knows (yet): it may be an exec whose command has not returned."""
        self._unclaimed[pid] = (code, status)
        while len(self._unclaimed) > UNCLAIMED:
            del self._unclaimed[next(iter(self._unclaimed))]

    def pids(self, task: Task) -> set[int]:
        return cgroup.pids(task.init.cgroup) if task.init is not None else set()

    def signal_all(self, task: Task, number: int) -> None:
        """Signal every process in the container's cgroup, once."""
        for pid in self.pids(task):
            with process.pin(pid, None) as pinned:
                if pinned is not None and pid in self.pids(task):
                    pinned.send(number)

    def _claim(self, one: Process) -> None:
        ended = self._unclaimed.pop(one.pid, None)
        if ended is None:
            return
        code, status = ended
        one.stdio.drain()
        one.exited(status if code == os.CLD_EXITED else 128 + status, time.time_ns())

    def _created(self, task: Task, pid: int) -> None:
        started = process.start_time(pid)
        if started is None or pid in self._unclaimed:
            raise CallError(INTERNAL, f"init of task {task.id} ended before it was started")
        path = cgroup.of_process(pid)
        task.init = InitRecord(pid, started, process.boot_id(), path, cgroup.oom_kills(path))
        files.write_atomic(task.bundle / INIT_FILE, encode(task.init), sync=False)
        task.process.pid, task.process.start_time, task.process.state = pid, started, State.CREATED

    def _mount_rootfs(self, task: Task, request: task_pb2.CreateTaskRequest) -> None:
        if not request.rootfs:
            return
        task.rootfs.mkdir(mode=0o711, exist_ok=True)
        mount.unmount_tree(task.rootfs)
        for one in request.rootfs:
            described = Mount(one.type, one.source, one.target, tuple(one.options))
            mount.mount_one(described, task.rootfs / one.target if one.target else task.rootfs)

    def _undo_create(self, task: Task) -> Operation:
        status = yield self._runtime.quietly(task.bundle / "undo.log", "delete", "--force", task.id)
        del status  # it says nothing: there may be nothing to delete
        if task.init is not None:
            (task.bundle / INIT_FILE).unlink(missing_ok=True)
        self._let_go(task)

    def _let_go(self, task: Task) -> None:
        for key in task.process.stdio.kept:
            self._context.drop(f"{task.id}/{key}")
        task.process.stdio.close()
        for one in task.execs.values():
            one.stdio.close()
        if task.rootfs.is_dir():
            mount.unmount_tree(task.rootfs)
        if not task.process.exited_at:
            task.process.exited_at = time.time_ns()
        self._tasks.pop(task.id, None)
        task.process.exited(task.process.exit_code or 128 + signal.SIGKILL, task.process.exited_at)
