"""The end of a volume, after which nothing of it is left and nothing of anybody else's is missing.

Only for whoever has seen proof that no container of the pod lives. Then, in this order:

    the directory gets another name, in a private directory, so that no path of before leads into it any more; what is
      mounted at the very directory is unmounted first, as the kernel wants it
    what others have mounted in it is detached, never looked into; what the agent has mounted for it is unmounted
    the directory is deleted by a walk that stops at every mount

Each step can be done again: after a crash it goes on with whatever is in the trash. What cannot be detached or deleted
stays, and it is said why.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files, mount, nested
from holdfast.linux.inject import crashpoint
from holdfast.linux.mount import MountEntry

TRIES: Final = 8  # somebody may go on mounting, with a descriptor that he has kept


@dataclass(frozen=True, slots=True)
class Teardown:
    """What became of it: what was detached from it, and why it is not gone; "" when it is."""

    detached: tuple[MountEntry, ...] = ()
    kept: str = ""


def tear_down(volume: Path, discarded: Path) -> Teardown:
    """Delete a volume by way of `discarded`, its name in the trash, on the same filesystem. Idempotent."""
    detached: list[MountEntry] = []
    for left in reversed(range(TRIES)):
        try:
            files.make_private(discarded.parent)
            files.rename(volume, discarded)
            files.sync_directory(volume.parent)
            files.sync_directory(discarded.parent)
            break
        except FileNotFoundError:
            return Teardown(tuple(detached))
        except OSError as exc:
            if exc.errno != errno.EBUSY or not left:  # EBUSY: something is mounted at the very directory
                return Teardown(tuple(detached), _why(exc))
            if why := _unmount(volume, detached):
                return Teardown(tuple(detached), why)
    crashpoint("volume.discarded")
    rest = empty(discarded)
    return Teardown((*detached, *rest.detached), rest.kept)


def empty(discarded: Path) -> Teardown:
    """Delete what is in the trash under this name, from wherever that stands. Idempotent."""
    detached: list[MountEntry] = []
    for left in reversed(range(TRIES)):
        if why := _unmount(discarded, detached):
            return Teardown(tuple(detached), why)
        crashpoint("volume.emptying")
        try:
            files.remove_tree(discarded)
            break
        except OSError as exc:
            if exc.errno != errno.EXDEV or not left:  # EXDEV: mounted behind our back
                return Teardown(tuple(detached), _why(exc))
    crashpoint("volume.removed")
    return Teardown(tuple(detached))


def _unmount(directory: Path, detached: list[MountEntry]) -> str:
    """What others have mounted there is added to `detached`. Returns why something is mounted there still."""
    try:
        detached += nested.detach_strangers(os.fspath(directory))
        _unmount_own(directory)
    except OSError as exc:
        return _why(exc)
    return ""


def _unmount_own(directory: Path) -> None:
    """What is mounted at the directory itself, and is no stranger there: memory that holds nothing else of value."""
    try:
        mount.unmount(directory)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            mount.detach(directory)
        elif exc.errno not in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there
            raise


def _why(exc: OSError) -> str:
    what = "immutable, or append-only" if exc.errno == errno.EPERM else exc.strerror or str(exc)
    return f"{exc.filename}: {what}" if exc.filename else what
