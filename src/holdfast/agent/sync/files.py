"""Files of a pod beside its volumes: /etc/hosts, and what its containers leave as their last words.

pods/UID/etc-hosts
pods/UID/containers/NAME/ATTEMPT    mounted at terminationMessagePath
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import names, record
from holdfast.agent.sync.convert import HOSTS
from holdfast.agent.volumes import journal
from holdfast.agent.volumes.paths import Paths, listed
from holdfast.linux import files, spare
from holdfast.linux.files import write_atomic

MESSAGE_LIMIT: Final = 4096  # bytes, a kubelet's
LOG_LIMIT: Final = 2048
LOG_LINES: Final = 80
HOSTS_LIMIT: Final = 1 << 20
RECORDS_SPARE: Final = spare.beside(Path(record.FILE)).name


def write_hosts(paths: Paths, pod: Pod, addresses: Iterable[str]) -> Path:
    """Where it is. One that says the same stays: containers have it mounted."""
    try:
        own = files.read_bounded(HOSTS, HOSTS_LIMIT).decode(errors="replace")
    except OSError:
        own = "127.0.0.1\tlocalhost\n"
    text = names.hosts(pod, addresses, own).encode()
    path = paths.pod(pod.metadata.uid) / "etc-hosts"
    if not path.exists() or files.read_bounded(path, 2 * HOSTS_LIMIT) != text:
        files.make_private(path.parent)
        write_atomic(path, text, 0o644)
    return path


def message_path(paths: Paths, uid: str, container: str, attempt: int) -> Path:
    return paths.pod(uid) / "containers" / container / str(attempt)


def make_message(paths: Paths, uid: str, container: str, attempt: int) -> Path:
    """An empty file that anybody may write to who can reach it."""
    path = message_path(paths, uid, container, attempt)
    files.make_private(path.parent.parent)
    files.make_private(path.parent)
    write_atomic(path, b"", 0o666, sync=False)
    return path


def last_words(paths: Paths, pod: Pod, container: Container, attempt: int, code: int, log: Path) -> str:
    """What a container that has ended leaves to be said; of one that failed the end of its log, if it is to be that."""
    said = _tail(message_path(paths, pod.metadata.uid, container.name, attempt), MESSAGE_LIMIT)
    if not said and code and container.termination_message_policy == "FallbackToLogsOnError":
        lines = _tail(log, LOG_LIMIT).splitlines()[-LOG_LINES:]
        said = "\n".join(line.split(" ", 3)[-1] for line in lines)
    return said


def _tail(path: Path, limit: int) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return ""
        file.seek(max(found.st_size - limit, 0))
        return file.read(limit).decode(errors="replace")


def remove_pod(paths: Paths, uid: str, log_directory: str = "") -> None:
    """What a pod has beside its volumes and its record. Idempotent. Raises OSError."""
    directory = paths.pod(uid)
    files.unlink(directory / "etc-hosts")
    for tree in (directory / "containers", *([Path(log_directory)] if log_directory else [])):
        if tree.exists():
            files.remove_tree(tree)
    with contextlib.suppress(OSError):  # its record, volumes or somebody else's are in it, or it is gone
        files.rmdir(directory)


def rests(paths: Paths) -> set[str]:
    """Uids of which nothing is left but what `remove_rest` removes."""

    def is_rest(directory: Path) -> bool:
        return {path.name for path in listed(directory)} <= {"etc-hosts", "containers", RECORDS_SPARE}

    return {path.name for path in listed(paths.pods) if paths.is_pod(path.name) and path.is_dir() and is_rest(path)}


def remove_rest(paths: Paths, uid: str) -> None:
    """What a pod without a record has beside its volumes. Idempotent. Raises OSError."""
    files.unlink(paths.pod(uid) / RECORDS_SPARE)
    remove_pod(paths, uid)


def sweep(paths: Paths) -> None:
    """Remove what writes have left that were cut short, while nobody writes. Raises OSError."""
    for directory in (paths.root, paths.root / "applied", *listed(paths.pods)):
        journal.sweep(directory)
