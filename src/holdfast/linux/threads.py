"""The one door by which blocking calls leave the event loop: sixteen work at a time, not counting those that hang.

A call that waits for a dead disk or a slow unmount cannot be ended, and has its thread until the kernel lets go. It
keeps its place among the sixteen for a tenth of a second; then the next one gets that, and a thread of its own. So what
hangs holds up nobody else, and what works does not make a thread for each of five hundred containers (ADR 23).
"""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[], None]

WORKING: Final = 16
PATIENCE: Final = 0.1  # seconds
MOST: Final = 1024  # threads, those that hang among them; when that many hang, calls wait


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one blocking call away from the event loop. It goes on, for nobody, when its caller is cancelled."""
    loop = asyncio.get_running_loop()
    if (threads := _threads.get(loop)) is None:
        threads = _threads[loop] = Threads()
    return await threads.run(lambda: call(*args, **kwargs))


class Threads:
    """Those of one event loop. They are daemonic: one that hangs does not keep the process from its end."""

    def __init__(self, working: int = WORKING, patience: float = PATIENCE) -> None:
        self._working = working
        self._patience = patience
        self._places = asyncio.Semaphore(working)
        self._idle: list[SimpleQueue[Work | None]] = []
        self.count = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Raises what the call raises."""
        await self._places.acquire()
        place = _Place(self._places)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        late = loop.call_later(self._patience, self._let_another, place)
        thread = self._idle.pop() if self._idle else self._begin()

        def end(value: Any, error: BaseException | None) -> None:
            late.cancel()
            place.leave()
            self._rest(thread)
            if result.done():
                return  # cancelled
            if error is None:
                result.set_result(value)
            else:
                result.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = call()
            except BaseException as exc:
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                loop.call_soon_threadsafe(end, value, error)

        thread.put(work)
        return await result

    def _let_another(self, place: "_Place") -> None:
        if self.count < MOST:
            place.leave()

    def _begin(self) -> "SimpleQueue[Work | None]":
        tasks: SimpleQueue[Work | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(tasks,), name="blocking", daemon=True).start()
        self.count += 1
        return tasks

    def _rest(self, thread: "SimpleQueue[Work | None]") -> None:
        """Keep a thread for the next call, unless enough of them wait for one."""
        if len(self._idle) < self._working:
            self._idle.append(thread)
        else:
            thread.put(None)
            self.count -= 1


class _Place:
    """One of the sixteen; it can be left but once."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._places.release()


def _serve(tasks: "SimpleQueue[Work | None]") -> None:
    while (work := tasks.get()) is not None:
        work()
        del work  # and with it what the call has returned


_threads: Final["weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Threads]"] = weakref.WeakKeyDictionary()
