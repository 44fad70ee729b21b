"""Settling: from what the witnesses say to the one true status, and what is left to do. Pure.

Witnesses, from the most to the least telling about an exit:

    record     the status in the store; a recorded exit is final
    exit file  written by the shim (or the keeper) before anybody was told
    shim       what the pod's shim answers, or why it does not
    kernel     whether that very process (pid, start time, boot id) still lives, and the wait status of a dead one
    intent     the operation that was under way

A call that failed is never read as absence: UNREACHABLE and UNTOLD are answers of their own, and the only
outcome they can lead to is "keep what was known, and probe again". RECOVERY.md has all of this as a table, which
tests/unit/model/test_settle.py reads and holds against this module for every combination there is.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from holdfast.model.state import (
    EXIT_KILLED,
    EXIT_UNKNOWN,
    REASON_COMPLETED,
    REASON_ERROR,
    REASON_LOST,
    REASON_OOM,
    REASON_REBOOT,
    ContainerState,
    ContainerStatus,
    ProcessRef,
    container_state,
)
from holdfast.model.witness import WITNESS_NOBODY, ExitRecord


class Shim(StrEnum):
    """What the pod's shim says of the task."""

    CREATED = "created"
    RUNNING = "running"  # or paused
    STOPPED = "stopped"  # `Witnesses.stopped` has code and time; not believed of an init that lives
    ABSENT = "absent"  # the shim answers and has no such task
    GONE = "gone"  # the shim is proven dead
    UNREACHABLE = "unreachable"  # alive, as far as anybody knows, but it does not answer


class Kernel(StrEnum):
    """What the kernel says of the init process."""

    ALIVE = "alive"  # that very process; or, where none is known, anybody in its cgroup
    DEAD = "dead"  # that very process is gone, or a zombie; or none is known and its cgroup is empty
    REBOOTED = "rebooted"  # whatever it was, it was before the last boot
    UNTOLD = "untold"  # the question failed


class Action(StrEnum):
    UNDO_CREATE = "undo-create"  # never acknowledged: remove every trace
    MONITOR = "monitor"  # wait for its exit
    PROBE = "probe"  # ask again later: somebody who may know did not answer
    DISCARD_TASK = "discard-task"  # created, never started: delete the task so that it can be started anew
    KILL_REST = "kill-rest"  # recorded as exited, yet a process lives
    DELETE_TASK = "delete-task"  # clean up after the exit
    RESUME_STOP = "resume-stop"
    FINISH_REMOVE = "finish-remove"


@dataclass(frozen=True, slots=True)
class Witnesses:
    shim: Shim
    kernel: Kernel
    exit: ExitRecord | None = None
    stopped: tuple[int, int] | None = None  # (exit code, finished_at ns) with Shim.STOPPED
    process: ProcessRef | None = None  # from init.json, when the record has none yet
    started: bool = False  # init.json says that the runtime's start was reached, and its init does not wait for it
    wait_status: int | None = None  # with Kernel.DEAD, the exit code that the kernel still knows; 128+signal
    oom_kills: int = 0  # by how much the cgroup's OOM counter has moved since the init was created
    survived: int = 0  # how many of these kills the init is known to have outlived, before it was sent SIGKILL


@dataclass(frozen=True, slots=True)
class Settlement:
    status: ContainerStatus
    actions: tuple[Action, ...]
    why: str


def settle(
    record: ContainerStatus, witnesses: Witnesses, intents: frozenset[str], now: int, began: int = 0
) -> Settlement:
    """The status that the witnesses prove, and what remains to be done.

    `intents` are the operations under way ("create", "start", "stop", "remove"); `now` is ns since the epoch and
    `began` when a start was begun (0 when none was). Settling a settled status changes nothing.
    """
    if "create" in intents:
        return Settlement(record, (Action.UNDO_CREATE,), "its creation was never acknowledged")
    found = _find(record, witnesses, "start" in intents, now, began)
    return replace(found, actions=found.actions + _resume(found, intents))


def _resume(found: Settlement, intents: frozenset[str]) -> tuple[Action, ...]:
    if "remove" in intents:
        return (Action.FINISH_REMOVE,)
    over = container_state(found.status) is ContainerState.EXITED
    return (Action.RESUME_STOP,) if "stop" in intents and not over else ()


def _find(record: ContainerStatus, w: Witnesses, starting: bool, now: int, began: int) -> Settlement:
    before = container_state(record)
    if before is ContainerState.EXITED:
        return _already_exited(record, w)
    record = replace(record, process=record.process or w.process)
    if w.shim is Shim.STOPPED and w.kernel is Kernel.ALIVE:
        w = replace(w, shim=Shim.UNREACHABLE)  # what it says is not so: it has told nothing
    ran = record.started_at > 0 or w.started or w.shim is Shim.RUNNING
    began = began or now
    if w.exit is not None:
        return _from_exit_file(record, w.exit, w.survived, began)
    if w.shim is Shim.STOPPED and w.stopped is not None:
        code, at = w.stopped
        return _oom(_exited(record, code, at, began, "the shim reports its exit"), w)
    if w.kernel is Kernel.REBOOTED:
        return _after_reboot(record, ran, starting, now, began)
    if ran and w.kernel is Kernel.DEAD and w.wait_status is not None:
        return _oom(_exited(record, w.wait_status, now, began, "the kernel kept its wait status"), w)
    if w.shim is Shim.CREATED:
        return _created_task(record, w)
    if w.shim is Shim.RUNNING:
        return _running(record, began, (Action.MONITOR,), "the shim reports it running")
    if w.kernel is Kernel.ALIVE:
        return _alive_without_shim(record, w, ran, began)
    if not ran:
        return _never_started(record, w, starting)
    return _no_sign_of_life(record, w, now, began)


