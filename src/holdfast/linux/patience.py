"""Deadlines by which somebody is said to hang. Their time passes in looks, as in `sockets.wait_for_input`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.linux.sockets import LOOKS


@asynccontextmanager
async def patience(seconds: float | None) -> AsyncIterator[None]:
    """asyncio.timeout in looks: TimeoutError after `seconds`; None is no limit."""
    if seconds is None:
        yield
        return
    loop, every = asyncio.get_running_loop(), seconds / LOOKS
    async with asyncio.timeout(None) as limit:
        next_one = loop.call_later(every, lambda: look(LOOKS - 1))

        def look(left: int) -> None:
            nonlocal next_one
            if left:
                next_one = loop.call_later(every, look, left - 1)
            else:
                limit.reschedule(loop.time())

        try:
            yield
        finally:
            next_one.cancel()
