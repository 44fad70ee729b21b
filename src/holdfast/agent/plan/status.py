"""A pod's status as Kubernetes shows it, from what there is and what is remembered. Pure; plain data for YAML and JSON.

Phases (Kubernetes, "Pod Lifecycle"): Pending until every container has been started once, Running while one runs or is
to be started again, Succeeded and Failed when it is over, Unknown when the runtime cannot tell.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from holdfast.agent.plan.actions import NS, Remembered
from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.pod.spec import Container, Pod

COMPLETED: Final = "Completed"
ERROR: Final = "Error"
CREATING: Final = "ContainerCreating"
INITIALIZING: Final = "PodInitializing"


Waiting = Mapping[str, tuple[str, str]]  # by container: why it does not run, in a word and in words


def status(pod: Pod, there: Observed, known: Remembered, qos: str, waiting: Waiting) -> dict[str, Any]:
    """PodStatus of the v1 API."""
    first = INITIALIZING if pod.spec.init_containers else CREATING
    inits = [_container(one, there, known, waiting, first, init=True) for one in pod.spec.init_containers]
    mains = [_container(one, there, known, waiting, first, init=False) for one in pod.spec.containers]
    phase = _phase(pod, there, known)
    sandbox = there.current
    addresses = list(sandbox.addresses) if sandbox is not None and sandbox.ready else []
    found = {
        "phase": phase,
        "conditions": list(_conditions(pod, there, known, phase, mains)),
        "startTime": _time(known.begun_at),
        "podIP": addresses[0] if addresses else "",
        "podIPs": [{"ip": one} for one in addresses],
        "qosClass": qos,
        "initContainerStatuses": inits,
        "containerStatuses": mains,
    }
    return {key: value for key, value in found.items() if value not in ("", [], None)}


def _phase(pod: Pod, there: Observed, known: Remembered) -> str:
    if known.finished:
        return known.finished
    runs = [there.latest(one.name) for one in pod.spec.containers]
    if any(run is not None and run.state is State.UNKNOWN for run in runs):
        return "Unknown"
    if any(run is None or run.state is State.CREATED for run in runs):
        return "Pending"
    return "Running"


def _conditions(
    pod: Pod, there: Observed, known: Remembered, phase: str, mains: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    over = phase == "Succeeded"
    sandbox = there.current
    through = all(_through(one, there, known) for one in pod.spec.init_containers)
    unready = [one["name"] for one in mains if not one["ready"]]
    why = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    if over:
        why = ("PodCompleted", "")
    yield _condition("PodReadyToStartContainers", sandbox is not None and sandbox.ready)
    yield _condition("Initialized", through or over, "ContainersNotInitialized")
    yield _condition("Ready", not unready and not known.deleted_at, *why)
    yield _condition("ContainersReady", not unready, *why)
    yield _condition("PodScheduled", True)


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> dict[str, Any]:
    found = {"type": kind, "status": "True" if holds else "False"}
    if not holds and reason:
        found["reason"] = reason
    if not holds and message:
        found["message"] = message
    return found


def _through(one: Container, there: Observed, known: Remembered) -> bool:
    run = there.latest(one.name)
    if run is None:
        return False
    if one.sidecar:
        return run.state is State.RUNNING and known.health.get(run.id, Health()).started(one)
    return run.state is State.EXITED and run.code == 0


def _container(
    one: Container, there: Observed, known: Remembered, waiting: Waiting, first: str, *, init: bool
) -> dict[str, Any]:
    """ContainerStatus; `first` is why one does not run that never has."""
    runs = sorted(there.runs_of(one.name), key=lambda run: (run.attempt, run.created_at))
    last = runs[-1] if runs else None
    health = known.health.get(last.id, Health()) if last is not None else Health()
    runs_now = last is not None and last.state is State.RUNNING
    through = init and not one.sidecar and _through(one, there, known)
    state = _state(one, last, known, waiting, first)
    found: dict[str, Any] = {
        "name": one.name,
        "image": last.image if last is not None and last.image else one.image,
        "imageID": last.image_ref if last is not None else "",
        "containerID": last.id if last is not None else "",
        "restartCount": last.attempt if last is not None else 0,
        "started": runs_now and health.started(one),
        "ready": through or (runs_now and health.ready(one)),
        "state": state,
    }
    before = [run for run in runs if run.state is State.EXITED and (run is not last or "waiting" in state)]
    if before:
        found["lastState"] = {"terminated": _terminated(before[-1])}
    return found


def _state(one: Container, last: Run | None, known: Remembered, waiting: Waiting, first: str) -> dict[str, Any]:
    if last is not None and last.state is State.RUNNING:
        return {"running": {"startedAt": _time(last.started_at)}}
    if one.name in waiting:
        return _waiting(*waiting[one.name])
    if last is None or last.state is State.CREATED:
        return _waiting(first)
    if last.state is State.UNKNOWN:
        return _waiting("ContainerStatusUnknown", last.message)
    return {"terminated": _terminated(last)}


def _waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def _terminated(run: Run) -> dict[str, Any]:
    found = {
        "exitCode": run.code,
        "reason": run.reason or (ERROR if run.code else COMPLETED),
        "message": run.message,
        "startedAt": _time(run.started_at),
        "finishedAt": _time(run.ended_at),
        "containerID": run.id,
    }
    return {key: value for key, value in found.items() if value not in ("", None)}


def moment(at: int) -> str:
    """RFC 3339, to the second, as Kubernetes has it."""
    return datetime.fromtimestamp(at // NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(at: int) -> str | None:
    return moment(at) if at else None