def _already_exited(record: ContainerStatus, w: Witnesses) -> Settlement:
    """A recorded exit is final; whatever is left of the task is cleaned up, however often that takes."""
    if w.kernel is Kernel.ALIVE:
        return Settlement(record, (Action.KILL_REST, Action.DELETE_TASK), "its exit is on record, but its init lives")
    # Whether anything is left of it is not on record; deleting what is not there does no harm.
    return Settlement(record, (Action.DELETE_TASK,), "its exit is on record")


def _from_exit_file(record: ContainerStatus, exit: ExitRecord, survived: int, began: int) -> Settlement:
    status = replace(record, oom_kills=max(exit.oom_kills, record.oom_kills))
    found = _exited(status, exit.code, exit.finished_at, began, f"the {exit.witness}'s exit file")
    if exit.witness == WITNESS_NOBODY:
        why = "it ended while neither its shim nor the keeper was there to see how"
        return replace(found, status=replace(found.status, reason=REASON_LOST, message=why), why=why)
    if exit.oom_killed and exit.oom_kills > max(survived, record.oom_kills):
        found = replace(found, status=replace(found.status, reason=REASON_OOM))
    return found


def _exited(record: ContainerStatus, code: int, at: int, began: int, why: str) -> Settlement:
    status = replace(
        record,
        started_at=record.started_at or min(began, at),
        finished_at=max(at, record.started_at),  # the clock may have been set back in between
        exit_code=code,
        reason=REASON_ERROR if code else REASON_COMPLETED,
        message="",
        unknown=False,
    )
    return Settlement(status, (Action.DELETE_TASK,), why)


def _oom(found: Settlement, w: Witnesses) -> Settlement:
    """The same, said by a witness that counts no OOM kills: the cgroup does."""
    known = found.status.oom_kills
    killed = found.status.exit_code == EXIT_KILLED and w.oom_kills > max(w.survived, known)
    reason = REASON_OOM if killed else found.status.reason
    return replace(found, status=replace(found.status, reason=reason, oom_kills=max(w.oom_kills, known)))


def _lost(record: ContainerStatus, now: int, began: int, reason: str, message: str) -> Settlement:
    found = _exited(record, EXIT_UNKNOWN, now, began, message)
    return replace(found, status=replace(found.status, reason=reason, message=message))


def _created(record: ContainerStatus, actions: tuple[Action, ...], why: str) -> Settlement:
    """As it was before a start was tried."""
    status = replace(record, process=None, started_at=0, unknown=False, message="")
    return Settlement(status, actions, why)


def _after_reboot(record: ContainerStatus, ran: bool, starting: bool, now: int, began: int) -> Settlement:
    if not ran and not starting:
        return _created(record, (), "it had not been started before the reboot")
    message = "the node was rebooted while the container was running"
    return _lost(record, now, began, REASON_REBOOT, message)


def _created_task(record: ContainerStatus, w: Witnesses) -> Settlement:
    """A created task is a start that stopped half-way: back to CREATED, unless the record knows that it ran."""
    if not record.started_at and not (w.started and w.kernel is Kernel.ALIVE):
        return _created(record, (Action.DISCARD_TASK,), "its task was created but never started")
    # The runtime's start was reached: the shim answers "created" only while that command still runs.
    why = "its start is still under way in the shim"
    if not record.started_at:
        return Settlement(replace(record, unknown=False, message=""), (Action.PROBE,), why)
    return _running(record, record.started_at, (Action.PROBE,), why)


def _running(record: ContainerStatus, began: int, actions: tuple[Action, ...], why: str) -> Settlement:
    status = replace(record, started_at=record.started_at or began, unknown=False, message="")
    return Settlement(status, actions, why)


def _alive_without_shim(record: ContainerStatus, w: Witnesses, ran: bool, began: int) -> Settlement:
    if ran:
        again = (Action.MONITOR, Action.PROBE) if w.shim is Shim.UNREACHABLE else (Action.MONITOR,)
        return _running(record, began, again, f"its init is alive; the shim is {w.shim}")
    if w.shim is Shim.UNREACHABLE:
        status = replace(record, unknown=False, message="")
        return Settlement(status, (Action.PROBE,), "its init exists; the shim does not answer")
    return _created(record, (Action.DISCARD_TASK,), "its init was created but never started, and has no shim")


def _never_started(record: ContainerStatus, w: Witnesses, starting: bool) -> Settlement:
    """No trace of a start; where one was under way, somebody who may know of it may not have answered yet."""
    if starting and (w.shim is Shim.UNREACHABLE or w.kernel is Kernel.UNTOLD):
        status = replace(record, unknown=False, message="")
        return Settlement(status, (Action.PROBE,), f"nobody can tell yet how far its start got; the shim is {w.shim}")
    return _created(record, (), "it has not been started")


def _no_sign_of_life(record: ContainerStatus, w: Witnesses, now: int, began: int) -> Settlement:
    """It ran, and nobody has seen its exit: proven dead, or not yet known."""
    if w.shim is Shim.UNREACHABLE or w.kernel is Kernel.UNTOLD:
        why = f"its shim is {w.shim} and the kernel's view of its init is {w.kernel}"
        return Settlement(replace(record, unknown=True, message=why), (Action.PROBE,), why)
    message = f"its process is gone, its shim is {w.shim} and nobody kept its exit status"
    return _lost(record, now, began, REASON_LOST, message)
