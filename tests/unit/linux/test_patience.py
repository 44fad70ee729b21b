"""Deadlines that pass in looks: a machine that stands still makes nobody late."""

import asyncio
import socket
import threading
import time

import pytest

from holdfast.linux import sockets
from holdfast.linux.patience import patience

SHORT = 0.1  # seconds


async def test_who_hangs_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with patience(SHORT):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= SHORT * 0.99


async def test_what_is_done_in_time_or_has_no_limit_is_done() -> None:
    for seconds in (60, None):
        async with patience(seconds):
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)  # nothing comes later, either


async def test_an_error_is_whose_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with patience(60):
            raise ValueError("mine")
    task = asyncio.get_running_loop().create_task(_wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _wait() -> None:
    async with patience(60):
        await asyncio.Event().wait()


async def test_a_machine_that_stands_still_makes_nobody_late() -> None:
    """The answer comes a moment after the machine goes on, which is when time is over by the clock."""
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stand_still() -> None:
        time.sleep(3 * SHORT)
        loop.call_later(SHORT / 10, answered.set)

    loop.call_later(0, stand_still)
    async with patience(SHORT):
        await answered.wait()


def test_a_socket_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert not sockets.wait_for_input(ours, SHORT)
        answering = threading.Timer(SHORT / 10, theirs.send, [b"here"])
        answering.start()
        assert sockets.wait_for_input(ours, 60)
        assert ours.recv(10) == b"here"
        answering.join()
        theirs.close()
        assert sockets.wait_for_input(ours, 60), "nobody is there any more"
