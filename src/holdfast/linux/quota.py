"""Project quotas: a hard limit for all that is in one directory (quotactl(2), ioctl_xfs_fssetxattr(2)).

A project is a number that files bear; a directory hands its own on to what is made in it. XFS and ext4 know them, where
they are mounted with prjquota.
"""

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from typing import Final

from holdfast.linux.inject import fault
from holdfast.linux.libc import syscall

SYS_QUOTACTL_FD: Final = 443
PRJQUOTA: Final = 2
Q_XGETQUOTA: Final = 0x5803
Q_XSETQLIM: Final = 0x5804
Q_XGETQSTAT: Final = 0x5805
FS_QUOTA_PDQ_ENFD: Final = 1 << 5
FS_DQ_BSOFT_BHARD: Final = (1 << 2) | (1 << 3)
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
FS_XFLAG_PROJINHERIT: Final = 0x200
BLOCK: Final = 512  # bytes, the unit of XFS' limits


class _Attributes(ctypes.Structure):
    """struct fsxattr."""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("extent_size", ctypes.c_uint32),
        ("extents", ctypes.c_uint32),
        ("project", ctypes.c_uint32),
        ("cow_extent_size", ctypes.c_uint32),
        ("padding", ctypes.c_uint8 * 8),
    )


class _Quota(ctypes.Structure):
    """struct fs_disk_quota."""

    _fields_ = (
        ("version", ctypes.c_int8),
        ("kind", ctypes.c_int8),
        ("mask", ctypes.c_uint16),
        ("id", ctypes.c_uint32),
        ("block_hard", ctypes.c_uint64),
        ("block_soft", ctypes.c_uint64),
        ("inode_hard", ctypes.c_uint64),
        ("inode_soft", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("inodes", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 64),
    )


class _Status(ctypes.Structure):
    """struct fs_quota_stat."""

    _fields_ = (
        ("version", ctypes.c_int8),
        ("flags", ctypes.c_uint16),
        ("rest", ctypes.c_uint8 * 128),
    )


@dataclass(frozen=True, slots=True)
class Project:
    """What a project may have and has, in bytes; a limit of 0 is none."""

    limit: int = 0
    used: int = 0
    inodes: int = 0

    @property
    def free(self) -> bool:
        """Whether nobody has this number."""
        return not (self.limit or self.used or self.inodes)


def enforced(directory: str | os.PathLike[str]) -> bool:
    """Whether the filesystem of a directory keeps projects to their limits."""
    status = _Status(version=1)
    try:
        _quotactl(directory, Q_XGETQSTAT, 0, status)
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.ENODEV, errno.ENOTBLK, errno.EOPNOTSUPP):
            return False
        raise
    return bool(status.flags & FS_QUOTA_PDQ_ENFD)


def project(directory: str | os.PathLike[str], number: int) -> Project:
    """What there is of a project on the filesystem of a directory."""
    found = _Quota(version=1)
    try:
        _quotactl(directory, Q_XGETQUOTA, number, found)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return Project()
        raise
    return Project(found.block_hard * BLOCK, found.blocks * BLOCK, found.inodes)


def limit(directory: str | os.PathLike[str], number: int, size: int) -> None:
    """Let a project have `size` bytes, rounded up to a block; 0 takes the limit away."""
    blocks = -(-size // BLOCK)
    wanted = _Quota(version=1, kind=PRJQUOTA, mask=FS_DQ_BSOFT_BHARD, id=number, block_hard=blocks, block_soft=blocks)
    _quotactl(directory, Q_XSETQLIM, number, wanted)


def assign(directory: str | os.PathLike[str], number: int) -> None:
    """Make a directory, and what will be made in it, a project's."""
    fault("project", directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        attributes = _Attributes()
        fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, attributes)
        attributes.flags |= FS_XFLAG_PROJINHERIT
        attributes.project = number
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, bytes(attributes))
    except OSError as exc:
        raise OSError(exc.errno, f"project: {os.strerror(exc.errno or errno.EIO)}", os.fspath(directory)) from exc
    finally:
        os.close(descriptor)


def _quotactl(directory: str | os.PathLike[str], command: int, number: int, argument: ctypes.Structure) -> None:
    fault("quotactl", directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pointer, code = ctypes.byref(argument), command << 8 | PRJQUOTA
        syscall(SYS_QUOTACTL_FD, "quotactl_fd", descriptor, code, number, pointer, paths=(directory,))
    finally:
        os.close(descriptor)
