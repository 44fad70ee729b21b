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
from typing import Final

_WHERE: Final = os.environ.get("HOLDFAST_INJECT", "")
_LINE_LIMIT: Final = 64
_opened: dict[int, int] = {}


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
    directory = _directory()
    _trace(directory, name)
    try:
        count, *more = _read(directory, name).split()
    except (OSError, ValueError):
        return 0
    if int(count) > 1:
        _write(directory, name, " ".join([str(int(count) - 1), *more]))
        return 0
    _write(directory, name, str(os.getpid()))
    os.rename(name, f"{name}.hit", src_dir_fd=directory, dst_dir_fd=directory)
    return int(more[0]) if more else 1


def _directory() -> int:
    """Opened once by each process, so that one which locks itself into another root still reaches it."""
    pid = os.getpid()
    if pid not in _opened:
        _opened.clear()
        _opened[pid] = os.open(_WHERE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _opened[pid]


def _trace(directory: int, name: str) -> None:
    try:
        trace = os.open("trace", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    with os.fdopen(trace, "wb", buffering=0) as file:
        file.write(f"{os.getpid()} {name}\n".encode())


def _read(directory: int, name: str) -> str:
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as file:
        return file.read(_LINE_LIMIT)


def _write(directory: int, name: str, text: str) -> None:
    """In place: whoever reads it at the same moment is another process at another point, or the test."""
    with os.fdopen(os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, dir_fd=directory), "w") as file:
        file.write(text)
