"""User namespaces in which nobody lives, for id-mapped mounts: whose a file is there differs from whose it is on disk.

user_namespaces(7); mount_setattr(2), "ID-mapped mounts".
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Iterator
from typing import NoReturn

from holdfast.linux import namespace, process

Mappings = Iterable[tuple[int, int, int]]  # as in uid_map: first id inside, first id outside, how many


@contextlib.contextmanager
def user_namespace(uids: Mappings, gids: Mappings) -> Iterator[int]:
    """A descriptor of a user namespace with these mappings.

    Forks, so it is for a process with one thread. Raises OSError: EINVAL for mappings that the kernel does not take.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = process.fork()
    if pid == 0:
        _live_in_namespace(write)
    try:
        os.close(write)
        if (failure := int.from_bytes(os.read(read, 1))) != 0:
            raise OSError(failure, f"unshare: {os.strerror(failure)}")
        for name, mappings in (("uid_map", uids), ("gid_map", gids)):
            lines = "".join(f"{inside} {outside} {length}\n" for inside, outside, length in mappings)
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:  # one write: the kernel takes no second
                file.write(lines.encode())
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _live_in_namespace(told: int) -> NoReturn:
    """The child: it tells 0 or what has failed, and waits to be killed."""
    try:
        process.signal_at_parents_death(signal.SIGKILL)
        namespace.unshare(namespace.CLONE_NEWUSER)
        os.write(told, bytes(1))
        signal.pause()
    except OSError as exc:
        os.write(told, bytes([exc.errno or errno.EIO]))
    finally:
        os._exit(0)
