import asyncio
import threading

import pytest

from holdfast.linux.threads import Threads, in_thread

SECONDS = 20.0
EASY = 4


def test_the_result_and_the_error_of_a_call_are_its_callers() -> None:
    async def play() -> None:
        assert await in_thread(int, "7") == 7
        with pytest.raises(ValueError, match="seven"):
            await in_thread(int, "seven")

    asyncio.run(play())
    asyncio.run(play())  # another loop


def test_what_hangs_holds_up_nobody() -> None:
    gate = threading.Event()

    async def play() -> None:
        threads = Threads(EASY)
        async with asyncio.TaskGroup() as group:
            sick = [group.create_task(threads.run(gate.wait)) for _ in range(5 * EASY)]
            try:
                async with asyncio.timeout(SECONDS):
                    assert await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(50)))
                assert not any(one.done() for one in sick)
            finally:
                gate.set()
        assert all(one.result() for one in sick)
        assert threads.count < 5 * EASY + 50, "not one for each"
        await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(50)))
        assert threads.count <= EASY, "threads that nobody needs any more"

    asyncio.run(play())


def test_what_works_takes_its_turn() -> None:
    at_once: list[int] = []
    now = 0
    lock, all_there = threading.Lock(), threading.Barrier(EASY)

    def work() -> None:
        nonlocal now
        with lock:
            now += 1
            at_once.append(now)
        all_there.wait(SECONDS)
        with lock:
            now -= 1

    async def play() -> int:
        threads = Threads(EASY, SECONDS)
        await asyncio.gather(*(threads.run(work) for _ in range(40)))
        return threads.count

    assert asyncio.run(play()) == EASY == max(at_once)


def test_a_caller_that_goes_away_leaves_its_call_running() -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()
        ended.set()

    async def play() -> None:
        threads = Threads(1, SECONDS)
        async with asyncio.TaskGroup() as group:
            one = group.create_task(threads.run(work))
            await asyncio.sleep(0)
            begun.wait(SECONDS)
            one.cancel()
        assert one.cancelled()
        assert not ended.is_set()
        gate.set()
        assert await threads.run(lambda: 5) == 5  # after it: there is one place
        assert ended.is_set()

    asyncio.run(play())
