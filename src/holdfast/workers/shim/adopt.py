"""Adoption: a shim takes over the pod of one that was killed, from what that one has left in the pod's directory.

    task.json, init.json, exit.json   of each bundle: what was asked for, its init, how it ended
    the daemon                        the inits that it knows of, should their records be damaged
    exec.*.pid                        what was being executed: nobody waits for it any more, it is ended
    FIFOs, log.flight                 the log goes on where it stood; what was on its way is counted in it
    the keeper                        terminals, and which stdin is still open

An init is somebody else's child now, the keeper's or, if that was killed too, the host's init's. Its pidfd says when
it ends; how, the keeper writes to exit.json, or else the kernel tells (PIDFD_GET_INFO), or nobody.
"""

import contextlib
import errno
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, process
from holdfast.linux.inject import crashpoint
from holdfast.model.witness import (
    INIT_FILE,
    WITNESS_NOBODY,
    ExitRecord,
    InitRecord,
    encode,
)
from holdfast.workers import exits
from holdfast.workers.context import Context
from holdfast.workers.shim import remains
from holdfast.workers.shim.loop import Lock, Loop, void
from holdfast.workers.shim.operations import Operations
from holdfast.workers.shim.stdio import Stdio
from holdfast.workers.shim.task import TASK_FILE, Process, State, Task, read_task

EXIT_LOST: Final = 255
WIPE_SECONDS: Final = 5.0
PAUSE: Final = 0.005
PAUSE_LONGEST: Final = 0.25
PID_LIMIT: Final = 64

Conclude = Callable[[Task, ExitRecord], None]


def adopt(
    loop: Loop,
    operations: Operations,
    conclude: Conclude,
    directory: Path,
    context: Context,
    await_end: Callable[[Task], None] = void,
) -> None:
    """Take over every task of the pod. A bundle that cannot be read costs its own container its shim, nobody else's.

    `await_end` hears of the end of a container that runs and whose init is not its own.
    """
    held = {key: context.fds[at] if at >= 0 else -1 for key, at in context.args.get("held", {}).items()}
    inits = context.args.get("inits", {})
    adoption = Adoption(loop, operations, conclude, held, inits, await_end)
    for name in sorted(os.listdir(directory)):
        bundle = directory / name
        if (bundle / TASK_FILE).exists() or (bundle / INIT_FILE).exists() or name in inits:
            try:
                adoption.take(bundle)
            except Exception:
                traceback.print_exc()
    adoption.finish_wiping()
    operations.freezing.resume([*operations.tasks.values()])
    crashpoint("shim.adopted")


