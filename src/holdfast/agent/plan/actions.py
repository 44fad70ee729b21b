"""What is to be done next for a pod, from what it is to be and what there is. Pure; asked again after each change.

    sandbox     one that is ready; if the newest is not, everything of it is ended first, and another one made
    init        one after the other, each to success; a sidecar (restartPolicy: Always) only has to be started
    containers  all at once, once the last init container is through; then as the restart policy says
    the end     deleted, past its deadline, or nothing left to run: containers first, then sidecars, last to first

A run whose state is unknown is neither dead nor alive: it is killed, and nothing takes its place before it is dead.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast.agent.plan.backoff import Backoff
from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.spec import Pod, PodSpec

NS: Final = 1_000_000_000
DEADLINE: Final = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Turned:
    """Since when a condition holds or does not, in ns since the epoch."""

    holds: bool
    at: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of a pod beyond what its runtime says."""

    begun_at: int = 0  # when it was first run
    deleted_at: int = 0  # when its deletion was asked for; 0 when it was not
    grace: int | None = None  # seconds for its containers to end, if the deletion says so
    backoffs: Mapping[str, Backoff] = field(default_factory=dict)  # by container
    health: Mapping[str, Health] = field(default_factory=dict)  # by id of a run
    digests: Mapping[str, str] = field(default_factory=dict)  # of what each container is to be made from
    finished: str = ""  # "Succeeded" or "Failed" once it is over for good
    hooks: Mapping[str, int] = field(default_factory=dict)  # by container: the attempt whose postStart is not through
    turned: Mapping[str, Turned] = field(default_factory=dict)  # by condition

    def started(self, one: Container, run: Run) -> bool:
        """Whether its postStart hook is through, and its startup probe."""
        return self.hooks.get(one.name) != run.attempt and self.health.get(run.id, Health()).started(one)


@dataclass(frozen=True, slots=True)
class Kill:
    """End one run, with its preStop hook and within `grace` seconds."""

    run: Run
    why: str
    grace: int


