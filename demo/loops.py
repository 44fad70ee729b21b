"""The filesystem in a file, mounted by a loop device of which nothing is left."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted(image: Path, place: Path, *options: str) -> Iterator[Path]:
    """What is in such a file, seen at `place`."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", ",".join(("loop", *options)), str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a test that failed may have files open
        _await_release(image)


def _await_release(image: Path, seconds: float = 10.0) -> None:
    """The kernel lets go of a loop device when the last user of the filesystem has gone, a moment after the unmount."""
    deadline = time.monotonic() + seconds
    files = Path("/sys/block").glob
    while any(_backing(path).startswith(str(image)) for path in files("loop*/loop/backing_file")):  # or what it was
        if time.monotonic() > deadline:
            return  # whoever holds it is named by what the tests count at their end
        time.sleep(0.01)


def _backing(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
