"""A container's task inside its shim, and the processes executed in it: what exists, and in which state."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.linux.process import Pinned
from holdfast.model.checkpoint import CriuSettings
from holdfast.model.witness import InitRecord
from holdfast.workers.shim.loop import Lock
from holdfast.workers.shim.stdio import Stdio

TASK_FILE: Final = "task.json"  # what Create was asked for, for a shim that has to adopt the task
_LIMIT: Final = 64 * 1024


class State(IntEnum):
    """As containerd.v1.types.Status numbers them. What is still being created is CREATED, without a pid."""

    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4


@dataclass(slots=True)
class Process:
    """The init of a task (exec_id "") or a process executed in it. Times are ns since the epoch, 0 for not yet."""

    exec_id: str
    stdio: Stdio
    paths: tuple[str, str, str]  # stdin, stdout, stderr as the caller gave them
    terminal: bool
    spec: bytes = b""  # of an exec: the OCI process as JSON
    state: State = State.CREATED
    starting: bool = False
    pid: int = 0
    inner: int = 0  # of an exec in gVisor: its pid there
    exit_code: int = 0
    exited_at: int = 0
    pinned: Pinned | None = None  # of an adopted process: it is not our child, so its pid alone is not its own
    waiters: list[tuple[Callable[[], None], Callable[[], bool]]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.state in (State.RUNNING, State.PAUSED)

    def when_exited(self, tell: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Have `tell` called at the end, at once if that has come; not if it is no longer `wanted` by then."""
        if self.state is State.STOPPED:
            tell()
            return
        self.waiters = [waiter for waiter in self.waiters if waiter[1]()]
        self.waiters.append((tell, wanted))

    def exited(self, code: int, at: int) -> None:
        """Note the end and tell whoever waits; the first that is noted is final."""
        if self.state is State.STOPPED:
            return
        self.state, self.exit_code, self.exited_at = State.STOPPED, code, at
        waiters, self.waiters = self.waiters, []
        for tell, wanted in waiters:
            if wanted():
                tell()


@dataclass(slots=True)
class Origin:
    """What a task is restored from: a directory of CRIU's images. `options` are what runc is told beside that."""

    images: Path
    settings: CriuSettings
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Task:
    """One container: its bundle, its init, its execs. `lock` is held by whoever runs OCI runtime commands on it."""

    id: str
    bundle: Path
    init: Process
    lock: Lock
    record: InitRecord | None = None  # once the OCI runtime has created it
    own_pids: bool = True  # its init is process 1 of a namespace: the kernel ends the rest with it
    discarded: bool = False  # being deleted without ever having been started: its end is nobody's exit
    deleted: bool = False
    origin: Origin | None = None  # of one that is to be restored
    dumping: bool = False  # CRIU is at work on it, perhaps for somebody who waits no more
    execs: dict[str, Process] = field(default_factory=dict)

    @property
    def rootfs(self) -> Path:
        return self.bundle / "rootfs"

    def find(self, exec_id: str) -> Process | None:
        return self.execs.get(exec_id) if exec_id else self.init


def exit_code(code: int, status: int) -> int:
    """From si_code and si_status of waitid(2): the exit status, or 128 + signal."""
    return status if code == os.CLD_EXITED else 128 + status


def write_task(bundle: Path, one: Process) -> None:
    about = {"paths": one.paths, "terminal": one.terminal}
    files.write_atomic(bundle / TASK_FILE, json.dumps(about).encode(), sync=False)


def read_task(bundle: Path) -> tuple[tuple[str, str, str], bool] | None:
    """(stdin, stdout and stderr, whether on a terminal); None when it was not written or cannot be read."""
    try:
        about = json.loads(files.read_bounded(bundle / TASK_FILE, _LIMIT))
        stdin, stdout, stderr = map(str, about["paths"])
        return (stdin, stdout, stderr), bool(about["terminal"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
