"""gVisor under this shim: what differs for containers whose processes are not the host's.

The init that runsc tells of is the sentry, the same for all containers of the pod. So a container's end is told by
`runsc wait`, one process for each that runs, which ends with us; the sentry's own end is the end of all. Signals go by
runsc. For a process that is executed there is one on the host that ends as that does, and dies without it.
"""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from holdfast.linux import cgroup, files, process
from holdfast.linux.inject import crashpoint
from holdfast.model.gvisor import KILLED, LOOK, distractions, exit_code, pids
from holdfast.model.witness import ExitRecord
from holdfast.workers import exits
from holdfast.workers.shim.criu import Revived
from holdfast.workers.shim.loop import Failed, Loop
from holdfast.workers.shim.oci import ENVIRONMENT, Runtime, memory_file
from holdfast.workers.shim.task import State, Task

PAUSE: Final = 0.02  # until a wait that was cut off is begun again, or the sentry's end has been noticed
PAUSE_LONGEST: Final = 1.0
ANSWER_LIMIT: Final = 64 * 1024
PID_LIMIT: Final = 64
_MAY_LOOK: Final = ("--user", "0:0", "--cap", "CAP_SYS_PTRACE", "--cap", "CAP_DAC_READ_SEARCH")


class Ends:
    """Hears of the ends of containers, and has them concluded. Nothing is done for other runtimes."""

    def __init__(self, loop: Loop, runtime: Runtime, conclude: Callable[[Task, ExitRecord], None]) -> None:
        self._loop = loop
        self._runtime = runtime
        self._conclude = conclude
        self._awaited: dict[str, Task] = {}
        self._fates: dict[str, ExitRecord] = {}

    def await_end(self, task: Task) -> None:
        """Of a container that was started. The sandbox container is the sentry, whose end the kernel tells."""
        if self._runtime.is_inside(task.id) and self._awaited.get(task.id) is not task:
            self._awaited[task.id] = task
            self._loop.start(self._await(task), lambda _, error: self._over(task, error))

    def lose(self, task: Task, sentry: ExitRecord) -> bool:
        """The sentry has ended. Whether that will be concluded for this task once it is known that nobody was first."""
        if task.id not in self._awaited:
            return False
        self._fates[task.id] = exits.with_sentry(sentry)
        return True

    async def _await(self, task: Task) -> None:
        record, pause = None, PAUSE
        while record is None and not task.deleted and task.init.state is not State.STOPPED:
            record = await self._ask(task) or self._fates.get(task.id) or _gone(task)
            if record is None:
                await self._loop.sleep(pause)
                pause = min(pause * 2, PAUSE_LONGEST)
        if record is not None and task.init.state is not State.STOPPED:
            self._conclude(task, record)
            crashpoint("shim.heard")
            task.init.exited(record.code, record.finished_at)

    async def _ask(self, task: Task) -> ExitRecord | None:
        """How the container has ended, once it has; None when that was cut off."""
        with memory_file("wait") as answer:
            try:
                pid = _spawn([self._runtime.binary, "--root", self._runtime.root, "wait", task.id], answer)
            except OSError:
                traceback.print_exc()
                return None
            await self._loop.ended(pid)
            code = exit_code(os.pread(answer, ANSWER_LIMIT, 0))
            return _ended(task, code, 0) if code is not None else None

    def _over(self, task: Task, error: Exception | None) -> None:
        if self._awaited.get(task.id) is task:
            del self._awaited[task.id]
            self._fates.pop(task.id, None)
        if error is not None:
            traceback.print_exception(error)


def forget(runtime: Runtime, ids: Sequence[str]) -> None:
    """Before a dump, have containers that run forget processes that have ended. Blocks. If that fails it is no harm.

    A procfs remembers the names that were looked up in it last, and a name the process. Each would be written, with a
    hundred KiB of what there is below it, which takes the sentry some milliseconds: of programs that look at
    /proc/self when they begin, as those with a static glibc do, there soon are enough for ten seconds.
    """
    crashpoint("shim.forgetting")
    for id in ids:
        with memory_file("ps") as answer, contextlib.suppress(Failed):
            runtime.run("ps", "--format", "json", id, fds={1: answer})
            if found := pids(os.pread(answer, ANSWER_LIMIT, 0)):
                runtime.run("exec", *_MAY_LOOK, runtime.pod_id, f"/{LOOK}", *distractions(found[0]))


def dump(runtime: Runtime, images: Path) -> None:
    """Write all of a paused sandbox, which stays so: what is in memory, and in volumes and roots that it overlays.

    Nothing is compressed, as all stands still meanwhile.
    """
    crashpoint("shim.dumping")
    runtime.run("checkpoint", "--leave-running", "--compression=none", "--image-path", str(images), runtime.pod_id)
    crashpoint("shim.dumped")


def restore(runtime: Runtime, task: Task) -> Revived:
    """The sandbox container first, then the others; with the last of those that were there all go on. Blocks."""
    assert task.origin is not None
    pid_file = task.bundle / "init.pid"
    where = ["--detach", "--bundle", str(task.bundle), "--pid-file", str(pid_file)]
    where += ["--image-path", str(task.origin.images), *task.origin.options]
    crashpoint("shim.restoring")
    try:
        runtime.run("restore", *where, task.id, fds=task.init.stdio.fds)
        crashpoint("shim.restored")
        pid = int(files.read_bounded(pid_file, PID_LIMIT))
        if (started := process.start_time(pid)) is None:
            raise Failed("its sandbox has ended")
        return Revived(pid, started, own_pids=True, cgroup=cgroup.of_process(pid))
    finally:
        files.unlink(pid_file)


def _gone(task: Task) -> ExitRecord | None:
    """How the container has ended if its sentry is gone, which was somebody else's child; None if it is not."""
    assert task.record is not None
    if process.start_time(task.record.pid) == task.record.start_time:
        return None
    return exits.read_exit(task.bundle, task.record) or _ended(task, KILLED, signal.SIGKILL)


def _ended(task: Task, code: int, number: int) -> ExitRecord:
    assert task.record is not None
    return ExitRecord(task.record.pid, task.record.start_time, code, number, False, 0, time.time_ns(), "shim")


def _spawn(command: Sequence[str], answer: int) -> int:
    """Run a program that says something into `answer` and dies with us. Returns its pid. Raises OSError."""
    parent = os.getpid()
    pid = process.fork()
    if pid == 0:
        _be(command, answer, parent)
    return pid


def _be(command: Sequence[str], answer: int, parent: int) -> NoReturn:
    try:
        process.signal_at_parents_death(signal.SIGKILL)
        if os.getppid() == parent:
            null = os.open("/dev/null", os.O_RDWR)
            for ours, number in ((null, 0), (answer, 1), (null, 2)):
                os.dup2(ours, number)
            os.execve(command[0], list(command), ENVIRONMENT)
    finally:
        os._exit(127)
