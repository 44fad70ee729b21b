"""Crash loops and probes, by their rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.agent.plan.backoff import CALM, FIRST, LONGEST, NS, Backoff
from holdfast.agent.plan.probes import Health, Kind
from holdfast.agent.pod.containers import Container, ExecAction, Probe
from holdfast.agent.pod.scalars import Count, Name


def probe(success: int = 1, failure: int = 3) -> Probe:
    return Probe(exec=ExecAction(("true",)), success_threshold=Count(success), failure_threshold=Count(failure))


def container(**probes: Probe) -> Container:
    return Container(Name("c"), "i", **probes)  # type: ignore[arg-type]


def test_pauses_double_to_five_minutes() -> None:
    backoff, now, pauses = Backoff(), 0, []
    for _ in range(8):
        backoff = backoff.ended(now, now + NS)
        pauses.append((backoff.due - backoff.ended_at) // NS)
        now = backoff.due
    assert pauses == [0, 10, 20, 40, 80, 160, 300, 300]


def test_an_end_counts_once_and_ten_good_minutes_forgive() -> None:
    backoff = Backoff().ended(0, NS).ended(2 * NS, 3 * NS)
    assert backoff.pause == FIRST
    assert backoff.ended(2 * NS, 3 * NS) == backoff
    assert backoff.ended(4 * NS, 4 * NS + CALM).pause == 0
    assert backoff.ended(4 * NS, 4 * NS + CALM - 1).pause == 2 * FIRST


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), max_size=30))
def test_a_pause_is_within_bounds(runs: list[tuple[int, int]]) -> None:
    backoff, now = Backoff(), 0
    for waits, lasts in runs:
        start = now + waits * NS
        now = start + lasts * NS + 1
        backoff = backoff.ended(start, now)
        assert backoff.pause == 0 or FIRST <= backoff.pause <= LONGEST


def results(health: Health, one: Container, kind: Kind, *said: bool) -> Health:
    for succeeded in said:
        health = health.after(one, kind, succeeded)
    return health


def test_without_probes_a_container_is_ready_once_it_runs() -> None:
    one = container()
    assert Health().ready(one)
    assert Health().started(one)
    assert Health().asked(one) == ()


def test_readiness_is_not_taken_for_granted() -> None:
    one = container(readiness_probe=probe(success=2))
    health = Health()
    assert not health.ready(one)
    assert not results(health, one, Kind.READINESS, True).ready(one)
    assert not results(health, one, Kind.READINESS, True, False, True).ready(one)
    ready = results(health, one, Kind.READINESS, True, True)
    assert ready.ready(one)
    assert results(ready, one, Kind.READINESS, False, False).ready(one)
    unready = results(ready, one, Kind.READINESS, False, False, False)
    assert not unready.ready(one)
    assert unready.failed is None, "nobody is killed for not being ready"


def test_liveness_kills_after_so_many_failures_in_a_row() -> None:
    one = container(liveness_probe=probe())
    assert results(Health(), one, Kind.LIVENESS, False, False, True, False, False).failed is None
    assert results(Health(), one, Kind.LIVENESS, False, False, False).failed is Kind.LIVENESS


def test_a_startup_probe_holds_back_the_others() -> None:
    one = container(startup_probe=probe(failure=2), liveness_probe=probe(failure=1), readiness_probe=probe())
    health = Health()
    assert health.asked(one) == (Kind.STARTUP,)
    assert results(health, one, Kind.LIVENESS, False) == health
    assert not results(health, one, Kind.READINESS, True).ready(one)
    assert results(health, one, Kind.STARTUP, False).failed is None
    assert results(health, one, Kind.STARTUP, False, False).failed is Kind.STARTUP
    begun = results(health, one, Kind.STARTUP, False, True)
    assert begun.asked(one) == (Kind.LIVENESS, Kind.READINESS)
    assert results(begun, one, Kind.LIVENESS, False).failed is Kind.LIVENESS


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_it_is_killed_at_the_threshold_and_not_before(failures: int) -> None:
    one = container(liveness_probe=probe(failure=failures))
    health = results(Health(), one, Kind.LIVENESS, *[False] * (failures - 1))
    assert health.failed is None
    assert health.after(one, Kind.LIVENESS, False).failed is Kind.LIVENESS
