"""A container's task inside its shim, and the processes executed in it: what exists, and in which state."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from holdfast.model.witness import InitRecord
from holdfast.workers.shim.stdio import Stdio


class State(IntEnum):
    """As the Task API numbers them; 0 is a task whose creation has not ended."""

    CREATING = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4


@dataclass(slots=True)
class Process:
    """The init of a task (exec_id "") or a process executed in it."""

    exec_id: str
    stdio: Stdio
    state: State = State.CREATING
    pid: int = 0
    start_time: int = 0
    exit_code: int = 0
    exited_at: int = 0
    spec: dict[str, Any] = field(default_factory=dict)
    paths: tuple[str, str, str] = ("", "", "")
    terminal: bool = False
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def exited(self, code: int, at: int) -> None:
        """The first exit that is noted is final; whoever waits is told."""
        if self.state is State.STOPPED:
            return
        self.state, self.exit_code, self.exited_at = State.STOPPED, code, at
        waiters, self.waiters = self.waiters, []
        for tell in waiters:
            tell()


@dataclass(slots=True)
class Task:
    """One container: its bundle, its init, its execs."""

    id: str
    bundle: Path
    process: Process
    init: InitRecord | None = None
    execs: dict[str, Process] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.bundle / "oci.log"

    @property
    def rootfs(self) -> Path:
        return self.bundle / "rootfs"

    def find(self, exec_id: str) -> Process | None:
        return self.execs.get(exec_id) if exec_id else self.process


def has_own_pid_namespace(bundle: Path) -> bool:
    """Whether the kernel ends all of a container's processes with its init (pid_namespaces(7))."""
    spec = json.loads((bundle / "config.json").read_bytes())
    kinds = [entry for entry in spec.get("linux", {}).get("namespaces", []) if entry.get("type") == "pid"]
    return any(not entry.get("path") for entry in kinds)
