"""What the agent counts, for Prometheus; docs/METRICS.md has all of it. No label is an id, a name or a path.

Gauges are told from copies that the event loop makes each second, so that another thread may read them at any moment.
"""

import time
from collections import Counter as Tally
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from holdfast import __version__
from holdfast.agent.sync.parts import Counted
from holdfast.agent.volumes.manager import Manager
from holdfast.agent.volumes.plan import Operation, TearDown
from holdfast.model.tally import OK, Counter, Gauge, Histogram, Measure, Values, gauge

PHASES: Final = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
FAILED: Final = "failed"


class Measures:
    """Counters are told by whoever knows; `look` brings the gauges up to date."""

    def __init__(self) -> None:
        self.counted = Counted()
        self.volumes = Counter(
            "holdfast_agent_volume_operations_total", "Operations on volumes, by their result.", ("operation", "result")
        )
        self.volume_seconds = Histogram(
            "holdfast_agent_volume_operation_duration_seconds", "How long operations on volumes took.", ("operation",)
        )
        self._pods: Tally[str] = Tally()
        self._waiting: Tally[str] = Tally()
        self._backing_off = self._kept = self._unread = 0

    @property
    def all(self) -> list[Measure]:
        return [
            Gauge("holdfast_agent_build_info", "1, with the version.", lambda: [((__version__,), 1)], ("version",)),
            Gauge("holdfast_agent_pods", "Pods, by phase.", lambda: _values(self._pods), ("phase",)),
            Gauge(
                "holdfast_agent_containers_waiting", "Containers that do not run, by Kubernetes' word for why.",
                lambda: _values(self._waiting), ("reason",),
            ),
            gauge(
                "holdfast_agent_backoffs", "Containers, images and sandboxes that wait to be tried again.",
                lambda: self._backing_off,
            ),
            gauge(
                "holdfast_agent_volumes_kept", "Volumes that are to go, and could not be taken down yet.",
                lambda: self._kept,
            ),
            gauge("holdfast_agent_manifests_unread", "Files and directories of manifests that cannot be read.",
                  lambda: self._unread),
            *self.counted.measures,
            self.volumes,
            self.volume_seconds,
        ]  # fmt: skip

    def look(self, statuses: Iterable[dict[str, Any]], backing_off: int, kept: int, unread: int) -> None:
        """`statuses` are those of all pods."""
        pods: Tally[str] = Tally(dict.fromkeys(PHASES, 0))
        waiting = Tally(dict.fromkeys(self._waiting, 0))  # what there was is 0 rather than gone
        for status in statuses:
            pods[status["phase"]] += 1
            for one in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                if (found := one["state"].get("waiting")) is not None:
                    waiting[found["reason"]] += 1
        self._pods, self._waiting = pods, waiting
        self._backing_off, self._kept, self._unread = backing_off, kept, unread


def _values(found: Tally[str]) -> Values:
    return [((key,), value) for key, value in found.items()]


class CountedManager(Manager):
    """A volume manager whose operations are counted and timed."""

    def __init__(self, root: Path, proven_dead: Any, facts: Any, measures: Measures) -> None:
        super().__init__(root, proven_dead, facts)
        self._measures = measures

    async def _do(self, operation: Operation) -> None:
        verb, began = "tear_down" if isinstance(operation, TearDown) else "set_up", time.monotonic()
        await super()._do(operation)
        self._measures.volumes.add(verb, FAILED if operation.key in self._executor.attempts else OK)
        self._measures.volume_seconds.observe(time.monotonic() - began, verb)

    @property
    def kept(self) -> int:
        """How many volumes are to go and cannot, for now."""
        stuck = {*self._executor.attempts, *(key for key in self._executor.volumes if key.uid in self._unproven)}
        return sum(key.uid not in self._pods for key in stuck & self._executor.volumes.keys())
