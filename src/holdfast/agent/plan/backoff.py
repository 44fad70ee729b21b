"""When a container that ends again and again is started again: at once, after 10 s, doubling to 5 min (a crash loop).

A container that has run for ten minutes begins from the beginning.
"""

from dataclasses import dataclass
from typing import Final

NS: Final = 1_000_000_000
FIRST: Final = 10 * NS
LONGEST: Final = 300 * NS
CALM: Final = 600 * NS  # as twice the longest pause


@dataclass(frozen=True, slots=True)
class Backoff:
    """Of one container: `pause` is that before its next start. Times are ns since the epoch, 0 for never."""

    pause: int = 0
    ended_at: int = 0

    def ended(self, started_at: int, ended_at: int) -> "Backoff":
        """It has run from one moment to another, and is to be started again. The same end counts once."""
        if ended_at <= self.ended_at:
            return self
        if not self.ended_at or (started_at and ended_at - started_at >= CALM):
            return Backoff(0, ended_at)
        return Backoff(min(max(self.pause * 2, FIRST), LONGEST), ended_at)

    @property
    def due(self) -> int:
        """When it may be started."""
        return self.ended_at + self.pause
