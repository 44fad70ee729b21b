"""Gives the files of an image to the users of a pod, where the filesystem cannot show them as theirs.

A worker of its own, locked into the container's own overlay as an unpacker is into its layer: every file that it gives
away is copied up by that, so that the layers stay what they are. Ids that the pod does not have are left alone.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final

from holdfast.linux import files
from holdfast.linux.inject import crashpoint, fault
from holdfast.model.userns import UserNamespace
from holdfast.workers.context import Context
from holdfast.workers.unpacker import hung_up, lock_in

_KEEP: Final = frozenset({0, 2, 3, 4, 31})  # CHOWN, DAC_READ_SEARCH, FOWNER, FSETID, SETFCAP
_CAPABILITY: Final = "security.capability"
_REVISION_2: Final = 0x02000000  # of struct vfs_cap_data, linux/capability.h
_REVISION_3: Final = 0x03000000  # the same with the root of the user namespace in which it counts
_REVISION: Final = 0xFF000000


def shift(users: UserNamespace, abandoned: Callable[[], bool]) -> None:
    """Everything below `/`, which is the target, once. Raises OSError; ECANCELED when nobody waits for it any more."""
    seen: set[tuple[int, int]] = set()
    _give("/", users, seen)
    for directory, names, others in os.walk("/"):
        if abandoned():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        for name in (*names, *others):
            _give(os.path.join(directory, name), users, seen)


def _give(path: str, users: UserNamespace, seen: set[tuple[int, int]]) -> None:
    fault("chown", path)
    found = os.lstat(path)
    if (found.st_dev, found.st_ino) in seen:
        return  # another name of it
    uid, gid = users.outside(found.st_uid, found.st_gid)
    capability = _capability(path, users) if stat.S_ISREG(found.st_mode) else None
    os.chown(path, uid, gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(path, stat.S_IMODE(found.st_mode))  # chown(2) clears set-id bits, and file capabilities
    if capability is not None:
        os.setxattr(path, _CAPABILITY, capability)
    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
        now = os.lstat(path)
        seen.add((now.st_dev, now.st_ino))


def _capability(path: str, users: UserNamespace) -> bytes | None:
    """The file's capabilities as they have to be for the pod's root, capabilities(7); None when it has none."""
    try:
        value = os.getxattr(path, _CAPABILITY)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise
    (magic,) = struct.unpack_from("<I", value)
    if magic & _REVISION != _REVISION_2:
        return value
    return struct.pack("<I", magic & ~_REVISION | _REVISION_3) + value[4:] + struct.pack("<I", users.uid)


def main(context: Context) -> None:
    """fds: a socket for the one message that tells how it went: {} or {"errno", "message"}."""
    (result_fd,) = context.fds
    args = context.args
    context.ready()
    with socket.socket(fileno=result_fd) as result:
        found: dict[str, object] = {}
        try:
            target = os.open(args["target"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock_in(args["target"], args["work"], args["merged"], args["lowers"], _KEEP)
            crashpoint("shift.started")
            shift(UserNamespace(**args["users"]), hung_up(result))
            files.syncfs(target)
            crashpoint("shift.synced")
        except OSError as exc:
            found = {"errno": exc.errno or errno.EIO, "message": exc.strerror or str(exc)}
        with contextlib.suppress(BrokenPipeError):
            result.sendall(json.dumps(found).encode())
