"""What a runtime says of a pod: plain data, from whichever runtime. Times are ns since the epoch, 0 for none."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"  # which is not dead


@dataclass(frozen=True, slots=True)
class Run:
    """One container of the runtime: one run of a container of the pod."""

    name: str
    id: str
    sandbox: str
    attempt: int
    state: State
    digest: str = ""  # of what it was made from
    created_at: int = 0
    started_at: int = 0
    ended_at: int = 0
    code: int = 0
    reason: str = ""
    message: str = ""
    image: str = ""
    image_ref: str = ""

    @property
    def alive(self) -> bool:
        """Whether a process of it may be there."""
        return self.state in (State.RUNNING, State.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Sandbox:
    id: str
    attempt: int
    ready: bool
    created_at: int = 0
    addresses: tuple[str, ...] = ()
    users: int = 0  # the first of the host's ids that are its own, if it is ready


@dataclass(frozen=True, slots=True)
class Observed:
    """All there is of one pod."""

    sandboxes: tuple[Sandbox, ...] = ()
    runs: tuple[Run, ...] = ()

    @property
    def current(self) -> Sandbox | None:
        """The sandbox that counts: the newest."""
        return max(self.sandboxes, key=lambda one: (one.attempt, one.created_at), default=None)

    def latest(self, name: str) -> Run | None:
        """The last run of a container, in whichever sandbox."""
        return max(self.runs_of(name), key=lambda one: (one.attempt, one.created_at), default=None)

    def runs_of(self, name: str) -> Iterable[Run]:
        return (one for one in self.runs if one.name == name)

    @property
    def alive(self) -> tuple[Run, ...]:
        return tuple(one for one in self.runs if one.alive)
