"""What the shim does to containers through the OCI runtime: create, start, exec, pause, update, delete.

Each operation is a coroutine that runs under its task's lock, so that commands on one container follow each other,
while other containers, signals, states and logs go on. What takes time is done by a child of the shim.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import FORGET, FREEZE, THAW, CriuSettings
from holdfast.model.gvisor import KILLED
from holdfast.model.witness import EXIT_FILE, INIT_FILE, decode_init
from holdfast.proto import task_pb2
from holdfast.ttrpc.server import ALREADY_EXISTS, FAILED_PRECONDITION, INTERNAL, NOT_FOUND, UNIMPLEMENTED, CallError
from holdfast.workers import exits
from holdfast.workers.context import Context
from holdfast.workers.shim import criu, gvisor, remains
from holdfast.workers.shim.attach import ATTACH
from holdfast.workers.shim.failures import as_call_error
from holdfast.workers.shim.freezing import Freezing
from holdfast.workers.shim.loop import Failed, Lock, Loop, Pause, Resume
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.stdio import Stdio, owner_of
from holdfast.workers.shim.steps import Steps, exec_file
from holdfast.workers.shim.task import TASK_FILE, Origin, Process, State, Task, exit_code, write_task

REOPEN_LOG: Final = "holdfast.io/reopen-log"
END_SECONDS: Final = 10.0


class Operations:
    """The shim's hands."""

    def __init__(self, loop: Loop, runtime: Runtime, context: Context) -> None:
        self.ended_unseen: Callable[[Task, int, int], None] = _nobody  # with si_code and si_status of its init
        self._loop = loop
        self._runtime = runtime
        self._steps = Steps(runtime)
        self._context = context
        self._starting = 0
        self._unclaimed: dict[int, tuple[int, int, int]] = {}
        self.tasks: dict[str, Task] = {}
        self.freezing = Freezing(loop, self.tasks, self._pause if runtime.gvisor else None)

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    def unclaimed(self, pid: int, code: int, status: int) -> None:
        """Somebody has ended whom nobody knows: he may be the one whose pid a runtime command is about to tell us."""
        if self._starting:
            self._unclaimed[pid] = (code, status, time.time_ns())

    # -- the life of a task

    async def create(self, request: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
        """Mount the rootfs, open the streams, have the runtime create the container, leave init.json.

        A failure undoes all of it.
        """
        if request.id in self.tasks:
            raise CallError(ALREADY_EXISTS, f"task {request.id} exists")
        stdio = Stdio(self._loop, bundle := Path(request.bundle), owner_of(request.id, self._context.args))
        init = Process("", stdio, (request.stdin, request.stdout, request.stderr), request.terminal)
        task = self.tasks[request.id] = Task(request.id, bundle, init, Lock(self._loop))
        if request.checkpoint:
            task.origin = Origin(Path(request.checkpoint), CriuSettings.decode(request.options.value))
        async with task.lock:
            try:
                await self._create(task, request)
            except Exception as exc:
                error = as_call_error(exc, f"cannot create task {task.id}")
                task.discarded = True
                try:
                    await self._discard(task)
                except (CallError, OSError) as left:  # the task stays, for a delete to try again
                    raise CallError(error.code, f"{error}; and then: {left}") from exc
                raise error from exc
        return task_pb2.CreateTaskResponse(pid=task.init.pid)

    async def start(self, task: Task) -> task_pb2.StartResponse:
        """init.json says that the start was reached before the runtime is told to.

        What is restored begins where it stood: its init is known, and on record, only once it runs.
        """
        async with task.lock:
            if task.init.state is not State.CREATED or (task.record is None and task.origin is None):
                raise CallError(FAILED_PRECONDITION, f"cannot start task {task.id}: {_condition(task)}")
            if task.record is None:
                await self._restore(task)
            else:
                await self._child(f"start task {task.id}", lambda: self._steps.start(task))
                task.init.stdio.given()
            if task.init.state is State.CREATED:
                task.init.state = State.RUNNING
            return task_pb2.StartResponse(pid=task.init.pid)

    async def checkpoint(self, task: Task, images: Path, settings: CriuSettings) -> None:
        """Have CRIU write a frozen task's images; it stays frozen, and is the same afterwards."""
        async with task.lock:
            if not self.freezing.is_frozen(task):
                raise CallError(FAILED_PRECONDITION, f"cannot checkpoint task {task.id}: it is not frozen")
            if self._runtime.gvisor:
                self._refuse_checkpoint()
                work = lambda: gvisor.dump(self._runtime, images)  # noqa: E731
            else:
                work = lambda: criu.dump(self._runtime, task, images, settings)  # noqa: E731
            task.dumping = True
            try:
                await self._child(f"checkpoint task {task.id}", work, criu.PATIENCE)
            finally:
                task.dumping = False
                self.freezing.dumped(task)

    def _refuse_checkpoint(self) -> None:
        """Of what runsc would write without a word, and could not restore. Raises CallError."""
        for task in self.tasks.values():
            if task.init.state is State.STOPPED:
                raise CallError(FAILED_PRECONDITION, f"cannot checkpoint: task {task.id} has ended and is not deleted")
            for one in task.execs.values():
                if one.alive or one.starting:
                    raise CallError(FAILED_PRECONDITION, f"cannot checkpoint: something is executed in task {task.id}")

    async def _pause(self, verb: str) -> None:
        """Pause or resume gVisor's sandbox, and all in it. What was not paused need not be resumed."""
        id = self._runtime.pod_id
        if verb == "resume" and not self._runtime.is_paused(id):
            return
        await self._child(f"{verb} the sandbox of pod {id}", lambda: self._runtime.run(verb, id))

    async def delete(self, task: Task) -> task_pb2.DeleteResponse:
        """Remove what the runtime knows, the rootfs mount, the FIFOs. exit.json stays for whoever comes later."""
        async with task.lock:
            if task.deleted:
                raise CallError(NOT_FOUND, f"task {task.id} does not exist")
            if task.init.alive:
                raise CallError(FAILED_PRECONDITION, f"cannot delete task {task.id}: {_condition(task)}")
            if task.init.state is State.CREATED:
                task.discarded = True
                files.unlink(task.bundle / INIT_FILE)
            await self._discard(task)
        return _deleted(task.init)

    async def freeze(self, task: Task, verb: str) -> None:
        """Pause or resume. What is so already stays so."""
        async with task.lock:
            if not task.init.alive:
                raise CallError(FAILED_PRECONDITION, f"cannot {verb} task {task.id}: {_condition(task)}")
            after = State.PAUSED if verb == "pause" else State.RUNNING
            if task.init.state is not after:
                await self._child(f"{verb} task {task.id}", lambda: self._runtime.run(verb, task.id))
                if task.init.alive:
                    task.init.state = after

    async def update(self, task: Task, request: task_pb2.UpdateTaskRequest) -> None:
        """Change limits; its annotations are for what no other call has room for: REOPEN_LOG, ATTACH, FREEZE, ..."""
        output = task.init.stdio.output
        if REOPEN_LOG in request.annotations and output.log is not None:
            try:
                output.log.reopen()
            except OSError as exc:
                raise CallError(FAILED_PRECONDITION, f"cannot reopen log of task {task.id}: {exc}") from exc
        if ATTACH in request.annotations:
            output.attach(request.annotations[ATTACH])
        if FORGET in request.annotations and self._runtime.gvisor:
            inside = [one.id for one in self.tasks.values() if self._runtime.is_inside(one.id) and one.init.alive]
            await self._child("forget what has ended", lambda: gvisor.forget(self._runtime, inside))
        if FREEZE in request.annotations:
            await self.freezing.freeze(request.annotations[FREEZE])
        if THAW in request.annotations:
            await self.freezing.thaw_asked(request.annotations[THAW])
        if not request.resources.value:
            return
        if self._runtime.gvisor:
            raise CallError(UNIMPLEMENTED, f"cannot update task {task.id}: in gVisor only a pod has limits")
        async with task.lock:
            if task.init.state is State.STOPPED:
                raise CallError(FAILED_PRECONDITION, f"cannot update task {task.id}: {_condition(task)}")
            await self._child(f"update task {task.id}", lambda: self._steps.update(task, request.resources.value))

    async def signal(self, task: Task, one: Process, number: int, *, everything: bool) -> None:
        """To a process that only the OCI runtime can reach: a container's init, all there is in it, or an exec."""
        whom = ("--pid", str(one.inner)) if one.exec_id else ("--all",) if everything else ()
        await self._child(f"signal task {task.id}", lambda: self._runtime.run("kill", *whom, task.id, str(number)))

    # -- processes executed in it

    def prepare_exec(self, task: Task, request: task_pb2.ExecProcessRequest) -> None:
        if request.exec_id in task.execs:
            raise CallError(ALREADY_EXISTS, f"process {request.exec_id} of task {task.id} exists")
        if task.init.state is not State.RUNNING:
            raise CallError(FAILED_PRECONDITION, f"cannot exec in task {task.id}: {_condition(task)}")
        paths = (request.stdin, request.stdout, request.stderr)
        stdio = Stdio(self._loop, task.bundle / "exec" / request.exec_id, owner_of(request.exec_id, self._context.args))
        task.execs[request.exec_id] = Process(request.exec_id, stdio, paths, request.terminal, request.spec.value)

    async def start_exec(self, task: Task, one: Process) -> task_pb2.StartResponse:
        """Run it. Execs of one container start side by side: a slow one holds up none but itself."""
        if one.state is not State.CREATED or one.starting:
            raise CallError(
                FAILED_PRECONDITION, f"cannot start process {one.exec_id} of task {task.id}: it was started"
            )
        if task.init.state is not State.RUNNING:
            raise CallError(FAILED_PRECONDITION, f"cannot exec in task {task.id}: {_condition(task)}")
        one.starting = True
        try:
            options = []
            if one.terminal:
                files.make_private(one.stdio.directory)
                options = ["--console-socket", one.stdio.open_terminal(*one.paths[:2])]
            else:
                one.stdio.open(*one.paths)
                self._give(one.stdio)
            await self.freezing.thawed(task)
            with self._expecting():
                pid = await self._loop.in_child(lambda: self._steps.exec(task, one, options), self._runtime.seconds)
                one.stdio.given()
                crashpoint("shim.execed")
                self._exec_started(one, *map(int, pid.split()))
        except Exception as exc:
            one.stdio.close()
            raise as_call_error(exc, f"cannot exec in task {task.id}") from exc
        finally:
            one.starting = False
        return task_pb2.StartResponse(pid=one.pid)

    def delete_exec(self, task: Task, one: Process) -> task_pb2.DeleteResponse:
        if one.alive or one.starting:
            raise CallError(FAILED_PRECONDITION, f"cannot delete process {one.exec_id} of task {task.id}: it runs")
        one.stdio.close()
        files.unlink(exec_file(task, one.exec_id))
        del task.execs[one.exec_id]
        one.exited(0, 0)  # for those who wait for one that was never started
        with contextlib.suppress(OSError):  # there is none, or it is the caller's and not empty
            os.rmdir(one.stdio.directory)
        return _deleted(one)

    def close_stdin(self, task: Task, one: Process) -> None:
        """End of input for a process: nobody of ours has its stdin open for writing any more.

        The terminal of a container has none: who attaches next may type, too.
        """
        if one.terminal and not one.exec_id:
            return
        if not one.exec_id and "stdin" in one.stdio.kept:
            self._context.drop(f"{task.id}/stdin")
        one.stdio.close_stdin()

    # -- steps

    async def _create(self, task: Task, request: task_pb2.CreateTaskRequest) -> None:
        for name in (INIT_FILE, EXIT_FILE):
            files.unlink(task.bundle / name)
        write_task(task.bundle, task.init)
        exits.keep_room(task.bundle)
        crashpoint("shim.task")
        stdio = task.init.stdio
        options = []
        if request.terminal:
            options = ["--console-socket", stdio.open_terminal(request.stdin, request.stdout)]
        else:
            stdio.open(request.stdin, request.stdout, request.stderr)
            self._give(stdio)
        if task.origin is not None:
            task.origin.options = tuple(options)
            stdio.give(*criu.user_of(task.bundle))
            await self._child(f"mount the root of task {task.id}", lambda: self._steps.mount(task, request))
            return
        with self._expecting():
            made = await self._loop.in_child(lambda: self._steps.make(task, request, options), self._runtime.seconds)
            if not self._runtime.is_inside(task.id):  # which gets its streams when it starts
                stdio.given()
            own_pids, record = made[:1], decode_init(made[1:].encode())
            if record.pid in self._unclaimed:
                raise Failed("its init ended before it was started")
            if request.terminal:
                stdio.take_terminal()
            task.record, task.own_pids, task.init.pid = record, own_pids == "1", record.pid
            crashpoint("shim.made")
        self.have_held(task)

    async def _restore(self, task: Task) -> None:
        """A failure leaves nobody; the task stays, to be deleted."""
        stdio = task.init.stdio
        try:
            with self._expecting():
                made = await self._loop.in_child(lambda: self._steps.revive(task), self._runtime.seconds)
                stdio.given()
                if task.init.terminal:
                    stdio.take_terminal()
                task.own_pids, task.record = made[:1] == "1", decode_init(made[1:].encode())
                task.init.pid = task.record.pid
                ended = self._unclaimed.pop(task.record.pid, None)
        except (Failed, OSError) as exc:
            raise as_call_error(exc, f"cannot restore task {task.id}") from exc
        if task.origin is not None and task.origin.settings.held:
            self.freezing.hold(task, task.origin.settings.held)
        self.have_held(task)
        if ended is not None:
            self.ended_unseen(task, *ended[:2])

    def _give(self, stdio: Stdio) -> None:
        """Root of the pod's user namespace gets what is given to a process; the OCI runtime gives it on from there."""
        if owner := self._context.args.get("owner"):
            stdio.give(*owner)

    def have_held(self, task: Task) -> None:
        """Have the keeper hold what must outlive us."""
        for name, fd in task.init.stdio.kept.items():
            self._context.hold(f"{task.id}/{name}", [fd])

    def _exec_started(self, one: Process, pid: int, inner: int = 0) -> None:
        one.pid, one.inner = pid, inner
        if one.terminal:
            one.stdio.take_terminal()
        one.state = State.RUNNING
        if pid in self._unclaimed:
            one.stdio.finish()
            code, status, at = self._unclaimed.pop(pid)
            one.exited(exit_code(code, status), at)

    async def _discard(self, task: Task) -> None:
        """Undo everything but the bundle's files. Raises when something would not go, to be tried again."""
        await self._child(f"delete task {task.id}", lambda: self._steps.forget(task))
        if self._runtime.is_inside(task.id):
            task.init.exited(KILLED, time.time_ns())
        if task.init.pid and not await self._ended(task.init, END_SECONDS):
            raise CallError(INTERNAL, f"cannot delete task {task.id}: its init, pid {task.init.pid}, does not die")
        if task.record is not None and not task.own_pids:
            await remains.kill(self._loop, task.record.cgroup)
        for one in (task.init, *task.execs.values()):
            one.stdio.close()
            one.exited(0, 0)  # what never ran has nothing to tell those who wait for it
        for name in task.init.stdio.kept:
            self._context.drop(f"{task.id}/{name}")
        for one in task.execs.values():
            files.unlink(exec_file(task, one.exec_id))
        for name in (TASK_FILE, exits.ROOM_FILE):
            files.unlink(task.bundle / name)
        task.deleted = True
        crashpoint("shim.deleted")
        del self.tasks[task.id]

    async def wipe(self, task: Task) -> None:
        """Remove a task that a dead shim has left half-made: it can then be created anew."""
        async with task.lock:
            task.discarded = True
            files.unlink(task.bundle / INIT_FILE)
            await self._child(f"remove half-made task {task.id}", lambda: self._steps.wipe(task))
            await self._discard(task)

    async def _ended(self, one: Process, seconds: float) -> bool:
        """Wait until a process has been reaped, for at most `seconds`."""

        def arrange(resume: Resume) -> None:
            timer = self._loop.timers.add(seconds, lambda: resume(False))

            def ended() -> None:
                timer.cancel()
                self._loop.soon(lambda: resume(True))

            one.when_exited(ended, lambda: timer.pending)

        result: bool = await Pause(arrange)
        return result

    async def _child(self, what: str, work: Callable[[], None], patience: float = 0) -> None:
        def quietly() -> str:
            work()
            return ""

        try:
            await self._loop.in_child(quietly, self._runtime.seconds, patience)
        except Failed as exc:
            raise as_call_error(exc, f"cannot {what}") from exc

    @contextlib.contextmanager
    def _expecting(self) -> Iterator[None]:
        """While a command runs that will tell a pid: he of whom it tells may end before it has told us."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._unclaimed.clear()


def _nobody(*_: object) -> None:
    pass


def _condition(task: Task) -> str:
    if task.record is None:
        return "it is being created"
    return f"it is {task.init.state.name.lower()}"


def _deleted(one: Process) -> task_pb2.DeleteResponse:
    reply = task_pb2.DeleteResponse(pid=one.pid, exit_status=one.exit_code)
    reply.exited_at.FromNanoseconds(one.exited_at)
    return reply
