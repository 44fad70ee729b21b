"""Where bytes of strangers are parsed: a process that can do nothing but read and write what it has open."""

import os
import resource
import signal
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from holdfast.linux import mount, namespace, process

HOST: Final = -1
NONE: Final = -2
DATA_BYTES: Final = 256 * 1024 * 1024
_kept: list[object] = []


class _Nowhere(NamedTuple):
    """An empty directory that is attached nowhere."""

    type: str = "tmpfs"
    source: str = "none"
    options: tuple[str, ...] = ("ro", "nosuid", "nodev", "noexec", "mode=555", "size=4k")


def enter(keep: Iterable[int], files: int, *, network: int = NONE, parent: int = 0) -> None:
    """Keep these descriptors, and nothing else that could be of use. Raises OSError.

    `files` is up to which number there may be descriptors. `network` is the descriptor of a network namespace to go to,
    HOST, or NONE for one in which there is nothing. With `parent` this process ends when that one does.
    """
    for number in (1, 2):
        os.dup2(0, number)  # nothing: the keeper's log cannot be written to from here
    process.close_fds_except([0, 1, 2, *keep, network])
    if network == NONE:
        namespace.unshare(namespace.CLONE_NEWNET)
    elif network != HOST:
        namespace.enter(f"/proc/self/fd/{network}", namespace.CLONE_NEWNET)
        os.close(network)
    nowhere = mount.open_detached(_Nowhere())
    os.fchdir(nowhere)
    os.close(nowhere)
    os.chroot(".")
    # An import from here on finds nothing. What was there is kept: freeing it would copy a megabyte of pages.
    _kept.extend((sys.path, sys.path_hooks, sys.path_importer_cache))
    sys.path, sys.path_hooks, sys.path_importer_cache = [], [], {}
    for what, limit in (
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, DATA_BYTES),
    ):
        resource.setrlimit(what, (limit, limit))
    process.become_nobody()
    if parent:
        process.signal_at_parents_death(signal.SIGKILL)  # which a change of user would undo
        if os.getppid() != parent:
            os._exit(1)
