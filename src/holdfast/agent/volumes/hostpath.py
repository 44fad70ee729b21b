"""hostPath: what of the host a pod is given, and what that has to be (Kubernetes' hostPath types).

Without a type nothing is looked at. What is made stays when the pod goes: it is the host's.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

from holdfast.agent.pod.volumes import HostPath
from holdfast.linux import files

_KINDS: Final[dict[str, tuple[str, Callable[[int], bool]]]] = {
    "DirectoryOrCreate": ("directory", stat.S_ISDIR),
    "Directory": ("directory", stat.S_ISDIR),
    "FileOrCreate": ("file", stat.S_ISREG),
    "File": ("file", stat.S_ISREG),
    "Socket": ("socket", stat.S_ISSOCK),
    "CharDevice": ("character device", stat.S_ISCHR),
    "BlockDevice": ("block device", stat.S_ISBLK),
}


def check(wanted: HostPath) -> str:
    """The path, which is of the type that is asked for, made if that says so. Raises OSError, ValueError."""
    if not wanted.type:
        return wanted.path
    if wanted.type == "DirectoryOrCreate" and not os.path.lexists(wanted.path):
        files.mkdir(wanted.path, 0o755, parents=True, exist_ok=True)
    if wanted.type == "FileOrCreate" and not os.path.lexists(wanted.path):
        with contextlib.suppress(FileExistsError):  # its directory has to be there
            os.close(os.open(wanted.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    what, is_that = _KINDS[wanted.type]
    if not is_that(os.stat(wanted.path).st_mode):
        raise ValueError(f"hostPath {wanted.path} is no {what}")
    return wanted.path
