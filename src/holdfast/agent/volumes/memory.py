"""Volumes that are memory: a tmpfs, or huge pages, mounted at the volume's directory."""

import errno
import os
from pathlib import Path

from holdfast.linux import mount
from holdfast.linux.inject import crashpoint


def set_up(place: Path, size: int = 0, page: int = 0) -> bool:
    """Mount memory of at most `size` bytes, 0 for as much as the kernel gives; with `page`, pages of as many bytes.

    Returns whether it was not there already. Raises OSError.
    """
    fstype = "hugetlbfs" if page else "tmpfs"
    if any(one.target == os.fspath(place) and one.fstype == fstype for one in mount.mountinfo()):
        return False
    options = ["mode=0777"]
    if page:
        options.append(f"pagesize={page}")
        size = -(-size // page) * page
    if size:
        options.append(f"size={size}")
    _mount(fstype, place, options)
    crashpoint("volume.memory-mounted")
    return True


def _mount(fstype: str, place: Path, options: list[str]) -> None:
    if fstype == "tmpfs":
        try:  # what is a secret is not to be on a disk (Linux 6.4)
            return mount.mount(fstype, place, fstype, data=",".join((*options, "noswap")))
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
    return mount.mount(fstype, place, fstype, data=",".join(options))
