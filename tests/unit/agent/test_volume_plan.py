"""What is to be done next about volumes, whatever is wanted, found, failed or cut short."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.agent.volumes.paths import TRASH, Key
from holdfast.agent.volumes.plan import (
    FIRST,
    LONGEST,
    MS,
    Attempt,
    Operation,
    SetUp,
    TearDown,
    World,
    failed,
    plan,
    to_be_proven,
)
from holdfast.agent.volumes.world import Actual, Desired, State, without_covered

NOW = 1_000_000 * MS
A, B = Key("pod-a", "empty-dir", "work"), Key("pod-b", "configmap", "conf")
READY = Actual(State.READY, "s", "1", "/p")


def wanted(*keys: Key, shape: str = "s", version: str = "1", problem: str = "") -> dict[Key, Desired]:
    return {key: Desired(key, "" if problem else shape, version, problem=problem) for key in keys}


def test_what_is_wanted_and_not_there_or_uncertain_or_old_is_set_up() -> None:
    want = wanted(A, B)
    everything: list[Operation] = [SetUp(want[A]), SetUp(want[B])]
    assert plan(want, World(), False, (), NOW) == everything
    assert plan(want, World({A: Actual(shape="s")}), False, (), NOW) == everything
    assert plan(want, World({A: READY, B: READY}), True, (), NOW) == []
    newer = wanted(A, version="2")
    assert plan(newer, World({A: READY}), True, (), NOW) == [SetUp(newer[A])]
    assert plan(wanted(A, problem="no source"), World(), True, (), NOW) == []


def test_what_is_not_wanted_goes_once_that_is_known_and_the_pod_is_dead() -> None:
    world = World({A: READY})
    assert plan({}, world, False, {A.uid}, NOW) == [], "the rest of what is wanted may name it"
    assert plan({}, world, True, (), NOW) == [], "it may be in use"
    assert plan({}, world, True, {B.uid}, NOW) == []
    assert plan({}, world, True, {A.uid}, NOW) == [TearDown(A)]
    assert plan(wanted(B), world, True, {A.uid}, NOW) == [TearDown(A), SetUp(wanted(B)[B])], "first what goes"
    assert to_be_proven({}, world, True, NOW) == [A.uid]
    assert to_be_proven({}, world, False, NOW) == []
    assert to_be_proven(wanted(A), world, True, NOW) == []


def test_a_volume_that_becomes_another_one_goes_first() -> None:
    other = wanted(A, shape="larger")
    assert plan(other, World({A: READY}), True, (), NOW) == []
    assert plan(other, World({A: READY}), True, {A.uid}, NOW) == [TearDown(A)]
    assert to_be_proven(other, World({A: READY}), True, NOW) == [A.uid]
    now_files = Key(A.uid, "configmap", A.name)
    assert plan(wanted(now_files), World({A: READY}), True, {A.uid}, NOW) == [TearDown(A)]
    assert plan(wanted(now_files), World({A: READY}), True, (), NOW) == []
    assert plan(wanted(A, problem="for now"), World({A: READY}), True, {A.uid}, NOW) == [], "nobody knows its shape"
    unknown = World({A: Actual()})
    assert plan(wanted(A), unknown, True, {A.uid}, NOW) == [SetUp(wanted(A)[A])], "what is found is kept"


def test_what_is_in_the_trash_waits_for_the_volume_of_its_name() -> None:
    trash = Key(A.uid, TRASH, A.name)
    world = World({trash: Actual()})
    assert plan({}, world, True, {A.uid}, NOW) == [TearDown(trash)]
    assert plan(wanted(A), world, True, {A.uid}, NOW) == [SetUp(wanted(A)[A])]
    assert without_covered({trash: Actual(), A: READY}) == {A: READY}


def test_one_at_a_time_and_later_after_a_failure() -> None:
    assert plan(wanted(A, B), World(busy={A}), True, (), NOW) == [SetUp(wanted(B)[B])]
    assert plan({}, World({A: READY}, busy={A}), True, {A.uid}, NOW) == []
    late = {A: Attempt(1, NOW + 1, "no")}
    assert plan(wanted(A, B), World(attempts=late), True, (), NOW) == [SetUp(wanted(B)[B])]
    assert len(plan(wanted(A, B), World(attempts=late), True, (), NOW + 1)) == 2
    assert to_be_proven({}, World({A: READY}, attempts=late), True, NOW) == []


def test_pauses_double_up_to_two_minutes() -> None:
    attempt, pauses = None, []
    for _ in range(12):
        attempt = failed(attempt, NOW, "why")
        pauses.append(attempt.due - NOW)
    assert pauses[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert pauses[-2:] == [LONGEST, LONGEST]


KEYS = [Key(uid, kind, name) for uid in "xy" for kind in ("empty-dir", "secret") for name in ("a", "b")]
SHAPES = st.sampled_from(["small", "large"])


@dataclass
class Node:
    """A disk, and a manager that may crash: what the planner's operations do, and how they may end."""

    disk: dict[Key, str] = field(default_factory=dict)
    volumes: dict[Key, Actual] = field(default_factory=dict)
    attempts: dict[Key, Attempt] = field(default_factory=dict)
    working: dict[Key, Operation] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return World(self.volumes, self.working, self.attempts)

    def begin(self, operation: Operation) -> None:
        key = operation.key
        assert key not in self.working, "one at a time"
        self.working[key] = operation
        before = self.volumes.get(key, Actual())
        if isinstance(operation, SetUp):
            assert not any((one.uid, one.name) == (key.uid, key.name) and one != key for one in self.disk)
            assert self.disk.get(key) in (None, operation.wanted.shape), "it would be made upon another one"
            self.disk[key] = operation.wanted.shape  # its journal comes first
            self.volumes[key] = Actual(before.state, operation.wanted.shape, before.version, before.path)
        else:
            self.volumes[key] = Actual(State.UNCERTAIN, before.shape)

    def end(self, key: Key, well: bool, now: int) -> None:
        operation = self.working.pop(key)
        if not well:
            self.attempts[key] = failed(self.attempts.get(key), now, "why")
            return
        self.attempts.pop(key, None)
        if isinstance(operation, SetUp):
            self.volumes[key] = Actual(State.READY, operation.wanted.shape, operation.wanted.version)
        else:
            del self.volumes[key], self.disk[key]

    def crash(self) -> None:
        self.working, self.attempts = {}, {}
        self.volumes = {key: Actual(shape=shape) for key, shape in self.disk.items()}


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.desired: dict[Key, Desired] = {}
        self.complete = False
        self.dead: set[str] = set()
        self.now = NOW

    @rule(keys=st.dictionaries(st.sampled_from(KEYS), SHAPES), complete=st.booleans(), version=st.sampled_from("12"))
    def want(self, keys: dict[Key, str], complete: bool, version: str) -> None:
        named: dict[tuple[str, str], Key] = {(key.uid, key.name): key for key in keys}
        self.desired = {key: Desired(key, keys[key], version) for key in named.values()}
        self.complete = complete

    @rule(uid=st.sampled_from("xy"), dead=st.booleans())
    def live_or_die(self, uid: str, dead: bool) -> None:
        self.dead = self.dead | {uid} if dead else self.dead - {uid}

    @rule(pause=st.integers(0, 4 * FIRST))
    def tick(self, pause: int) -> None:
        self.now += pause
        for one in plan(self.desired, self.node.world, self.complete, self.dead, self.now):
            if isinstance(one, TearDown):
                assert self.complete
                assert one.key.uid in self.dead
                want = self.desired.get(one.key)
                assert want is None or want.shape != self.node.disk.get(one.key), "it is wanted as it is"
            self.node.begin(one)

    @rule(which=st.integers(0, 9), well=st.booleans())
    def end(self, which: int, well: bool) -> None:
        if self.node.working:
            key = sorted(self.node.working)[which % len(self.node.working)]
            self.node.end(key, well, self.now)

    @rule()
    def crash(self) -> None:
        self.node.crash()
        self.desired, self.complete = {}, False

    @invariant()
    def nothing_is_there_that_nobody_knows_of(self) -> None:
        assert set(self.node.disk) <= set(self.node.volumes)

    def teardown(self) -> None:
        """In the end, when nothing fails any more and all is dead that has to be, what is there is what is wanted."""
        self.complete = True
        for _ in range(4):
            for key in list(self.node.working):
                self.node.end(key, True, self.now)
            self.now += LONGEST
            self.dead = set(to_be_proven(self.desired, self.node.world, True, self.now))
            self.tick(0)
        assert not self.node.working
        assert self.node.disk == {key: one.shape for key, one in self.desired.items()}
        assert all(one.state is State.READY for one in self.node.volumes.values())
        assert {key: one.version for key, one in self.node.volumes.items()} == {
            key: one.version for key, one in self.desired.items()
        }


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=30)
