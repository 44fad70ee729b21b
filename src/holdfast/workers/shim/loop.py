"""The shim's event loop: descriptors, timers, children, and coroutines that wait for any of them. Nothing blocks it.

`async def` without asyncio, which would cost a shim twice its memory: a coroutine awaits a `Pause`, and whoever the
pause was arranged with resumes it. What may block (mounts, OCI runtime commands) is done by a forked child, `in_child`:
a page that a process only reads of what it imported it shares with all other shims, a page that it runs code from it
does not, and what a child has touched is gone with the child.
"""

import collections
import heapq
import itertools
import os
import select
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, NoReturn, Protocol

from holdfast.linux import process
from holdfast.model.words import readable

Resume = Callable[[Any], None]
Done = Callable[[Any, Exception | None], None]
Watched = int | socket.socket | select.epoll

ANSWER_BYTES: Final = 256 * 1024
CALM: Final = 0.01  # after a callback has failed: it may be called again at once, for ever


class Failed(Exception):
    """What was to be done could not be done; the text says why."""


class Pause:
    """Awaiting it hands `resume` to `arrange`; the value that resume is called with is the result."""

    __slots__ = ("arrange",)

    def __init__(self, arrange: Callable[[Resume], None]) -> None:
        self.arrange = arrange

    def __await__(self) -> Generator["Pause", Any, Any]:
        return (yield self)


class Clock(Protocol):
    """Something that wants to be called at a time of its own."""

    def next_deadline(self) -> float | None: ...
    def expire(self) -> None: ...


class Timer:
    """A callback that is due later; `cancel` makes it nothing."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    @property
    def pending(self) -> bool:
        return self.callback is not None

    def cancel(self) -> None:
        self.callback = None


class Timers:
    """Callbacks in the order of their times on time.monotonic()."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()

    def add(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._number), timer))
        return timer

    def next_deadline(self) -> float | None:
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expire(self) -> None:
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()