@dataclass(frozen=True, slots=True)
class Start:
    """Run a container; `attempt` is how often it has run before."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """A container that is to be started again, not before `until`, in ns since the epoch."""

    name: str
    until: int


@dataclass(frozen=True, slots=True)
class Actions:
    """What can be done now, all of it at once; `due` is when something more is, in ns since the epoch, 0 for never."""

    kills: tuple[Kill, ...] = ()
    starts: tuple[Start, ...] = ()
    waits: tuple[Wait, ...] = ()
    new_sandbox: int | None = None  # the attempt that it is
    stop_sandboxes: tuple[str, ...] = ()
    finished: str = ""  # the pod is over for good, Succeeded or Failed
    why: str = ""  # it is over, or a new sandbox is needed
    due: int = 0


def plan(pod: Pod, there: Observed, known: Remembered, now: int) -> Actions:
    """`now` is in ns since the epoch."""
    spec = pod.spec
    if known.deleted_at:
        return _end(pod, there, known, "it was deleted", known.finished)
    if known.finished:
        return _end(pod, there, known, "it is over", known.finished)
    deadline = known.begun_at + spec.active_deadline_seconds * NS if spec.active_deadline_seconds else 0
    if deadline and known.begun_at and now >= deadline:
        return _end(pod, there, known, DEADLINE, "Failed")
    if (over := _over(spec, there)) is not None:
        return _end(pod, there, known, over, over)
    sandbox = there.current
    if sandbox is None or not sandbox.ready:
        return _again(pod, there, known)
    actions = _in_sandbox(pod, there, known, now)
    others = tuple(one.id for one in there.sandboxes if one is not sandbox and one.ready)
    due = min((one for one in (actions.due, deadline) if one), default=0)
    return Actions(actions.kills, actions.starts, actions.waits, stop_sandboxes=others, due=due)


def grace_of(pod: Pod, container: str, known: Remembered) -> int:
    """The seconds that a container has to end: as its failed probe says, or the deletion, or the pod."""
    return known.grace if known.grace is not None else pod.spec.termination_grace_period_seconds


def _over(spec: PodSpec, there: Observed) -> str | None:
    """Succeeded or Failed, when nothing of the pod is to run any more."""
    for one in spec.init_containers:
        if one.sidecar:
            continue
        run = there.latest(one.name)
        if run is not None and run.state is State.EXITED and run.code and not _restarts(spec, one, run):
            return "Failed"
    runs = [(one, there.latest(one.name)) for one in spec.containers]
    if any(run is None or run.state is not State.EXITED or _restarts(spec, one, run) for one, run in runs):
        return None
    return "Failed" if any(run is not None and run.code for _, run in runs) else "Succeeded"


def _restarts(spec: PodSpec, one: Container, run: Run) -> bool:
    """Whether a run that has ended is followed by another; the container's own words come before the pod's."""
    policy = one.restart_policy or spec.restart_policy
    by_rule = any(rule.meets(run.code) for rule in one.restart_policy_rules)
    return by_rule or policy == "Always" or (policy == "OnFailure" and run.code != 0)


def _end(pod: Pod, there: Observed, known: Remembered, why: str, finished: str) -> Actions:
    """Containers first; sidecars when those are dead, last to first; the sandboxes when all are."""
    sidecars = [one.name for one in pod.spec.init_containers if one.sidecar]
    alive = there.alive
    turn = [run for run in alive if run.name not in sidecars]
    for name in reversed(sidecars):
        turn = turn or [run for run in alive if run.name == name]
    kills = tuple(Kill(run, why, grace_of(pod, run.name, known)) for run in turn)
    stops = () if alive else tuple(one.id for one in there.sandboxes)
    return Actions(kills, stop_sandboxes=stops, finished=finished, why=why)


def _again(pod: Pod, there: Observed, known: Remembered) -> Actions:
    """End what is left in a sandbox that is no good, then make another one."""
    sandbox = there.current
    why = "it has no sandbox" if sandbox is None else "its sandbox is not ready"
    if there.alive:
        return Actions(tuple(Kill(run, why, grace_of(pod, run.name, known)) for run in there.alive), why=why)
    return Actions(
        new_sandbox=0 if sandbox is None else sandbox.attempt + 1,
        stop_sandboxes=tuple(one.id for one in there.sandboxes),
        why=why,
    )


def _in_sandbox(pod: Pod, there: Observed, known: Remembered, now: int) -> Actions:
    steps = list(_steps(pod, there, known, now))
    waits = tuple(step for step in steps if isinstance(step, Wait))
    return Actions(
        tuple(step for step in steps if isinstance(step, Kill)),
        tuple(step for step in steps if isinstance(step, Start)),
        waits,
        due=min((one.until for one in waits), default=0),
    )


def _steps(pod: Pod, there: Observed, known: Remembered, now: int) -> Iterator[Kill | Start | Wait]:
    """What is to be done, and what is to be waited for."""
    assert there.current is not None
    here = Observed((there.current,), tuple(run for run in there.runs if run.sandbox == there.current.id))
    for left in there.alive:
        if left.sandbox != there.current.id:
            yield Kill(left, "its sandbox was replaced", grace_of(pod, left.name, known))
    begun = any(here.latest(one.name) is not None for one in pod.spec.containers)
    for one in pod.spec.init_containers:
        run = here.latest(one.name)
        if one.sidecar:
            yield from _kept(pod, one, run, there, known, now, restarts=True)
            if not begun and not _started(one, run, known):
                return
        elif not begun:
            yield from _kept(pod, one, run, there, known, now, restarts=run is None or run.code != 0)
            if run is None or run.state is not State.EXITED or run.code:
                return
    for one in pod.spec.containers:
        run = here.latest(one.name)
        last = there.latest(one.name)
        if run is None and last is not None and last.state is State.EXITED and not _restarts(pod.spec, one, last):
            continue  # it was through before its sandbox went
        yield from _kept(pod, one, run, there, known, now, restarts=run is None or _restarts(pod.spec, one, run))


def _kept(
    pod: Pod, one: Container, run: Run | None, there: Observed, known: Remembered, now: int, *, restarts: bool
) -> Iterator[Kill | Start | Wait]:
    """See to it that a container runs, as it is to be; `run` is its last run in this sandbox."""
    before = there.latest(one.name)
    attempt = 0 if before is None else before.attempt + 1
    if run is None:
        yield Start(one.name, attempt)
    elif run.state is State.UNKNOWN:
        yield Kill(run, "its state is unknown", grace_of(pod, one.name, known))
    elif run.state is State.CREATED:  # a start that has failed, or was cut off
        yield from _after_pause(one, attempt, known, now)
    elif run.state is State.RUNNING:
        yield from _unhealthy(pod, one, run, known)
    elif restarts:
        yield from _after_pause(one, attempt, known, now)


def _unhealthy(pod: Pod, one: Container, run: Run, known: Remembered) -> Iterator[Kill]:
    health = known.health.get(run.id)
    if health is not None and health.failed is not None:
        probe = {"startup": one.startup_probe, "liveness": one.liveness_probe}[health.failed.value]
        own = probe.termination_grace_period_seconds if probe is not None else None
        grace = grace_of(pod, one.name, known) if own is None else int(own)
        yield Kill(run, f"its {health.failed.value} probe has failed", grace)
    elif (wanted := known.digests.get(one.name, run.digest)) != run.digest and run.digest:
        yield Kill(run, f"it is to be made from something else ({wanted[:12]})", grace_of(pod, one.name, known))


def _after_pause(one: Container, attempt: int, known: Remembered, now: int) -> Iterator[Start | Wait]:
    due = known.backoffs.get(one.name, Backoff()).due
    yield Start(one.name, attempt) if now >= due else Wait(one.name, due)


def _started(one: Container, run: Run | None, known: Remembered) -> bool:
    """Whether those behind a sidecar need not wait for it any more."""
    if run is None or run.state is not State.RUNNING:
        return False
    return known.started(one, run)
