"""Counters, histograms and what is told of how something went."""

import asyncio

import pytest

from holdfast.model import errors
from holdfast.model.tally import Counter, Histogram, Timed, result_of


def test_a_counter_without_labels_begins_at_zero() -> None:
    plain, labelled = Counter("a_total", ""), Counter("b_total", "", ("kind",))
    assert dict(plain.read()) == {(): 0}
    assert dict(labelled.read()) == {}
    plain.add(by=3)
    labelled.add("shim")
    labelled.add("shim")
    assert dict(plain.read()) == {(): 3}
    assert dict(labelled.read()) == {("shim",): 2}


def test_what_was_read_does_not_change() -> None:
    counter, histogram = Counter("a_total", ""), Histogram("b_seconds", "", bounds=(1.0,))
    histogram.observe(0.5)
    before, seen = counter.read(), histogram.read()
    counter.add()
    histogram.observe(0.5)
    assert dict(before) == {(): 0}
    assert seen == [((), [1, 0], 0.5)]


@pytest.mark.parametrize(("value", "counts"), [(0.0, [1, 0, 0]), (1.0, [1, 0, 0]), (1.1, [0, 1, 0]), (9.0, [0, 0, 1])])
def test_a_bound_belongs_to_its_bucket(value: float, counts: list[int]) -> None:
    histogram = Histogram("a_seconds", "", bounds=(1.0, 2.0))
    histogram.observe(value)
    assert histogram.read() == [((), counts, value)]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (errors.NotFound("why"), "not_found"),
        (errors.DeadlineExceeded("why"), "deadline_exceeded"),
        (errors.HoldfastError("why"), "failed"),
        (ValueError("why"), "failed"),
        (TimeoutError(), "deadline_exceeded"),
        (asyncio.CancelledError(), "cancelled"),
    ],
    ids=repr,
)
def test_results(error: BaseException, result: str) -> None:
    assert result_of(error) == result
    timed = Timed("things", "things", ("kind",))
    with pytest.raises(type(error)), timed.one("a"):
        raise error
    assert dict(timed.total.read()) == {("a", result): 1}


def test_what_is_under_way_is_told_and_its_end_counted_once() -> None:
    timed = Timed("things", "things")
    total, seconds, under_way = timed.measures
    with timed.one(), timed.one():
        assert dict(under_way.read()) == {(): 2}
        assert dict(total.read()) == {}
    assert dict(under_way.read()) == {(): 0}
    assert dict(total.read()) == {("ok",): 2}
    ((_, counts, _),) = seconds.read()
    assert sum(counts) == 2
