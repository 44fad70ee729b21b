"""Mutable status, the state derived from it, and the one table through which state moves.

container:   (create) ─▶ CREATED ─ STARTED ─▶ RUNNING ─ EXITED ─▶ EXITED
                │ EXITED (never started, or its start failed)         ▲
                └─────────────────────────────────────────────────────┤
             any ─ LOST ─▶ UNKNOWN ─ STARTED/CREATED/EXITED ──────────┘

pod:         (run) ─▶ READY ─ STOPPED ─▶ NOTREADY
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from holdfast.model.errors import FailedPrecondition

REASON_COMPLETED: Final = "Completed"
REASON_ERROR: Final = "Error"
REASON_OOM: Final = "OOMKilled"
REASON_START: Final = "StartError"
REASON_UNKNOWN: Final = "Unknown"
REASON_REBOOT: Final = "NodeRebooted"
REASON_LOST: Final = "ExitStatusLost"
REASON_SHIM: Final = "ShimGone"  # of a pod: its shim is dead and could not be replaced yet
REASON_SANDBOX: Final = "SandboxExited"  # of a pod: its sandbox container, which a foreign shim needs, has ended

EXIT_UNKNOWN: Final = 255  # no witness survived; the reason and the message say what was lost
EXIT_START_FAILED: Final = 128
EXIT_KILLED: Final = 137  # 128 + SIGKILL


class ContainerState(StrEnum):
    CREATED = "CREATED"
    RUNNING = "RUNNING"
    EXITED = "EXITED"
    UNKNOWN = "UNKNOWN"


class PodState(StrEnum):
    READY = "READY"
    NOTREADY = "NOTREADY"


class Event(StrEnum):
    CREATED = "created"
    STARTED = "started"
    EXITED = "exited"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """Which process, exactly: a pid alone is not an identity."""

    pid: int
    start_time: int  # clock ticks since boot, field 22 of /proc/PID/stat
    boot_id: str


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What changes in a container's life. Times are ns since the epoch, 0 for "not yet"."""

    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    process: ProcessRef | None = None
    oom_kills: int = 0  # of its processes: while it runs, those that its init has outlived; then all of them
    unknown: bool = False
    resources: bytes = b""  # serialized runtime.v1.LinuxContainerResources: the limits that are in force
    user: bytes = b""  # serialized runtime.v1.ContainerUser: who its process is; empty from a release that kept none


@dataclass(frozen=True, slots=True)
class PodStatus:
    """What changes in a pod's life."""

    ready: bool = False
    stopped_at: int = 0
    netns: str = ""  # path of the pinned network namespace; "" on the host network
    network: str = ""  # JSON of the network result: {"ips": [...]}; "" when none
    shim: ProcessRef | None = None
    reason: str = ""
    resources: bytes = b""  # serialized runtime.v1.UpdatePodSandboxResourcesRequest of the last update, or empty


def container_state(status: ContainerStatus) -> ContainerState:
    if status.finished_at:
        return ContainerState.EXITED
    if status.unknown:
        return ContainerState.UNKNOWN
    return ContainerState.RUNNING if status.started_at else ContainerState.CREATED


def pod_state(status: PodStatus) -> PodState:
    return PodState.READY if status.ready else PodState.NOTREADY


_C, _E = ContainerState, Event
NEXT: Final[dict[tuple[ContainerState, Event], ContainerState]] = {
    (_C.CREATED, _E.CREATED): _C.CREATED,
    (_C.CREATED, _E.STARTED): _C.RUNNING,
    (_C.CREATED, _E.EXITED): _C.EXITED,
    (_C.CREATED, _E.LOST): _C.UNKNOWN,
    (_C.RUNNING, _E.STARTED): _C.RUNNING,
    (_C.RUNNING, _E.EXITED): _C.EXITED,
    (_C.RUNNING, _E.LOST): _C.UNKNOWN,
    (_C.UNKNOWN, _E.CREATED): _C.CREATED,
    (_C.UNKNOWN, _E.STARTED): _C.RUNNING,
    (_C.UNKNOWN, _E.EXITED): _C.EXITED,
    (_C.UNKNOWN, _E.LOST): _C.UNKNOWN,
}


def advance(now: ContainerState, event: Event) -> ContainerState:
    """The state after `event`; FailedPrecondition where the table has no entry: a recorded exit is final."""
    if (after := NEXT.get((now, event))) is None:
        raise FailedPrecondition(f"cannot apply {event} to a container that is {now}")
    return after


_LEADS_TO: Final = {_C.CREATED: _E.CREATED, _C.RUNNING: _E.STARTED, _C.EXITED: _E.EXITED, _C.UNKNOWN: _E.LOST}


def moved(before: ContainerStatus, change: Callable[[ContainerStatus], ContainerStatus]) -> ContainerStatus:
    """The status after a change that the table allows; a recorded exit stays. Raises FailedPrecondition."""
    if container_state(before) is ContainerState.EXITED:
        return before
    after = change(before)
    advance(container_state(before), _LEADS_TO[container_state(after)])
    return after
