"""The ring of events, and what its readers are told."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from holdfast.lifecycle.events import Events, Gap, Kind
from holdfast.model.clock import Clock


@dataclass
class Thing:
    meta: Any
    containers: dict[str, Any] = field(default_factory=dict)


POD: Any = Thing(SimpleNamespace(id="p"))


async def take(events: Events, seen: int, count: int) -> list[Any]:
    found = []
    async for one in events.follow(seen):
        found.append(one)
        if len(found) == count:
            break
    return found


def test_readers_go_on_where_they_were() -> None:
    async def run() -> None:
        events = Events(Clock())
        start = events.last
        for kind in Kind:
            events.add(kind, POD)
        assert [one.kind for one in await take(events, start, len(Kind))] == list(Kind)
        assert [one.kind for one in await take(events, start + 3, 1)] == [Kind.DELETED]

    asyncio.run(run())


def test_a_reader_waits_for_what_comes() -> None:
    async def run() -> None:
        events = Events(Clock())
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(take(events, events.last, 1))
            await asyncio.sleep(0)
            events.add(Kind.STARTED, POD)
        assert [one.kind for one in reading.result()] == [Kind.STARTED]

    asyncio.run(run())


def test_who_is_too_slow_is_told_of_the_gap() -> None:
    async def run() -> None:
        events = Events(Clock(), keep=3)
        start = events.last
        for _ in range(5):
            events.add(Kind.STARTED, POD)
        gap, *rest = await take(events, start, 4)
        assert gap == Gap(start, start + 2)
        assert [one.number for one in rest] == [start + 3, start + 4, start + 5]

    asyncio.run(run())


def test_who_asks_for_an_earlier_daemons_events_is_told_of_the_gap() -> None:
    async def run() -> None:
        events = Events(Clock())
        assert await take(events, 5, 1) == [Gap(5, events.last)]

    asyncio.run(run())


def test_readers_end_with_the_daemon() -> None:
    async def run() -> None:
        events = Events(Clock())
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(take(events, events.last, 1))
            await asyncio.sleep(0)
            events.close()
        assert reading.result() == []

    asyncio.run(run())


def test_numbers_and_times_only_grow_whatever_the_clock_does() -> None:
    now = [1000]
    earlier = Events(Clock(lambda: now[0]))
    most = earlier.begin(0)
    earlier.add(Kind.STARTED, POD)
    now[0] = 10
    later = Events(Clock(lambda: now[0]))
    assert later.begin(most) > most
    assert later.last == most > earlier.last

    async def run() -> None:
        start = earlier.last
        for _ in range(2):
            now[0] -= 1
            earlier.add(Kind.STOPPED, POD)
        first, second = await take(earlier, start, 2)
        assert 1000 < first.at < second.at

    asyncio.run(run())
