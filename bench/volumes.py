"""The end of an emptyDir with very many files in it, and `rm -rf` of the same, in turns: what does being careful cost?

    python bench/volumes.py [--files N] [--rounds N] [--directory DIR]

Ours is all of agent.volumes.teardown: the table of mounts, the rename into the trash and onto the disk, the look for
mounts again, and the walk that crosses none. By default on an ext4 whose disk is memory: what others do to the disk
meanwhile would be in the figures. Needs root.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from holdfast.agent.volumes import teardown
from holdfast.agent.volumes.paths import Paths
from holdfast.linux import files, loop, mount

SHAPES = {"all in one directory": 0, "1,000 in a directory": 1000, "10 in a directory": 10}
UID, NAME = "bench", "work"


def fill(volume: Path, number: int, in_each: int) -> None:
    """0 in each is all in one."""
    volume.mkdir(parents=True)
    for first in range(0, number, in_each or number):
        place = volume / f"d{first}" if in_each else volume
        place.mkdir(exist_ok=True)
        directory = os.open(place, os.O_PATH)
        try:
            for one in range(in_each or number):
                os.close(os.open(f"file-{one}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, dir_fd=directory))
        finally:
            os.close(directory)
    descriptor = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.syncfs(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def ext4_in_memory(inodes: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf-bench-", dir="/dev/shm") as base:
        image, place = Path(base, "disk"), Path(base, "mounted")
        with image.open("wb") as file:
            file.truncate(4096 * inodes)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", str(inodes), image], check=True)
        place.mkdir()
        with loop.attached(image) as device:
            mount.mount(device, place, "ext4")
        try:
            yield place
        finally:
            mount.unmount(place)


def ours(paths: Paths, volume: Path) -> None:
    done = teardown.tear_down(volume, paths.discarded(UID, NAME))
    assert done == teardown.Teardown(), done


def theirs(_paths: Paths, volume: Path) -> None:
    subprocess.run(["rm", "-rf", str(volume)], check=True)


def measured(end: Callable[[Paths, Path], None], paths: Paths, number: int, in_each: int) -> float:
    volume = paths.volume(UID, "empty-dir", NAME)
    fill(volume, number, in_each)
    began = time.monotonic()
    end(paths, volume)
    seconds = time.monotonic() - began
    assert not volume.exists()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    table = Table("files", "teardown", "rm -rf", "ratio", title=f"{options.files:,} files, milliseconds", box=None)
    with contextlib.ExitStack() as stack:
        top = options.directory or stack.enter_context(ext4_in_memory(2 * options.files))
        base = Path(tempfile.mkdtemp(prefix="hf-bench-", dir=top))
        stack.callback(files.remove_tree, base)
        paths = Paths(base)
        for shape, in_each in SHAPES.items():
            rounds = [
                (measured(ours, paths, options.files, in_each), measured(theirs, paths, options.files, in_each))
                for _ in range(options.rounds)
            ]
            mine, other = (statistics.median(found) * 1000 for found in zip(*rounds, strict=True))
            table.add_row(shape, f"{mine:.0f}", f"{other:.0f}", f"{mine / other:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
