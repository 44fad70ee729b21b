"""A pod's status as Kubernetes shows it, from what there is and what is remembered. Pure; plain data for YAML and JSON.

Phases (Kubernetes, "Pod Lifecycle"): Pending until every container has been started once, Running while one runs or is
to be started again, Succeeded and Failed when it is over, Unknown when the runtime cannot tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from holdfast.agent.plan.actions import NS, Remembered, Turned
from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.spec import Pod

COMPLETED: Final = "Completed"
ERROR: Final = "Error"
CREATING: Final = "ContainerCreating"
INITIALIZING: Final = "PodInitializing"


Waiting = Mapping[str, tuple[str, str]]  # by container: why it does not run, in a word and in words


def status(
    pod: Pod, there: Observed, known: Remembered, qos: str, waiting: Waiting, hosts: Sequence[str] = (), now: int = 0
) -> dict[str, Any]:
    """PodStatus of the v1 API; `hosts` are the node's addresses. What has just turned has turned `now`."""
    sandbox = there.current
    addresses = list(sandbox.addresses) if sandbox is not None and sandbox.ready else []
    if pod.spec.host_network and sandbox is not None:
        addresses = list(hosts)
    found = {
        "phase": _phase(pod, there, known),
        "conditions": [_shown(one, known, now) for one in conditions(pod, there, known)],
        "hostIP": next(iter(hosts), ""),
        "hostIPs": [{"ip": one} for one in hosts],
        "startTime": _time(known.begun_at),
        "podIP": addresses[0] if addresses else "",
        "podIPs": [{"ip": one} for one in addresses],
        "qosClass": qos,
        "initContainerStatuses": [_container(one, pod, there, known, waiting) for one in pod.spec.init_containers],
        "containerStatuses": [_container(one, pod, there, known, waiting) for one in pod.spec.containers],
    }
    return {key: value for key, value in found.items() if value not in ("", [], None)}


def _phase(pod: Pod, there: Observed, known: Remembered) -> str:
    if known.finished and not there.alive:  # until then something of it runs, a sidecar perhaps
        return known.finished
    runs = [there.latest(one.name) for one in pod.spec.containers]
    if any(run is not None and run.state is State.UNKNOWN for run in runs):
        return "Unknown"
    begun = {run.name for run in there.runs if run.state is not State.CREATED}
    return "Running" if begun.issuperset(one.name for one in pod.spec.containers) else "Pending"


@dataclass(frozen=True, slots=True)
class Condition:
    kind: str
    holds: bool
    reason: str = ""
    message: str = ""


def conditions(pod: Pod, there: Observed, known: Remembered) -> Iterator[Condition]:
    """A sidecar counts as a container does."""
    inits, mains = pod.spec.init_containers, pod.spec.containers
    sandbox = there.current
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(_phase(pod, there, known), "")
    incomplete = [one.name for one in inits if not _through(one, there, known)]
    unready = [one.name for one in (*inits, *mains) if (one in mains or one.sidecar) and not _ready(one, there, known)]
    begun = over == "PodCompleted" or any(there.latest(one.name) is not None for one in mains)
    yield Condition("PodReadyToStartContainers", sandbox is not None and sandbox.ready)
    if begun or not incomplete:
        yield Condition("Initialized", True, "PodCompleted" if over == "PodCompleted" else "")
    else:
        words = f"containers with incomplete status: [{' '.join(incomplete)}]"
        yield Condition("Initialized", False, "ContainersNotInitialized", words)
    for kind in ("Ready", "ContainersReady"):
        if over or not unready:
            yield Condition(kind, not over, over)
        else:
            words = f"containers with unready status: [{' '.join(unready)}]"
            yield Condition(kind, False, "ContainersNotReady", words)
    yield Condition("PodScheduled", True)


def turned(pod: Pod, there: Observed, known: Remembered, now: int) -> dict[str, Turned]:
    """Since when each condition is as it is: as is remembered, or from `now` on."""
    found = {}
    for one in conditions(pod, there, known):
        before = known.turned.get(one.kind)
        found[one.kind] = before if before and before.holds is one.holds else Turned(one.holds, now)
    return found


def _shown(one: Condition, known: Remembered, now: int) -> dict[str, Any]:
    since = known.turned.get(one.kind)
    found = {
        "type": one.kind,
        "status": "True" if one.holds else "False",
        "lastTransitionTime": _time(since.at if since and since.holds is one.holds else now),
        "reason": one.reason,
        "message": one.message,
    }
    return {key: value for key, value in found.items() if value}


def _through(one: Container, there: Observed, known: Remembered) -> bool:
    """Of an init container: whether those behind it need not wait for it."""
    run = there.latest(one.name)
    if run is None:
        return False
    if one.sidecar:
        return run.state is State.RUNNING and known.started(one, run)
    return run.state is State.EXITED and run.code == 0


def _ready(one: Container, there: Observed, known: Remembered) -> bool:
    run = there.latest(one.name)
    if run is None or run.state is not State.RUNNING or not known.started(one, run):
        return False
    return known.health.get(run.id, Health()).ready(one)


def _container(one: Container, pod: Pod, there: Observed, known: Remembered, waiting: Waiting) -> dict[str, Any]:
    """ContainerStatus."""
    runs = sorted(there.runs_of(one.name), key=lambda run: (run.attempt, run.created_at))
    last = runs[-1] if runs else None
    init = one in pod.spec.init_containers and not one.sidecar
    state = _state(one, pod, last, waiting)
    found: dict[str, Any] = {
        "name": one.name,
        "image": last.image if last is not None and last.image else one.image,
        "imageID": last.image_ref if last is not None else "",
        "containerID": last.id if last is not None else "",
        "restartCount": last.attempt if last is not None else 0,
        "started": last is not None and last.state is State.RUNNING and known.started(one, last),
        "ready": _through(one, there, known) if init else _ready(one, there, known),
        "state": state,
    }
    before = [run for run in runs if run.state is State.EXITED and (run is not last or "waiting" in state)]
    if before:
        found["lastState"] = {"terminated": _terminated(before[-1])}
    return found


def _state(one: Container, pod: Pod, last: Run | None, waiting: Waiting) -> dict[str, Any]:
    if last is not None and last.state is State.RUNNING:
        return {"running": {"startedAt": _time(last.started_at)}}
    if one.name in waiting:
        return _waiting(*waiting[one.name])
    if last is None or last.state is State.CREATED:
        return _waiting(INITIALIZING if pod.spec.init_containers else CREATING)
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
