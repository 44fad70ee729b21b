"""Mounts inside a directory that somebody is about to delete: found, and taken out of the tree.

Whoever then deletes the directory, however plainly, finds nothing in it that was not its own. What was mounted lives on
wherever else it is mounted; nothing in it is opened, read or waited for, so that a server that is gone holds up nobody.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Iterable
from typing import Final

from holdfast.linux import files, mount
from holdfast.linux.mount import MountEntry

MEMORY: Final = frozenset({"tmpfs", "hugetlbfs"})
TRIES: Final = 16  # somebody may mount while this is done
MOVED: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EXDEV})  # look again
NO_LINKS: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_XDEV


def strangers(directory: str, mounts: Iterable[MountEntry]) -> list[MountEntry]:
    """Those of `mounts` that are not the directory's own, what lies deeper last.

    Its own may be one: memory that is mounted at the directory itself, all of it, below all else that is mounted there,
    which hides nothing (it came first) and is seen nowhere but in the same pod's directories (else it is somebody's who
    has bound it here). Of those that are mounted one upon the other the topmost comes first.
    """
    mounts = tuple(mounts)
    inside = {one.id: one for one in mounts if f"{one.target}/".startswith(f"{directory}/")}
    pod = _pod(directory)

    def below(one: MountEntry) -> MountEntry | None:
        """What it lies upon at the same place."""
        lower = inside.get(one.parent)
        return lower if lower is not None and lower.target == one.target else None

    heights: dict[int, int] = {}
    for one in inside.values():
        pile = [one]
        while (lower := below(pile[-1])) is not None and lower.id not in heights:
            pile.append(lower)
        for upper in reversed(pile):
            heights[upper.id] = 0 if (lower := below(upper)) is None else heights[lower.id] + 1

    def is_own(one: MountEntry) -> bool:
        if one.target != directory or one.fstype not in MEMORY or one.root != "/" or heights[one.id]:
            return False
        if any(other.device == one.device and pod not in other.target for other in mounts):
            return False
        return all(other is one or other.parent != one.parent for other in inside.values())

    found = (one for one in inside.values() if not is_own(one))
    return sorted(found, key=lambda one: (one.target.count("/"), -heights[one.id]))


def _pod(directory: str) -> str:
    """ "/pods/UID/" of a volume .../pods/UID/volumes/KIND/NAME: a kubelet's root may be seen in several places."""
    return "/".join(("", *directory.split("/")[-5:-3], ""))


def detach_strangers(directory: str) -> list[MountEntry]:
    """Take them out of the tree, with all that is mounted in them. Returns what was there.

    `directory` is absolute and without links. Raises OSError EBUSY for what does not go.
    """
    found: dict[int, MountEntry] = {}
    failed: OSError | None = None
    for _ in range(TRIES):
        mounts = mount.mountinfo()
        left = strangers(directory, mounts)
        if not left:
            return list(found.values())
        found |= {one.id: one for one in left if one.id not in found}
        failed = _detach_all(directory, left, {one.parent for one in mounts}) or failed
    left = strangers(directory, mount.mountinfo())
    if left:
        why = failed.strerror if failed is not None else "something is mounted there again and again"
        raise OSError(errno.EBUSY, f"cannot be detached: {why}", left[0].target)
    return list(found.values())


def _detach_all(directory: str, left: Iterable[MountEntry], parents: Collection[int]) -> OSError | None:
    """Those that are not in one that was detached just now, and so have gone with it. Returns a failure."""
    gone: set[int] = set()
    failed = None
    for one in left:
        try:
            if one.parent not in gone:
                _detach(directory, one, one.id in parents)
            gone.add(one.id)
        except OSError as exc:
            if exc.errno not in MOVED:
                failed = exc
    return failed


def _detach(directory: str, one: MountEntry, has_more: bool) -> None:
    """Detach one that no other stranger lies above; on the way to it is neither a link nor a mount.

    What is mounted in it would be unmounted wherever else that is seen as well, on the host of whoever has mounted all
    of it here, too: so it is made private first. Otherwise nothing of it is looked at, as its server may be gone.
    """
    with contextlib.ExitStack() as closing:

        def opened(fd: int) -> int:
            closing.callback(os.close, fd)
            return fd

        way = os.path.relpath(one.target, directory)
        if way == ".":
            place = directory
        else:
            parent = opened(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            above, name = os.path.split(way)
            if above:
                parent = opened(files.openat2(parent, above, os.O_PATH | os.O_DIRECTORY, NO_LINKS))
            place = f"/proc/self/fd/{parent}/{name}"
        if has_more:
            top = opened(os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            if mount.mount_id(top) != one.id:
                raise OSError(errno.ENOENT, "something else is mounted there by now", one.target)
            mount.seclude(top)
        mount.detach(place)
