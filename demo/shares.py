"""What is somebody else's and mounted in a pod's volume: a share of each kind, with canary files that must live on."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fuse import Mirror
from loops import mounted

from holdfast.linux import mount

FILES: Final = 20
SIZE: Final = 64 << 20
KINDS: Final = {
    "directory": "a directory of the same filesystem",
    "ext4": "an ext4 on a loop device",
    "fuse": "a filesystem in user space (FUSE)",
    "tmpfs": "a tmpfs",
    "twice": "a directory, mounted twice at the same place",
    "file": "a single file",
}
# What a privileged container does to have all of them, from /shares, in its volume /work, and then says.
MOUNT_ALL: Final = """
set -e
for kind in directory ext4 fuse tmpfs twice; do mkdir /work/$kind; mount --bind /shares/$kind /work/$kind; done
mount --bind /shares/twice /work/twice
touch /work/file; mount --bind /shares/file/d0/canary-0 /work/file
touch /work/mounted
"""


def fill(directory: Path) -> str:
    """Put canaries into it. Returns their digest."""
    for number in range(FILES):
        path = directory / f"d{number % 3}" / f"canary-{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number} of somebody else\n")
    return digest(directory)


def alive(directory: Path) -> int:
    """How many canaries are in it."""
    return len(list(directory.glob("d*/canary-*")))


def digest(directory: Path) -> str:
    """Of all names and all contents."""
    found = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        found.update(os.fsencode(path.relative_to(directory)))
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


@contextlib.contextmanager
def shares(place: Path) -> Iterator[dict[str, Path]]:
    """One of each kind below `place`, by kind: directories of the same filesystem, and others that are mounted there.

    They are in no peer group with anything: else a mount upon one is a mount upon the other.
    """
    found = {kind: place / kind for kind in KINDS}
    for path in found.values():
        path.mkdir(parents=True)
    with contextlib.ExitStack() as closing:
        mount.mount("nas", found["tmpfs"], "tmpfs")
        closing.callback(mount.detach, found["tmpfs"])
        disk = place / "disk"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        closing.enter_context(mounted(disk, found["ext4"]))
        (found["ext4"] / "lost+found").rmdir()
        behind = place / "behind"
        behind.mkdir()
        fill(behind)
        closing.callback(Mirror(found["fuse"], behind).release)
        for kind in ("ext4", "fuse", "tmpfs"):
            mount.set_propagation(found[kind], mount.MS_PRIVATE)
        for kind in KINDS.keys() - {"fuse"}:  # which shows what is behind it
            fill(found[kind])
        yield found
