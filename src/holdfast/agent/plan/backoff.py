"""When a container that ends again and again is started again: after 10 s, doubling to 5 min (Kubernetes' crash loop).

A container that has run for ten minutes begins from the beginning.
"""

from dataclasses import dataclass, replace
from typing import Final

NS: Final = 1_000_000_000
FIRST: Final = 10 * NS
LONGEST: Final = 300 * NS
CALM: Final = 600 * NS  # as twice the longest pause


@dataclass(frozen=True, slots=True)
class Backoff:
    """Of one container: `pause` is that before its next start, 0 for a first one. Times are ns since the epoch."""

    pause: int = 0
    ended_at: int = 0

    def ended(self, started_at: int, ended_at: int) -> "Backoff":
        """It has run from one moment to another, and is to be started again. The same end counts once."""
        if ended_at <= self.ended_at:
            return self
        if started_at and ended_at - started_at >= CALM:
            return Backoff(FIRST, ended_at)
        return Backoff(min(max(self.pause * 2, FIRST), LONGEST), ended_at)

    def due(self, first: bool) -> int:
        """When it may be started; of its first end the restart is at once."""
        return self.ended_at if first else self.ended_at + self.pause

    def reset(self) -> "Backoff":
        return replace(self, pause=0)
