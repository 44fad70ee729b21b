"""Background work with a name, an owner and an end; and threads apart, for what is known to hang at times."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar, cast

from holdfast.linux.patience import patience
from holdfast.linux.threads import in_thread as in_thread  # for those above, who know no kernel
from holdfast.model import trace
from holdfast.model.errors import DeadlineExceeded, HoldfastError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

RETRY_FIRST: Final = 1.0
RETRY_LONGEST: Final = 300.0


async def apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `in_thread`, in a thread of its own: for what the kernel may take for ever to do, as an unmount may.

    So any number of these keep nobody else from having a thread; a daemon that ends does not wait for them either.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = call(*args, **kwargs)
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=f"apart {getattr(call, '__name__', '')}", daemon=True).start()
    return await done


async def within(seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
    """Await `work` for at most `seconds`; DeadlineExceeded says what took too long."""
    try:
        async with patience(seconds):
            return await work
    except TimeoutError as exc:
        raise DeadlineExceeded(f"cannot {what}: no end after {seconds:g} s") from exc


async def until_done(what: str, step: Callable[[], Awaitable[object]], longest: float = RETRY_LONGEST) -> None:
    """Try until it succeeds, after 1 s doubling to 5 min; to be run for each object by itself, so nobody else waits."""
    wait = RETRY_FIRST
    while True:
        try:
            await step()
            return
        except (HoldfastError, OSError) as exc:
            log.warning("cannot finish %s, retrying in %g s: %s", what, wait, exc)
            await asyncio.sleep(wait)
            wait = min(wait * 2, longest)


class Background:
    """Owns the daemon's tasks. A task that fails is logged with its name; it never takes another down."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` under `name`. A name already running keeps its task, and `work` is not begun."""
        running = self._tasks.get(name)
        if running is not None and not running.done():
            work.close()
            return running
        task = asyncio.get_running_loop().create_task(work, name=name, context=trace.apart())
        self._tasks[name] = task
        task.add_done_callback(self._ended)
        return task

    def see_through(self, name: str, step: Callable[[], Awaitable[object]], longest: float = RETRY_LONGEST) -> None:
        """Run `step` again and again until it succeeds, with pauses of at most `longest` seconds."""
        self.start(name, until_done(name, step, longest))

    def names(self) -> list[str]:
        return sorted(self._tasks)

    async def stop(self) -> None:
        """Cancel what still runs and wait for its end."""
        while tasks := [task for task in self._tasks.values() if not task.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._tasks.get(task.get_name()) is task:
            del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("cannot finish %s: %s", task.get_name(), error, exc_info=error)
