"""Small filesystems on loop devices, to be filled to the last byte and inode."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from loops import mounted

from holdfast.linux import mount

_MAKE: Final = {
    "ext4": (64 << 20, ["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "2048"]),
    # Which takes no less than 300 MB, and makes inodes as they are needed, of one per cent of the space at most.
    "xfs": (320 << 20, ["mkfs.xfs", "-q", "-f", "-i", "maxpct=1"]),
}
KINDS: Final = tuple(sorted(_MAKE))


def device(kind: str, directory: Path, size: int = 0, *options: str) -> Path:
    """A file with a filesystem in it; by default with nothing set aside for root."""
    usual, command = _MAKE[kind]
    image = directory / "disk"
    with image.open("wb") as file:
        file.truncate(max(size, usual))
    subprocess.run([*command, *options, str(image)], check=True, capture_output=True)
    return image


@contextlib.contextmanager
def handed_on(place: Path) -> Iterator[Path]:
    """A filesystem in memory there, that hands on what is mounted in it, as that of a host's volumes does."""
    place.mkdir()
    mount.mount("memory", place, "tmpfs")
    mount.set_propagation(place, mount.MS_SHARED)
    try:
        yield place
    finally:
        mount.unmount_tree(place)


def with_quotas(kind: str, directory: Path) -> Path:
    """A file with a filesystem that takes prjquota. Skips the test where the kernel was built without."""
    options = ("-O", "project,quota") if kind == "ext4" else ()
    image = device(kind, directory, 0, *options)
    try:
        with mounted(image, directory / "probe", "prjquota"):
            pass
    except subprocess.CalledProcessError:
        pytest.skip(f"this kernel has no project quotas on {kind}")
    return image


@contextlib.contextmanager
def small(kind: str, directory: Path, size: int = 0, *options: str) -> Iterator[Path]:
    """A filesystem of its own, mounted below `directory`."""
    with mounted(device(kind, directory, size, *options), directory / "mounted") as place:
        yield place


def fill(place: Path) -> None:
    """Take every block, and then every inode, that can be had: root's share as well."""
    fill_blocks(place)
    fill_inodes(place)


def free(place: Path) -> None:
    """Give back what was taken."""
    for path in (place / "hog", *place.glob("inode-*")):
        path.unlink(missing_ok=True)
    os.sync()


def fill_blocks(place: Path) -> None:
    descriptor = os.open(place / "hog", os.O_WRONLY | os.O_CREAT)
    size = 4 << 20
    try:
        while size >= 512:
            try:
                os.write(descriptor, b"h" * size)
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                size //= 2
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.sync()


def fill_inodes(place: Path) -> None:
    """Every inode, with blocks to spare perhaps."""
    for number in range(100_000):
        try:
            os.close(os.open(place / f"inode-{number}", os.O_WRONLY | os.O_CREAT))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            break
    else:
        raise AssertionError("there were inodes without end")
    os.sync()


@contextlib.contextmanager
def volatile(directory: Path, inodes: int = 4096) -> Iterator[Path]:
    """A small tmpfs, as a state directory should be, with 8 KiB to each inode."""
    place = directory / "s"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={inodes * 8}k,nr_inodes={inodes}", "hf", str(place)], check=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def is_full(place: Path) -> bool:
    try:
        (place / "one-more").write_bytes(b"x" * 8192)
    except OSError as exc:
        assert exc.errno == errno.ENOSPC
        return True
    finally:
        (place / "one-more").unlink(missing_ok=True)
    return False


def room(place: Path) -> int:
    """Bytes to be had there, by root too."""
    found = os.statvfs(place)
    return found.f_bfree * found.f_frsize
