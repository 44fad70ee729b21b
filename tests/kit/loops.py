"""The shim's event loop in the process of a test."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.linux import process
from holdfast.workers.shim.loop import Loop


def _reap(pid: int, *_: int) -> None:
    process.reap(pid)


@contextmanager
def open_loop(orphan: Callable[[int, int, int], None] = _reap) -> Iterator[Loop]:
    """One that is told of this process's signals, until the end of the context; then all is as it was."""
    before = signal.getsignal(signal.SIGCHLD)
    made = Loop(orphan)
    try:
        yield made
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, before)
        made.close()
