"""The kernel's structures have the sizes of its headers (linux/fs.h, linux/dqblk_xfs.h, linux/loop.h)."""

import ctypes
from pathlib import Path

import pytest

from holdfast.linux import loop, quota
from holdfast.linux.quota import Project


def test_ioctl_numbers_carry_the_size_of_what_they_take() -> None:
    for number in (quota.FS_IOC_FSGETXATTR, quota.FS_IOC_FSSETXATTR):
        assert (number >> 16) & 0x3FFF == ctypes.sizeof(quota._Attributes) == 28
    assert ctypes.sizeof(loop._Info) == 232
    assert ctypes.sizeof(loop._Config) == 304
    assert ctypes.sizeof(quota._Quota) >= 112, "the kernel writes as much"
    assert quota._Quota.block_hard.offset == 8
    assert quota._Quota.inodes.offset == 48
    assert quota._Status.flags.offset == 2


def test_a_project_is_free_when_it_has_neither_limit_nor_files() -> None:
    assert Project().free
    assert not Project(limit=512).free
    assert not Project(used=512).free
    assert not Project(inodes=1).free


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert loop.device_of(tmp_path / "image") is None
    with pytest.raises(FileNotFoundError), loop.attached(tmp_path / "image"):
        pass
    with pytest.raises(FileNotFoundError):
        quota.enforced(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        quota.assign(tmp_path / "nothing", 1)
