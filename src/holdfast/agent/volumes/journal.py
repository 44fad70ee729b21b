"""What is known of one volume, in a small file: written before anything of it is made, removed after all of it is gone.

So whatever a crash leaves has a name, and means that were chosen once stay: a volume that is limited by a quota is not
sought in an image because the filesystem was mounted otherwise meanwhile.
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from holdfast.agent.volumes.paths import Key, Paths, listed
from holdfast.linux import files

VERSION: Final = 1
MOST_BYTES: Final = 64 * 1024
SIZE: Final = 512  # of a file, which a disk writes at once: it can be written over when the disk is full
_TYPES: Final = {"shape": str, "means": str, "project": int, "group": int, "made": bool}


@dataclass(frozen=True, slots=True)
class Entry:
    """`shape` is as in world.Desired, "" when that is not known. `means` says how an emptyDir is limited: "", "memory",
    "quota" or "loop"; `project` is the quota's. `group` is whose it was made, -1 for nobody's; `made`: completely."""

    shape: str = ""
    means: str = ""
    project: int = 0
    group: int = -1
    made: bool = False


def load(paths: Paths, key: Key) -> Entry | None:
    """None when there is none. One that cannot be understood is an empty entry: something may be there.

    Raises OSError.
    """
    try:
        found = json.loads(files.read_bounded(paths.journal(key), MOST_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return Entry()
    except OSError as exc:
        if exc.errno == errno.EFBIG:
            return Entry()
        raise
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        return Entry()
    if set(found) != set(_TYPES) or any(type(found[name]) is not kind for name, kind in _TYPES.items()):
        return Entry()
    return Entry(**found)


def write(paths: Paths, key: Key, entry: Entry) -> None:
    """Nothing is written that is there already. Raises OSError."""
    if load(paths, key) == entry:
        return None
    files.make_private(paths.pods)
    place = paths.journal(key)
    files.mkdir(place.parent, 0o700, parents=True, exist_ok=True)
    files.sync_directory(place.parent.parent)
    data = json.dumps({"version": VERSION, **asdict(entry)}).encode().ljust(SIZE, b"\n")
    if len(data) == SIZE and place.exists() and place.stat().st_size == SIZE:
        return files.overwrite(place, data, sync=True)
    return files.write_atomic(place, data)


def remove(paths: Paths, key: Key) -> None:
    """And, of the directories that it was in, those that are empty now. Idempotent."""
    files.unlink(paths.journal(key))
    prune(paths, key.uid)


def prune(paths: Paths, uid: str) -> None:
    """Remove those of a pod's directories that are empty."""
    pod = paths.pod(uid)
    above = (*listed(pod / "volumes"), *listed(pod / "volume-subpaths"))
    for path in (*above, pod / "volumes", pod / "volume-subpaths", paths.journals(uid), pod):
        with contextlib.suppress(OSError):  # it is in use, or gone
            os.rmdir(path)


def sweep(directory: Path) -> None:
    """Remove what writes have left that were cut short, while nobody writes. Raises OSError."""
    for path in listed(directory):
        if files.temporary_age(path.name) is not None:
            files.unlink(path)
