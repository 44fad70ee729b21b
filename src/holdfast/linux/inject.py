"""Where a test may stop or fail this very process; nothing at all unless HOLDFAST_INJECT names a directory.

That directory is the whole interface, so that daemon, keeper, shims and their children can all be reached at any time:

    trace        when it exists, each point that is passed adds a line "pid name" to it
    NAME         holds a count n; the n-th process to pass the crash point NAME stops there (SIGSTOP to itself) and
                 NAME becomes NAME.hit with its pid, for the test to kill it or somebody else and to send SIGCONT
    fail-CALL    holds "n ERRNO"; the n-th CALL ("rename", "fsync", "mkdir", "mount", "connect", ...) that goes through
                 this package raises OSError with that number, and fail-CALL becomes fail-CALL.hit
"""

import os
import signal
import threading
from pathlib import Path
from typing import Final

_WHERE: Final = os.environ.get("HOLDFAST_INJECT", "")
_LINE_LIMIT: Final = 64


def crashpoint(name: str) -> None:
    """A durable boundary or a side effect lies right before or right behind this line."""
    if _WHERE and _its_turn(name):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def fault(call: str, path: object = None) -> None:
    """Raise OSError if a test wants this call to fail."""
    if _WHERE and (error := _its_turn(f"fail-{call}")):
        raise OSError(error, os.strerror(error), path if path is None else str(path))


def _its_turn(name: str) -> int:
    """0 when it is not, else the number that stands behind the count, or 1."""
    directory = Path(_WHERE)
    _trace(directory / "trace", name)
    try:
        count, *more = (directory / name).read_text()[:_LINE_LIMIT].split()
    except (OSError, ValueError):
        return 0
    if int(count) > 1:
        (directory / name).write_text(" ".join([str(int(count) - 1), *more]))
        return 0
    (directory / name).write_text(str(os.getpid()))
    (directory / name).rename(directory / f"{name}.hit")
    return int(more[0]) if more else 1


def _trace(path: Path, name: str) -> None:
    try:
        trace = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(trace, f"{os.getpid()} {name}\n".encode())
    finally:
        os.close(trace)