class Loop:
    """Dispatches readiness to callbacks `data(events)` of its selector, and exits to whoever waits for that child.

    `orphan(pid, code, status)` is called for a zombie that nobody waits for, before it is reaped; it must reap it.
    """

    def __init__(self, orphan: Callable[[int, int, int], None]) -> None:
        self.selector = selectors.DefaultSelector()
        self.running = True
        self.timers = Timers()
        self.clocks: list[Clock] = [self.timers]
        self._orphan = orphan
        self._ready: collections.deque[Callable[[], None]] = collections.deque()
        self._children: dict[int, Callable[[int], None]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self._wake_read, selectors.EVENT_READ, self._woken)

    def run(self) -> None:
        """Until `running` is made False."""
        while self.running:
            self.turn()

    def close(self) -> None:
        self.selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def turn(self) -> None:
        """Wait for something to happen, and see to all that has."""
        for key, events in self.selector.select(self._patience()):
            now = self.selector.get_map().get(key.fd)
            if now is not None and now.data == key.data:  # not gone by what an earlier one of these has done
                self._guard(key.data, events)
        for clock in self.clocks:
            self._guard(clock.expire)
        for _ in range(len(self._ready)):
            self._guard(self._ready.popleft())

    def start(self, coroutine: Coroutine[Pause, Any, Any], done: Done) -> None:
        """Run a coroutine; `done` gets its result or its error. It begins at once and may end before this returns."""

        def step(value: Any = None) -> None:
            try:
                pause = coroutine.send(value)
            except StopIteration as stop:
                done(stop.value, None)
            except Exception as exc:
                done(None, exc)
            else:
                pause.arrange(step)

        step()

    def soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    async def sleep(self, seconds: float) -> None:
        await Pause(lambda resume: void(self.timers.add(seconds, lambda: resume(None))))

    async def exited(self, pid: int, seconds: float) -> int | None:
        """Wait for a child just made. Returns its exit status, 128 + signal for a signal; None after `seconds`."""

        def arrange(resume: Resume) -> None:
            def late() -> None:
                self._children[pid] = lambda _: None  # it is still ours to reap
                resume(None)

            def ended(status: int) -> None:
                timer.cancel()
                resume(status)

            timer = self.timers.add(seconds, late)
            self._children[pid] = ended

        status: int | None = await Pause(arrange)
        return status

    async def ended(self, pid: int) -> int:
        """The same for however long it takes."""

        def arrange(resume: Resume) -> None:
            self._children[pid] = resume

        status: int = await Pause(arrange)
        return status

    async def in_child(self, work: Callable[[], str], seconds: float, patience: float = 0) -> str:
        """The door for what may block, and for what touches much memory that is then nobody's any more.

        `work` runs in a forked child, which begins a session: by that it is known what it has left behind on purpose.
        Its result comes back as text. Raises Failed with the text of the OSError or Failed that it has raised, or when
        it is killed with its process group after `seconds`. What a child that somebody else has killed leaves of its
        group may go on for `patience` seconds.
        """
        answer = -1
        try:
            answer = os.memfd_create("answer", os.MFD_CLOEXEC)
            parent = os.getpid()
            pid = process.fork()
        except OSError as exc:
            if answer >= 0:
                os.close(answer)
            raise Failed(f"no child can be made: {exc.strerror}") from exc
        try:
            if pid == 0:
                _be_child(work, answer, parent)
            status = await self.exited(pid, seconds)
            if status is None:
                process.kill_group(pid)
                raise Failed(f"no end after {seconds:g} s")
            text = os.pread(answer, ANSWER_BYTES, 0).decode(errors="replace")
        finally:
            os.close(answer)
        if status:
            await self._end_group(pid, patience)
            raise Failed(text or f"the child that was to do it ended with status {status}")
        return text

    async def _end_group(self, group: int, patience: float) -> None:
        """A child may have been killed over a command that would go on without it."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and process.in_group(group):
            await self.sleep(CALM)
        process.kill_group(group)

    def _patience(self) -> float | None:
        """How long nothing may happen."""
        if self._ready:
            return 0
        times = [when for clock in self.clocks if (when := clock.next_deadline()) is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _woken(self, _: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        while (found := process.peek_exited()) is not None:
            pid, code, status = found
            waiting = self._children.pop(pid, None)
            if waiting is None:
                self._orphan(pid, code, status)
            else:
                process.reap(pid)
                waiting(status if code == os.CLD_EXITED else 128 + status)

    def _guard(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Whatever goes wrong in one callback, the containers of this pod keep their shim."""
        try:
            callback(*arguments)
        except Exception:
            traceback.print_exc()
            time.sleep(CALM)


class Lock:
    """Lets one coroutine at a time pass, in the order in which they came."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._queue: collections.deque[Resume] = collections.deque()

    async def __aenter__(self) -> None:
        if self._held:
            await Pause(self._queue.append)
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            resume = self._queue.popleft()
            self._loop.soon(lambda: resume(None))  # it is still held, now by the next one
        else:
            self._held = False


def watch(selector: selectors.BaseSelector, what: Watched, events: int, callback: Callable[[int], None]) -> None:
    """Have a descriptor looked at for these events from now on; for none of them not at all."""
    known = selector.get_map().get(what)
    if known is None and events:
        selector.register(what, events, callback)
    elif known is not None and not events:
        selector.unregister(what)
    elif known is not None and known.events != events:
        selector.modify(what, events, callback)


def void(_: object) -> None:
    """For a lambda that has to return nothing."""


def _die_with(parent: int) -> None:
    """When the shim dies, this process ends with its whole group: a command must not finish behind its successor."""
    signal.signal(signal.SIGUSR2, end_group)
    process.signal_at_parents_death(signal.SIGUSR2)
    if os.getppid() != parent:
        end_group()


def end_group(*_: object) -> None:
    """Kill this process and whatever it has started that has not left its group."""
    os.killpg(0, signal.SIGKILL)


def said(error: Exception) -> str:
    """An error in words, for whoever asked; of a failed system call what it was about."""
    if isinstance(error, OSError) and error.strerror:
        return readable(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return readable(str(error))


def _be_child(work: Callable[[], str], answer: int, parent: int) -> NoReturn:
    """In the child of `in_child`: do the work, leave its text, and end without unwinding the loop's frames."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # and a process group, by which it ends with all that it has started
        _die_with(parent)
        try:
            text, status = work(), 0
        except (OSError, Failed) as exc:
            text = said(exc)
        os.write(answer, text.encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
