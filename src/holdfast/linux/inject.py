"""Where a test may stop or fail this very process; nothing at all unless HOLDFAST_INJECT names a directory.

That directory is the whole interface, so that daemon, keeper, shims and their children can all be reached at any time:

    trace        when it exists, each point that is passed adds a line "pid name" to it
    NAME         holds a count n; the n-th process to pass the crash point NAME stops there (SIGSTOP to itself) and
                 NAME becomes NAME.hit with its pid, for the test to kill it or somebody else and to send SIGCONT
    fail-CALL    holds "n ERRNO" or "n ERRNO m"; the n-th CALL ("rename", "mkdir", "mount", "connect", ...) that
                 goes through this package, or m of them from the n-th on, raises OSError with that number; after that
                 fail-CALL becomes fail-CALL.hit
    hang-CALL    while it exists, every such CALL waits
"""

import fcntl
import os
import signal
import threading
import time
from typing import Final

_WHERE: Final = os.environ.get("HOLDFAST_INJECT", "")
_LINE_LIMIT: Final = 64
HANG_SECONDS: Final = 0.01
_opened: dict[int, int] = {}


def crashpoint(name: str) -> None:
    """A durable boundary or a side effect lies right before or right behind this line."""
    if _WHERE and _its_turn(name):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def fault(call: str, path: object = None) -> None:
    """Raise OSError if a test wants this call to fail; wait for as long as a test wants it to hang."""
    while _WHERE and _is_there(f"hang-{call}"):
        time.sleep(HANG_SECONDS)
    if _WHERE and (error := _its_turn(f"fail-{call}")):
        raise OSError(error, f"{call}: {os.strerror(error)}", path if path is None else str(path))


def _its_turn(name: str) -> int:
    """0 when it is not, else the number that stands behind the count, or 1."""
    try:
        directory = _directory()
        _trace(directory, name)
        armed = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return 0
    with os.fdopen(armed, "r+b", buffering=0) as file:
        fcntl.flock(armed, fcntl.LOCK_EX)  # processes and threads that pass at the same moment are counted one by one
        if not _is_still_there(directory, name, armed):
            return 0
        count, number, times = (*map(int, file.read(_LINE_LIMIT).split()), 1, 1)[:3]
        over = count == times == 1
        text = f"{os.getpid()}" if over else f"{max(count - 1, 1)} {number} {times - (count == 1)}"
        file.seek(0)
        file.truncate()
        file.write(text.encode())
        if over:
            os.rename(name, f"{name}.hit", src_dir_fd=directory, dst_dir_fd=directory)
    return number if count == 1 else 0


def _is_there(name: str) -> bool:
    try:
        os.stat(name, dir_fd=_directory())
    except OSError:
        return False
    return True


def _is_still_there(directory: int, name: str, armed: int) -> bool:
    """Not if somebody has passed, or the test has thought better of it, while we waited for the lock."""
    try:
        found = os.stat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return found.st_ino == os.fstat(armed).st_ino and found.st_size > 0


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
