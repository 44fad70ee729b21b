"""What cannot be read is set aside by renaming, never deleted: below `<root>/quarantine`, under a name of its own."""

import logging
import time
from pathlib import Path
from typing import Final

from holdfast.linux import files

log = logging.getLogger(__name__)

QUARANTINE: Final = "quarantine"


def place_for(root: Path, name: str) -> Path:
    """Where something called so goes when it cannot be read; not made yet."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    directory = root / QUARANTINE
    names = (f"{name}-{stamp}{f'.{number}' if number else ''}" for number in range(1000))
    return next(place for name in names if not (place := directory / name).exists())


def set_aside(root: Path, path: Path, why: str) -> Path:
    """Returns where it is now. Raises OSError."""
    place = place_for(root, path.name)
    files.make_private(place.parent)
    files.rename(path, place)
    log.error("%s was moved to %s: %s", path, place, why)
    return place
