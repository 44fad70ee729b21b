"""linux.mount without privileges: options."""

import pytest

from holdfast.linux import mount
from holdfast.linux.mount import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_SLAVE


@pytest.mark.parametrize(
    ("options", "flags", "propagation", "data"),
    [
        ([], 0, 0, ""),
        (["ro", "nosuid", "noexec", "nodev"], MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, 0, ""),
        (["ro", "rw", "nosuid", "suid"], 0, 0, ""),
        (["rbind", "rprivate"], MS_BIND | MS_REC, MS_PRIVATE | MS_REC, ""),
        (["bind", "slave", "ro"], MS_BIND | MS_RDONLY, MS_SLAVE, ""),
        (["size=1m", "nodev", "mode=755"], MS_NODEV, 0, "size=1m,mode=755"),
    ],
)
def test_parse_options(options: list[str], flags: int, propagation: int, data: str) -> None:
    assert mount.parse_options(options) == (flags, propagation, data)


def test_mountinfo_of_oneself_has_a_root() -> None:
    assert any(entry.target == "/" for entry in mount.mountinfo())