class Adoption:
    """`inits` are (pid, start time, boot id) of containers that are known to run, by id."""

    def __init__(
        self,
        loop: Loop,
        operations: Operations,
        conclude: Conclude,
        held: Mapping[str, int],
        inits: Mapping[str, tuple[int, int, str]],
        await_end: Callable[[Task], None],
    ) -> None:
        self._await_end = await_end
        self._loop = loop
        self._operations = operations
        self._conclude = conclude
        self._held = held
        self._inits = inits
        self._wiping = 0

    def take(self, bundle: Path) -> None:
        about = read_task(bundle)
        paths, terminal = about or (("", "", ""), False)
        init = Process("", Stdio(self._loop, bundle), paths, terminal)
        found = exits.read_init(bundle) or self._known(bundle)
        if found is None and (bundle / INIT_FILE).exists():  # what cannot be read may be of one that runs: hands off
            raise OSError(errno.EIO, "cannot be read, so that its task is left alone", str(bundle / INIT_FILE))
        task = Task(bundle.name, bundle, init, Lock(self._loop), found)
        self._operations.tasks[task.id] = task
        record = task.record
        pinned = None
        if record is not None and record.boot_id == process.boot_id():
            pinned = process.open_pinned(record.pid, record.start_time)
        alive = pinned is not None and pinned.alive()
        crashpoint("shim.pinned")
        waits = self._operations.runtime.awaits_start(task.id)
        started = record is not None and record.started and not (waits and alive)
        inside = self._operations.runtime.is_inside(task.id)
        if record is None or not (alive or started) or (inside and not started):
            if pinned is not None:
                pinned.close()
            self._wipe(task)
            return
        init.pid = record.pid
        init.state = State.RUNNING if started else State.CREATED
        task.own_pids = self._operations.runtime.gvisor or (alive and remains.is_first_in_namespace(record.pid))
        ended = exits.read_exit(bundle, record) if inside else None  # the sentry may live on
        watched = pinned if ended is None else None
        if watched is not None:
            self._watch(task, record, watched)
        with _anyhow():
            if not started and record.started:  # the start was announced, and killed before it took place
                task.record = replace(record, started=False)
                files.write_atomic(bundle / INIT_FILE, encode(task.record), sync=False)
        with _anyhow():
            if alive and not self._operations.runtime.gvisor:
                self._operations.freezing.thaw(task.id)
        with _anyhow():
            for path in bundle.glob("exec.*.pid"):
                with _anyhow():
                    self._end_exec(task, record, path)
        with _anyhow():
            init.stdio.adopt(paths, terminal, self._of(task))
        with _anyhow():
            self._operations.have_held(task)
        crashpoint("shim.adopt")
        if watched is not None:
            self._await_end(task)
            return
        if pinned is not None:
            pinned.close()
        self._over(task, ended or exits.read_exit(bundle, record) or _lost(record))

    def _known(self, bundle: Path) -> InitRecord | None:
        """A record that cannot be read, made again from what the daemon knows; its OOM kills count from now on."""
        if bundle.name not in self._inits:
            return None
        pid, start_time, boot_id = self._inits[bundle.name]
        path, kills = "", 0
        if process.start_time(pid) == start_time:
            with contextlib.suppress(OSError):  # it ends just now
                path = cgroup.of_process(pid)
                kills = cgroup.oom_kills(path)
        record = InitRecord(pid, start_time, boot_id, path, kills, started=True)
        files.write_atomic(bundle / INIT_FILE, encode(record), sync=False)
        return record

    def finish_wiping(self) -> None:
        """Before we serve, so that what is half-made is not there for those who ask; one that lasts stays deletable."""
        deadline = time.monotonic() + WIPE_SECONDS
        while self._wiping and time.monotonic() < deadline:
            self._loop.timers.add(PAUSE, _nothing)
            self._loop.turn()

    def _wipe(self, task: Task) -> None:
        def done(_: object, error: Exception | None) -> None:
            self._wiping -= 1
            if error is not None:
                traceback.print_exception(error)

        task.record = None
        task.init.stdio.claim()
        self._wiping += 1
        self._loop.start(self._operations.wipe(task), done)

    def _of(self, task: Task) -> dict[str, int]:
        return {key.removeprefix(f"{task.id}/"): fd for key, fd in self._held.items() if key.startswith(f"{task.id}/")}

    def _end_exec(self, task: Task, record: InitRecord, path: Path) -> None:
        """Who has asked for it was told that its shim is gone, and can hear of it no more."""
        pid, started, inner = [*files.read_bounded(path, PID_LIMIT).decode().split(), "", "", ""][:3]
        if inner.isdigit() and int(inner):
            one = Process(path.name, task.init.stdio, ("", "", ""), False, inner=int(inner))
            self._loop.start(self._operations.signal(task, one, signal.SIGKILL, everything=False), _report)
        if pid.isdigit():
            with process.pin(int(pid), int(started) if started else None) as pinned:
                if pinned is not None and (started or int(pid) in remains.pids(record.cgroup)):
                    pinned.send(signal.SIGKILL)
        files.unlink(path)

    # -- the end of an init that is not our child

    def _watch(self, task: Task, record: InitRecord, pinned: process.Pinned) -> None:
        task.init.pinned = pinned

        def ended(_: int) -> None:
            self._loop.selector.unregister(pinned.fd)
            self._loop.start(self._hear(task, record, pinned), _report)

        self._loop.selector.register(pinned.fd, selectors.EVENT_READ, ended)

    async def _hear(self, task: Task, record: InitRecord, pinned: process.Pinned) -> None:
        """Its parent writes down how it ended before it reaps it: once it is reaped, there is nothing to wait for."""
        pause = PAUSE
        while True:
            reaped = process.start_time(record.pid) != record.start_time
            found = exits.read_exit(task.bundle, record)
            if found is not None or reaped:
                break
            await self._loop.sleep(pause)
            pause = min(pause * 2, PAUSE_LONGEST)
        if found is None:
            found = _from_kernel(record, pinned)
        crashpoint("shim.heard")
        self._over(task, found)
        pinned.close()

    def _over(self, task: Task, found: ExitRecord) -> None:
        if task.init.state is State.STOPPED:  # it was heard of before its sentry's end
            return
        if self._operations.runtime.is_inside(task.id) and found.witness == "kernel":
            found = exits.with_sentry(found)
        self._conclude(task, found)
        task.init.exited(found.code, found.finished_at)


def _from_kernel(record: InitRecord, pinned: process.Pinned) -> ExitRecord:
    """From the wait status that the kernel keeps for those who hold a pidfd."""
    status = pinned.exit_status()
    if status is None:
        return _lost(record)
    if os.WIFSIGNALED(status):
        return exits.describe(record, os.CLD_KILLED, os.WTERMSIG(status), "kernel")
    return exits.describe(record, os.CLD_EXITED, os.WEXITSTATUS(status), "kernel")


def _lost(record: InitRecord) -> ExitRecord:
    """It has ended and nobody has kept how: said so, rather than made up."""
    return ExitRecord(
        pid=record.pid,
        start_time=record.start_time,
        code=EXIT_LOST,
        signal=0,
        oom_killed=False,
        oom_kills=0,
        finished_at=time.time_ns(),
        witness=WITNESS_NOBODY,
    )


@contextlib.contextmanager
def _anyhow() -> Iterator[None]:
    """How a container ends matters more than what fails in here: it is watched all the same."""
    try:
        yield
    except Exception:
        traceback.print_exc()


def _report(_: object, error: Exception | None) -> None:
    if error is not None:
        traceback.print_exception(error)


def _nothing() -> None:
    pass
