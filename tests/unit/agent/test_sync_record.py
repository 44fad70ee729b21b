"""What is remembered of a pod: on disk and back, and what a look at the runtime adds to it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.pods import pods, simple, words

from holdfast.agent.plan.actions import Turned
from holdfast.agent.plan.backoff import FIRST, Backoff
from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.plan.probes import Health, Kind
from holdfast.agent.plan.probes import Run as Results
from holdfast.agent.sync import record
from holdfast.agent.sync.record import Kill, Record, from_json, seen, to_json
from holdfast.agent.volumes.paths import Paths
from holdfast.model.errors import Damaged

times = st.integers(0, 2**62)
runs = st.builds(
    Run, words, words, words, st.integers(0, 99), st.sampled_from(State), words, times, times, times,
    st.integers(0, 255), words, st.text(max_size=9), words, words,
)  # fmt: skip
verdicts = st.builds(lambda good: Results(good), st.none() | st.booleans())
recorded = st.builds(
    Record,
    pods(),
    words,
    times,
    times,
    st.none() | st.integers(0, 999),
    st.sampled_from(["", "Succeeded", "Failed"]),
    st.text(max_size=9),
    st.booleans(),
    st.dictionaries(words, st.builds(Backoff, times, times), max_size=2),
    st.dictionaries(words, st.builds(Backoff, times, times), max_size=2),
    st.dictionaries(words, runs, max_size=2),
    st.dictionaries(words, st.builds(Health, verdicts, verdicts, verdicts), max_size=2),
    st.dictionaries(words, st.integers(0, 9), max_size=2),
    st.dictionaries(words, st.builds(Kill, times, st.integers(0, 99)), max_size=2),
    st.integers(0, 2**31),
    st.dictionaries(words, st.builds(Turned, st.booleans(), times), max_size=2),
    st.none() | st.builds(Sandbox, words, times, st.booleans(), times, st.lists(words).map(tuple)),
)
SANDBOX = Sandbox("s", 0, True)


@given(recorded)
def test_there_and_back(one: Record) -> None:
    assert from_json(to_json(one)) == one


@given(recorded, st.data())
def test_what_was_cut_off_or_changed_is_damaged_and_nothing_else(one: Record, data: st.DataObject) -> None:
    whole = to_json(one)
    with pytest.raises(Damaged):
        from_json(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(Damaged, match="another version"):
        from_json(whole.replace(b'"version": 1', b'"version": 2', 1))


def test_on_disk(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    one = Record(simple(), begun_at=1)
    record.save(paths, one)
    (path,) = record.records(paths)
    assert record.load(path) == one
    assert os.stat(path).st_mode & 0o777 == 0o600
    record.remove(paths, "u-1")
    record.remove(paths, "u-1")
    assert not list(record.records(paths))


def run(state: State, attempt: int = 0, **more: object) -> Run:
    return Run("c", f"c-{attempt}", "s", attempt, state, created_at=attempt + 1, **more)  # type: ignore[arg-type]


def test_an_end_is_counted_once_and_outlives_its_container() -> None:
    ended = Observed((SANDBOX,), (run(State.EXITED, started_at=5, ended_at=9, code=3),))
    known, _ = seen(Record(simple()), ended)
    assert known.backoffs["c"] == Backoff(0, 9)
    again, _ = seen(known, ended)
    assert again == known
    removed, found = seen(known, Observed((SANDBOX,), ()))
    assert removed == known
    last = found.latest("c")
    assert last is not None
    assert (last.code, last.state, last.attempt) == (3, State.EXITED, 0)
    later = Observed((SANDBOX,), (run(State.EXITED, 1, started_at=10, ended_at=11),))
    assert seen(removed, later)[0].backoffs["c"].pause == FIRST


def test_what_has_never_run_is_forgotten_when_it_goes() -> None:
    known, _ = seen(Record(simple()), Observed((SANDBOX,), (run(State.CREATED),)))
    gone, found = seen(known, Observed((SANDBOX,), ()))
    assert not gone.runs
    assert not found.runs


@pytest.mark.parametrize("state", [State.RUNNING, State.UNKNOWN])
def test_what_the_runtime_does_not_know_any_more_is_over(state: State) -> None:
    known, _ = seen(Record(simple()), Observed((SANDBOX,), (run(state, started_at=5),)))
    gone, found = seen(known, Observed())
    (left,) = found.runs
    assert (left.state, left.code) == (State.EXITED, 137)
    assert gone.runs["c"] == left
    assert seen(gone, Observed())[0] == gone


def test_an_older_run_does_not_take_the_place_of_a_newer() -> None:
    known, _ = seen(Record(simple()), Observed((SANDBOX,), (run(State.EXITED, 4), run(State.EXITED, 3))))
    assert known.runs["c"].attempt == 4
    known, found = seen(known, Observed((SANDBOX,), (run(State.EXITED, 3),)))
    assert known.runs["c"].attempt == 4
    latest = found.latest("c")
    assert latest is not None
    assert latest.attempt == 4


def test_what_is_known_of_a_run_goes_with_it() -> None:
    health = {"c-0": Health(readiness=Results(True)), "c-9": Health(failed=Kind.LIVENESS)}
    before = Record(simple(), health=health, kills={"c-0": Kill(1, 2), "c-9": Kill(1, 2)})
    known, _ = seen(before, Observed((SANDBOX,), (run(State.RUNNING),)))
    assert set(known.health) == set(known.kills) == {"c-0"}
    known, _ = seen(known, Observed((SANDBOX,), (run(State.EXITED),)))
    assert not known.health
    assert not known.kills
