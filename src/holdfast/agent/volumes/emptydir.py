"""emptyDir: a directory that a pod has for as long as it is there (ADR 40).

On disk it is a plain directory. One with a sizeLimit is held to it by the kernel: by a project quota where the
filesystem has them, else as a filesystem of its own in an image that has all its room from the beginning. Memory and
HugePages are filesystems in memory. Which of these was chosen is in the journal, and stays.
"""

import errno
import os
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from holdfast.agent.volumes import journal, memory, ownership
from holdfast.agent.volumes.journal import Entry
from holdfast.agent.volumes.ownership import Group
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.linux import files, loop, mount, quota
from holdfast.linux.inject import crashpoint

MODE: Final = 0o777
FIRST_PROJECT: Final = 1 << 30  # a kubelet's begin at 1 << 20
PROJECTS: Final = 1 << 30
MKFS_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class EmptyDir:
    """`size` is the limit in bytes, None for none; `page` the size of huge pages in bytes, 0 for a tmpfs."""

    medium: str = ""
    size: int | None = None
    page: int = 0
    group: Group | None = None


def set_up(paths: Paths, key: Key, shape: str, wanted: EmptyDir) -> Path:
    """Make the directory, or find that it is there; what is in it is left as it is. Idempotent. Raises OSError."""
    entry = journal.load(paths, key)
    if entry is None or not entry.shape:
        entry = _chosen(paths, key, shape, wanted)
        journal.write(paths, key, entry)
    crashpoint("volume.journalled")
    place = _place(paths, key, entry)
    if entry.made and entry.means != "loop" and not os.path.lexists(place):
        entry = replace(entry, made=False)  # what there was of it is going by way of the trash
        journal.write(paths, key, entry)
    is_new = _make(place)
    crashpoint("volume.made")
    is_new = _SET_UP[entry.means](paths, key, place, wanted, entry) or is_new or not entry.made
    if is_new:
        os.chmod(place, MODE)
    group = wanted.group.id if wanted.group is not None else -1
    if wanted.group is not None and (is_new or group != entry.group):
        ownership.apply(place, wanted.group)
    crashpoint("volume.given")
    journal.write(paths, key, replace(entry, made=True, group=group))
    return place


def own_device(paths: Paths, key: Key) -> str | None:
    """The number of the device that is mounted for it, and is nobody else's."""
    return loop.device_of(paths.image(key.uid, key.name))


def release(paths: Paths, key: Key) -> None:
    """Give back what stands behind a volume whose directory is gone. Idempotent. Raises OSError."""
    image, entry = paths.image(key.uid, key.name), journal.load(paths, key)
    if entry is not None and entry.made:
        journal.write(paths, key, replace(entry, made=False))  # if it is wanted again, then from the beginning
        crashpoint("volume.unmade")
    for path in (image, _part(image)):
        files.unlink(path)
    if entry is not None and entry.project and quota.enforced(paths.pods):
        quota.limit(paths.pods, entry.project, 0)


def _chosen(paths: Paths, key: Key, shape: str, wanted: EmptyDir) -> Entry:
    if wanted.medium:
        return Entry(shape, "memory")
    if wanted.size is None:
        return Entry(shape)
    files.make_private(paths.pods)
    if not quota.enforced(paths.pods):
        return Entry(shape, "loop")
    return Entry(shape, "quota", _free_project(paths, key))


def _free_project(paths: Paths, key: Key) -> int:
    """The number of a project that is nobody's; where one begins to look no two volumes are likely to meet."""
    first = zlib.crc32(f"{key.uid}/{key.name}".encode()) % PROJECTS
    for number in range(first, first + PROJECTS):
        found = FIRST_PROJECT + number % PROJECTS
        if quota.project(paths.pods, found).free:
            return found
    raise OSError(errno.ENOSPC, "every project has a quota", os.fspath(paths.pods))


def _place(paths: Paths, key: Key, entry: Entry) -> Path:
    if entry.means == "loop":  # a mount at the usual place would be a stranger's to whoever guards those (ADR 38)
        return paths.sized(key.uid, key.name)
    return paths.volume(key.uid, key.kind, key.name)


def _make(place: Path) -> bool:
    """Returns whether it was not there."""
    files.mkdir(place.parent, 0o750, parents=True, exist_ok=True)
    try:
        files.mkdir(place)
    except FileExistsError:
        return False
    return True


def _plain(_paths: Paths, _key: Key, _place: Path, _wanted: EmptyDir, _entry: Entry) -> bool:
    return False


def _in_memory(_paths: Paths, _key: Key, place: Path, wanted: EmptyDir, _entry: Entry) -> bool:
    return memory.set_up(place, wanted.size or 0, wanted.page)


def _by_quota(paths: Paths, _key: Key, place: Path, wanted: EmptyDir, entry: Entry) -> bool:
    if not quota.enforced(paths.pods):
        raise OSError(errno.ENODEV, "was made with a project quota, which this filesystem has no more", str(place))
    if not entry.made:
        assert wanted.size is not None
        quota.limit(paths.pods, entry.project, max(wanted.size, 1))
        crashpoint("volume.limited")
        quota.assign(place, entry.project)
    return False


def _in_image(paths: Paths, key: Key, place: Path, wanted: EmptyDir, entry: Entry) -> bool:
    assert wanted.size is not None
    image = paths.image(key.uid, key.name)
    if not image.exists():
        if entry.made:
            raise FileNotFoundError(errno.ENOENT, "what was in the volume has gone with its image", str(image))
        _make_image(image, wanted.size)
    device = loop.device_of(image)
    if device is None or not any(one.target == str(place) and one.device == device for one in mount.mountinfo()):
        with loop.attached(image) as path:
            crashpoint("volume.attached")
            mount.mount(path, place, "ext4")
        crashpoint("volume.image-mounted")
    if not entry.made and (place / "lost+found").is_dir():
        files.rmdir(place / "lost+found")  # an emptyDir is empty
    return False


def _make_image(image: Path, size: int) -> None:
    """With all its blocks: on a disk that gets full meanwhile, a write in the volume does not fail for that."""
    part = _part(image)
    files.unlink(part)
    free = files.filesystem(image.parent).free_bytes
    if size > free:
        raise OSError(errno.ENOSPC, f"a sizeLimit of {size} bytes is more than the {free} that are free", str(image))
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            crashpoint("volume.image-begun")
            _mkfs(part)
            os.posix_fallocate(descriptor, 0, size)  # where nothing is written mkfs has given room back
            files.fsync(descriptor, part)
        finally:
            os.close(descriptor)
    except OSError:
        files.unlink(part)
        raise
    crashpoint("volume.image-written")
    files.rename(part, image)
    files.sync_directory(image.parent)
    crashpoint("volume.image-made")


def _mkfs(image: Path) -> None:
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", os.fspath(image)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MKFS_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as exc:
        raise OSError(errno.ETIMEDOUT, f"mkfs.ext4: no end after {MKFS_SECONDS:g} s", str(image)) from exc
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise OSError(errno.EIO, f"mkfs.ext4: {said or f'exit code {done.returncode}'}", str(image))


def _part(image: Path) -> Path:
    return image.with_name(f"{image.name}.part")


_SET_UP: Final[Mapping[str, Callable[[Paths, Key, Path, EmptyDir, Entry], bool]]] = {
    "": _plain,
    "memory": _in_memory,
    "quota": _by_quota,
    "loop": _in_image,
}
