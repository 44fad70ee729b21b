"""What has happened to a pod, as Kubernetes tells it: what happens again is counted, not told again. Pure."""

from dataclasses import dataclass, replace
from typing import Final

MOST: Final = 100  # remembered of a pod


@dataclass(frozen=True, slots=True)
class Event:
    """Times are ns since the epoch. `warning`: it is not as it should be."""

    reason: str
    message: str
    warning: bool
    first_at: int
    at: int
    count: int = 1


Events = tuple[Event, ...]


def happened(events: Events, reason: str, message: str, now: int, *, warning: bool) -> Events:
    """With one more, the latest last."""
    found = next((one for one in events if (one.reason, one.message) == (reason, message)), None)
    if found is None:
        return (*events[1 - MOST :], Event(reason, message, warning, now, now))
    return (*(one for one in events if one is not found), replace(found, at=now, count=found.count + 1))
