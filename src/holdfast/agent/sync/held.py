"""Why something of a pod is not done yet, in Kubernetes' words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from holdfast.agent.plan.actions import DEADLINE
from holdfast.agent.plan.backoff import NS, Backoff
from holdfast.agent.sync.images import BACKS_OFF, PULL_FAILED
from holdfast.agent.sync.record import Record

FRESH: Final = 3 * NS  # for which a failed pull is called so, before it is one that is waited with


@dataclass(frozen=True, slots=True)
class Held:
    """It is not tried again before `until`, in ns since the epoch."""

    until: int
    since: int
    reason: str
    message: str


def over(known: Record) -> dict[str, str]:
    """Of a pod that has been ended: why, in a word and in words."""
    if known.why != DEADLINE:
        return {}
    return {"reason": DEADLINE, "message": "it has run for longer than its activeDeadlineSeconds"}


def waiting(known: Record, held: Mapping[str, Held], waits: Mapping[str, int], now: int) -> dict[str, tuple[str, str]]:
    """By container: why it does not run, in a word and in words. `waits` is when those that crash are due again."""
    meta, found = known.pod.metadata, {}
    for name, until in waits.items():
        if until > now:
            pause = known.backoffs.get(name, Backoff()).pause // NS
            whose = f"container={name} pod={meta.name}_{meta.namespace}({meta.uid})"
            found[name] = ("CrashLoopBackOff", f"back-off {pause}s restarting failed {whose}")
    for name, backoff in known.pulls.items():
        found[name] = (BACKS_OFF, f"back-off {backoff.pause // NS}s pulling the image of container {name}")
    for name, one in held.items():
        late = one.reason == PULL_FAILED and now - one.since > FRESH
        words = f"{found[name][1]}: {one.message}" if late and name in found else one.message
        found[name] = (BACKS_OFF if late else one.reason, words)
    return found
