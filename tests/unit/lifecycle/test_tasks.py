import asyncio

import pytest

from holdfast.lifecycle import tasks
from holdfast.model.errors import Unavailable


def test_retries_wait_a_second_doubling_to_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def step() -> None:
        if len(waits) < 12:
            raise Unavailable("cannot do it yet") if len(waits) % 2 else OSError(5, "nor this")

    monkeypatch.setattr(tasks.asyncio, "sleep", sleep)
    asyncio.run(tasks.until_done("something", step))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_one_that_fails_does_not_delay_another() -> None:
    async def play() -> list[str]:
        background, done = tasks.Background(), asyncio.Event()

        async def fail() -> None:
            raise Unavailable("for ever")

        async def succeed() -> None:
            done.set()

        background.see_through("sick", fail)
        background.see_through("well", succeed)
        async with asyncio.timeout(tasks.RETRY_FIRST):
            await done.wait()
        await asyncio.sleep(0)
        left = background.names()
        await background.stop()
        return left

    assert asyncio.run(play()) == ["sick"]
