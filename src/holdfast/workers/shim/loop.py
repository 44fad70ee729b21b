"""The shim's event loop: descriptors, children, and operations that wait for children. One thread, nothing blocks.

An operation is a generator that yields the pid of a child and is resumed with its exit status. Operations of one
container follow each other; those of different containers do not wait for one another.
"""

import collections
import os
import selectors
import signal
from collections.abc import Callable, Generator
from typing import Any, Final

from holdfast.linux import process

Operation = Generator[int, int, Any]
Done = Callable[[Any, Exception | None], None]

UNCLAIMED: Final = 256


class Loop:
    """Dispatches readiness to callbacks and exits to whoever waits for that child."""

    def __init__(self, orphan: Callable[[int, int, int], None]) -> None:
        """`orphan(pid, code, status)` is called for a zombie that no operation waits for; it must reap it."""
        self.selector = selectors.DefaultSelector()
        self.running = True
        self._orphan = orphan
        self._waiting: dict[int, tuple[str, Operation, Done]] = {}
        self._queues: dict[str, collections.deque[tuple[Operation, Done]]] = {}
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wake = wake_read
        self.selector.register(wake_read, selectors.EVENT_READ, self._woken)

    def run(self) -> None:
        while self.running:
            for key, events in self.selector.select():
                if key.fd in self.selector.get_map():  # not closed by what came before it
                    key.data(events)

    def submit(self, key: str, operation: Operation, done: Done) -> None:
        """Run an operation after those that were submitted under the same key. `done` gets its result or its error."""
        queue = self._queues.setdefault(key, collections.deque())
        queue.append((operation, done))
        if len(queue) == 1:
            self._step(key, operation, done, None)

    def busy(self) -> bool:
        return bool(self._queues)

    def _woken(self, _: int) -> None:
        os.read(self._wake, 4096)
        while (found := process.peek_exited()) is not None:
            pid, code, status = found
            waiting = self._waiting.pop(pid, None)
            if waiting is None:
                self._orphan(pid, code, status)
            else:
                process.reap(pid)
                self._step(*waiting, status if code == os.CLD_EXITED else 128 + status)

    def _step(self, key: str, operation: Operation, done: Done, status: int | None) -> None:
        result, error = None, None
        try:
            pid = next(operation) if status is None else operation.send(status)
        except StopIteration as stop:
            result = stop.value
        except Exception as exc:
            error = exc
        else:
            self._waiting[pid] = (key, operation, done)
            return
        done(result, error)
        queue = self._queues[key]
        queue.popleft()
        if queue:
            self._step(key, *queue[0], None)
        else:
            del self._queues[key]
