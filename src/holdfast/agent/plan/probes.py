"""What the results of probes mean for a container: is it ready, has it started, is it to be killed. No I/O, no clock.

A startup probe holds back the others until it has succeeded. Liveness is taken for granted until it fails, readiness
is not. One state machine for all three: so many results of one kind in a row turn it.
"""

from dataclasses import dataclass, replace
from enum import Enum

from holdfast.agent.pod.containers import Container, Probe


class Kind(Enum):
    STARTUP = "startup"
    LIVENESS = "liveness"
    READINESS = "readiness"


@dataclass(frozen=True, slots=True)
class Run:
    """Results of one probe so far: `good` is what they say, None for nothing yet; the `row` last ones were `last`."""

    good: bool | None
    last: bool | None = None
    row: int = 0

    def after(self, probe: Probe, succeeded: bool) -> "Run":
        row = self.row + 1 if succeeded is self.last else 1
        enough = row >= (probe.success_threshold if succeeded else probe.failure_threshold)
        return Run(succeeded if enough else self.good, succeeded, row)


def probe_of(container: Container, kind: Kind) -> Probe | None:
    return {
        Kind.STARTUP: container.startup_probe,
        Kind.LIVENESS: container.liveness_probe,
        Kind.READINESS: container.readiness_probe,
    }[kind]


@dataclass(frozen=True, slots=True)
class Health:
    """Of one run of a container, from its start."""

    startup: Run = Run(None)
    liveness: Run = Run(True)
    readiness: Run = Run(False)
    failed: Kind | None = None  # the probe for which it is to be killed

    def started(self, container: Container) -> bool:
        return container.startup_probe is None or self.startup.good is True

    def ready(self, container: Container) -> bool:
        return self.started(container) and (container.readiness_probe is None or self.readiness.good is True)

    def asked(self, container: Container) -> tuple[Kind, ...]:
        """The probes whose turn it is."""
        if not self.started(container):
            return (Kind.STARTUP,)
        wanted = (Kind.LIVENESS, Kind.READINESS)
        return tuple(kind for kind in wanted if probe_of(container, kind) is not None)

    def after(self, container: Container, kind: Kind, succeeded: bool) -> "Health":
        """With one more result. One of a probe whose turn it is not any more changes nothing."""
        probe = probe_of(container, kind)
        if probe is None or kind not in self.asked(container) or self.failed is not None:
            return self
        run: Run = getattr(self, kind.value)
        now = run.after(probe, succeeded)
        failed = kind if kind is not Kind.READINESS and now.good is False else None
        return replace(self, **{kind.value: now}, failed=failed)
