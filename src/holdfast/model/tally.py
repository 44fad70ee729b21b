"""What is counted and timed, as plain data: no lock, no I/O, one entry of a dictionary for each.

Whoever knows what happens has its Counter or Histogram and tells it; a series is told by one thread only. They are read
from another one at any moment (`metrics`), by copies that the interpreter makes in one piece: nobody waits for anybody.
Labels are words of which there are few: never an id, a name or a path that a client gives.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from holdfast.model.errors import HoldfastError

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
OK: Final = "ok"

Labels = tuple[str, ...]
Values = Iterable[tuple[Labels, float]]


@dataclass(slots=True, eq=False)
class Counter:
    """What only grows; its name ends with _total."""

    name: str
    help: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.labels:
            self.values[()] = 0

    def add(self, *labels: str, by: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + by

    def read(self) -> Values:
        return self.values.copy().items()


@dataclass(slots=True, eq=False)
class Gauge:
    """What goes up and down. `read` tells it from what is known anyway: it asks nobody and waits for nothing."""

    name: str
    help: str
    read: Callable[[], Values]
    labels: Labels = ()


@dataclass(slots=True)
class Series:
    """`counts` are of values up to each bound, and beyond the last."""

    counts: list[int]
    sum: float = 0.0


@dataclass(slots=True, eq=False)
class Histogram:
    """How long something takes; its name ends with _seconds."""

    name: str
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = SECONDS
    series: dict[Labels, Series] = field(default_factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        if (one := self.series.get(labels)) is None:
            one = self.series[labels] = Series([0] * (len(self.bounds) + 1))
        one.counts[bisect_left(self.bounds, value)] += 1
        one.sum += value

    def read(self) -> list[tuple[Labels, list[int], float]]:
        return [(labels, one.counts.copy(), one.sum) for labels, one in self.series.copy().items()]


Measure = Counter | Gauge | Histogram


def gauge(name: str, help: str, read: Callable[[], float]) -> Gauge:
    """One that has no labels."""
    return Gauge(name, help, lambda: [((), read())])


class Timed:
    """How often something was done and with which result, how long it took, and how much of it is under way."""

    def __init__(
        self,
        name: str,
        what: str,
        labels: Labels = (),
        label: str = "result",
        result_of: Callable[[BaseException | None], str] = lambda error: OK if error is None else result_of(error),
    ) -> None:
        """`name` is of one, e.g. "holdfast_pull"; `what` of several: "pulls of images"."""
        self._result_of = result_of
        self.total = Counter(f"{name}s_total", f"{what.capitalize()}, by their {label}.", (*labels, label))
        self.seconds = Histogram(f"{name}_duration_seconds", f"How long {what} took.", labels)
        self._under_way: dict[Labels, int] = {}
        under_way = Gauge(f"{name}s_under_way", f"{what.capitalize()} at this moment.", self._now, labels)
        self.measures: tuple[Measure, ...] = (self.total, self.seconds, under_way)

    def one(self, *labels: str) -> "One":
        """`with timed.one("shim"):`"""
        return One(self, labels)

    def begun(self, labels: Labels, by: int) -> None:
        self._under_way[labels] = self._under_way.get(labels, 0) + by

    def ended(self, labels: Labels, seconds: float, error: BaseException | None) -> None:
        self.begun(labels, -1)
        self.total.add(*labels, self._result_of(error))
        self.seconds.observe(seconds, *labels)

    def _now(self) -> Values:
        return self._under_way.copy().items()


class One:
    """Something that is timed; a class, since a generator would take longer than what is counted at times."""

    __slots__ = ("_began", "_labels", "_timed")

    def __init__(self, timed: Timed, labels: Labels) -> None:
        self._timed = timed
        self._labels = labels
        self._began = 0.0

    def __enter__(self) -> None:
        self._timed.begun(self._labels, 1)
        self._began = time.monotonic()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timed.ended(self._labels, time.monotonic() - self._began, error)


def result_of(error: BaseException) -> str:
    """A word for how something failed: "cancelled", the class of the model's error, or "failed" for any other."""
    if not isinstance(error, Exception):
        return "cancelled"
    if isinstance(error, HoldfastError) and type(error) is not HoldfastError:
        return _snake(type(error).__name__)
    return "deadline_exceeded" if isinstance(error, TimeoutError) else "failed"


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
