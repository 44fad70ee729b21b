"""What is to be done next about volumes. Pure: the same worlds and the same moment give the same operations.

Nothing is torn down that is wanted, nor before all that is wanted is known, nor of a pod that is not proven dead. What
goes comes before what is made; a volume that has to become another one is gone before that. An operation that has
failed is tried again after a while, which doubles, and holds up no other volume.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast.agent.volumes.paths import TRASH, Key
from holdfast.agent.volumes.world import Actual, Desired, State

MS: Final = 1_000_000
FIRST: Final = 500 * MS  # ns
LONGEST: Final = 122_000 * MS  # as a kubelet's


@dataclass(frozen=True, slots=True)
class Attempt:
    """Of something that has failed, how often in turn and why, and when it may be tried again (ns, any clock)."""

    failures: int
    due: int
    why: str

    @property
    def pause(self) -> int:
        return min(FIRST << min(self.failures - 1, 16), LONGEST)


def failed(before: Attempt | None, now: int, why: str) -> Attempt:
    found = Attempt(before.failures + 1 if before is not None else 1, 0, why)
    return Attempt(found.failures, now + found.pause, why)


@dataclass(frozen=True, slots=True)
class SetUp:
    """Make it, or bring it up to date."""

    wanted: Desired

    @property
    def key(self) -> Key:
        return self.wanted.key


@dataclass(frozen=True, slots=True)
class TearDown:
    key: Key


Operation = SetUp | TearDown


@dataclass(frozen=True, slots=True)
class World:
    """What there is, what is being done to it, and what has failed."""

    volumes: Mapping[Key, Actual] = field(default_factory=dict)
    busy: Collection[Key] = ()
    attempts: Mapping[Key, Attempt] = field(default_factory=dict)

    def may_begin(self, key: Key, now: int) -> bool:
        attempt = self.attempts.get(key)
        return key not in self.busy and (attempt is None or attempt.due <= now)


def plan(
    desired: Mapping[Key, Desired], actual: World, complete: bool, dead: Collection[str], now: int
) -> list[Operation]:
    """`complete`: whether `desired` is all that is wanted; `dead`: uids of pods of which no container lives."""
    unwanted = superfluous(desired, actual.volumes)
    down = [TearDown(key) for key in unwanted if complete and key.uid in dead and actual.may_begin(key, now)]
    taken = {(key.uid, key.name) for key in unwanted if key.kind != TRASH}
    up = [
        SetUp(one)
        for key, one in sorted(desired.items())
        if is_due(one, actual.volumes.get(key)) and (key.uid, key.name) not in taken and actual.may_begin(key, now)
    ]
    return [*down, *up]


def to_be_proven(desired: Mapping[Key, Desired], actual: World, complete: bool, now: int) -> list[str]:
    """The uids of pods that have to be proven dead for something to be torn down now."""
    if not complete:
        return []
    return sorted({key.uid for key in superfluous(desired, actual.volumes) if actual.may_begin(key, now)})


def superfluous(desired: Mapping[Key, Desired], volumes: Mapping[Key, Actual]) -> list[Key]:
    """What is not wanted, or not as it is. What is in the trash waits while a volume of its name is wanted."""
    named = {(key.uid, key.name) for key in desired}

    def is_superfluous(key: Key) -> bool:
        if (wanted := desired.get(key)) is None:
            return key.kind != TRASH or (key.uid, key.name) not in named
        return bool(wanted.shape and volumes[key].shape) and wanted.shape != volumes[key].shape

    return sorted(filter(is_superfluous, volumes))


def is_due(wanted: Desired, found: Actual | None) -> bool:
    """Whether it is to be set up, or brought up to date."""
    if wanted.problem:
        return False
    return found is None or found.state is not State.READY or found.version != wanted.version
