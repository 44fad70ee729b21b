"""libc through ctypes, and the one place where its errors become OSError."""

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000

# System calls without a libc wrapper everywhere; the numbers are the same on x86_64 and aarch64 (asm-generic), but for
# the first: libc's own is for all threads.
SYS_SETRESUID: Final = {"x86_64": 117, "aarch64": 147}.get(os.uname().machine, -1)
SYS_OPEN_TREE: Final = 428
SYS_MOVE_MOUNT: Final = 429
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
SYS_CLONE3: Final = 435
SYS_OPENAT2: Final = 437
SYS_MOUNT_SETATTR: Final = 442


def path_bytes(path: str | bytes | os.PathLike[str]) -> bytes:
    """A path as the kernel is given it. ValueError for one with a NUL, which C would silently cut short."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"embedded null byte in {path!r}")
    return encoded


def check(result: int, call: str, *paths: object) -> int:
    """`result`, unless it is negative: then OSError with errno, the call's name and the paths concerned."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", " ".join(str(path) for path in paths) or None)
    return result


def syscall(number: int, call: str, *arguments: object, paths: tuple[object, ...] = ()) -> int:
    """A raw system call; integers are passed as long, everything else as ctypes has it."""
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return check(int(libc.syscall(ctypes.c_long(number), *converted)), call, *paths)
