"""Volumes of files: written aside and switched to at once, as a kubelet's are, so that readers see all old or all new.

..2026_11_21_13_12_09.4f3a09bc/   the files, in a directory of their own for each version
..data -> ..2026_11_21_13_12_09.4f3a09bc
NAME -> ..data/NAME               for each name at the top

Versions are compared with what is in the files, which a power cut may have emptied.
"""

import contextlib
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from holdfast.agent.volumes import ownership
from holdfast.agent.volumes.ownership import Group
from holdfast.agent.volumes.payload import File, Payload
from holdfast.linux import files
from holdfast.linux.inject import crashpoint

DATA: Final = "..data"
NEW: Final = "..data_tmp"


def write(directory: Path, payload: Payload, group: int | None = None) -> bool:
    """Make a volume hold these files and no others. Idempotent. Returns whether there was something to do.

    `directory` is written to by nobody else. Raises OSError.
    """
    current = _current(directory)
    same = current is not None and _holds(directory / current, payload, group)
    if not same:
        current = _written(directory, payload, group)
        crashpoint("volume.files-written")
        _link(directory, DATA, current)
        crashpoint("volume.files-switched")
    assert current is not None
    tops = {one.path.partition("/")[0] for one in payload}
    for name in sorted(tops):
        _link(directory, name, f"{DATA}/{name}")
    for name in os.listdir(directory):
        if name not in tops and name not in (DATA, current):
            files.remove_tree(directory / name)
    return not same


def _written(directory: Path, payload: Payload, group: int | None) -> str:
    """The name of a new version."""
    name = f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime())}.{secrets.token_hex(4)}"
    top = directory / name
    files.mkdir(top)
    os.chmod(top, 0o755)
    for one in payload:
        place = top / one.path
        for above in reversed(place.relative_to(top).parents[:-1]):
            with contextlib.suppress(FileExistsError):
                files.mkdir(top / above)
                os.chmod(top / above, 0o755)
        _write(place, one)
    if group is not None:
        ownership.apply(top, Group(group), read_only=True)
    return name


def _write(place: Path, one: File) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(one.content)
        os.fchmod(file.fileno(), one.mode)


def _current(directory: Path) -> str | None:
    """The version that is shown."""
    try:
        return os.readlink(directory / DATA)
    except OSError:
        return None


def _holds(version: Path, payload: Payload, group: int | None) -> bool:
    """Whether a version has these files and no others, and they are the group's."""
    found = {os.path.join(at, name) for at, _, names in os.walk(version) for name in names}
    if found != {os.path.join(version, one.path) for one in payload} or not version.is_dir():
        return False
    return all(_is(version / one.path, one, group) for one in payload)


def _is(place: Path, one: File, group: int | None) -> bool:
    found = place.lstat()
    mode = stat.S_IFREG | one.mode
    if group is not None:
        mode = ownership.mode_for(mode, read_only=True)
        if found.st_gid != group:
            return False
    return found.st_mode == mode and found.st_size == len(one.content) and place.read_bytes() == one.content


def _link(directory: Path, name: str, target: str) -> None:
    """Make a name lead to `target`, at no moment being nothing if it was a link before."""
    try:
        if os.readlink(directory / name) == target:
            return
    except FileNotFoundError:
        pass
    except OSError:  # such as a directory, made for a subPath while there was no such file
        files.remove_tree(directory / name)
    files.unlink(directory / NEW)
    os.symlink(target, directory / NEW)
    files.rename(directory / NEW, directory / name)
