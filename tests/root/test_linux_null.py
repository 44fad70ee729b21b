"""A null device that is nobody else's."""

import os
import stat
from pathlib import Path

import pytest

from holdfast.linux import null


@pytest.mark.alone
def test_it_is_null_and_not_the_hosts() -> None:
    before = len(Path("/proc/self/mountinfo").read_bytes().splitlines())
    one, other = null.open_own(), null.open_own()
    try:
        assert os.write(one, b"gone") == 4
        assert os.read(one, 10) == b""
        found = [os.fstat(descriptor) for descriptor in (one, other)] + [os.stat("/dev/null")]
        assert all(stat.S_ISCHR(each.st_mode) and each.st_rdev == os.makedev(1, 3) for each in found)
        assert stat.S_IMODE(found[0].st_mode) == 0o666
        assert len({(each.st_dev, each.st_ino) for each in found}) == 3
        os.fchmod(one, 0)
        os.close(os.open(f"/proc/self/fd/{other}", os.O_RDWR))
    finally:
        os.close(one)
        os.close(other)
    assert len(Path("/proc/self/mountinfo").read_bytes().splitlines()) == before
