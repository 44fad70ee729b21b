"""Loop devices: a file that is mounted as a disk (loop(4)). A device of ours goes when its last user has gone."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from holdfast.linux.inject import fault

CONTROL: Final = "/dev/loop-control"
LOOP_CTL_GET_FREE: Final = 0x4C82
LOOP_CONFIGURE: Final = 0x4C0A
LO_FLAGS_AUTOCLEAR: Final = 4
TRIES: Final = 64  # others look for a free one, too


class _Info(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_uint8 * 64),
        ("crypt_name", ctypes.c_uint8 * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    """struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


@contextmanager
def attached(image: str | os.PathLike[str]) -> Iterator[str]:
    """The path of a device that shows `image`, for as long as this lasts or somebody has it mounted. Raises OSError."""
    fault("loop", image)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        path, device = _configure(backing)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(device)


def _configure(backing: int) -> tuple[str, int]:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for left in reversed(range(TRIES)):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, bytes(_Config(fd=backing, info=_Info(flags=LO_FLAGS_AUTOCLEAR))))
                return path, device
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY or not left:
                    raise OSError(exc.errno, f"loop device: {os.strerror(exc.errno or errno.EIO)}", path) from exc
    finally:
        os.close(control)
    raise AssertionError


def device_of(image: str | os.PathLike[str]) -> str | None:
    """The number, as mountinfo writes it, of a device that shows `image`; None when none does."""
    wanted = os.fspath(image)
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if os.fsdecode(path.read_bytes()).rstrip("\n").removesuffix(" (deleted)") == wanted:
                return (path.parents[1] / "dev").read_text().strip()
        except OSError:  # it goes just now
            continue
    return None
