"""What each snapshot's directory says of itself, in files beside its content.

`row` is the witness for when the store lost its rows. `seal` is the shape of a layer when all of it was on disk: the
witness for when the disk has lost some of it.
"""

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from holdfast.linux import files, tree
from holdfast.store.copies import VERSION, seal, unseal
from holdfast.store.images import SnapshotRow

log = logging.getLogger(__name__)

NAME: Final = "row"
SEAL: Final = "seal"
ROW_BYTES: Final = 64 * 1024
SHAPE_CHARS: Final = 64


def write(place: Path, row: SnapshotRow) -> None:
    """Raises OSError."""
    files.write_atomic(place / NAME, seal({"version": VERSION, **asdict(row)}), sync=False)


def seal_layer(place: Path, shape: str) -> None:
    """On disk on return. Raises OSError."""
    if shape:
        files.write_atomic(place / SEAL, shape.encode())


def is_sealed(place: Path) -> bool:
    """Whether a layer has the shape that it was sealed with, as far as anybody can tell.

    One without a readable seal (of a release that made none, say) or that cannot be looked at is not called damaged.
    """
    try:
        shape = files.read_bounded(place / SEAL, SHAPE_CHARS).decode()
        return len(shape) != SHAPE_CHARS or tree.measure_at(place / "fs").shape == shape
    except (OSError, ValueError) as exc:
        if not isinstance(exc, FileNotFoundError):
            log.warning("layer in %s cannot be held against its seal: %s", place, exc)
        return True


def mend(directory: Path, rows: list[SnapshotRow]) -> None:
    """Write those that are missing or say something else. Raises OSError."""
    said = {row.directory: row for row in read_all(directory)}
    for row in rows:
        if said.get(row.directory) != row and (directory / str(row.directory)).is_dir():
            write(directory / str(row.directory), row)


def read_all(directory: Path) -> list[SnapshotRow]:
    """Of every directory whose witness can be read; its number is that of the directory, whatever it says."""
    found: list[SnapshotRow] = []
    if not directory.is_dir():
        return found
    for name in os.listdir(directory):
        if not name.isdigit():
            continue
        try:
            fields = unseal(files.read_bounded(directory / name / NAME, ROW_BYTES))
        except (OSError, ValueError) as exc:
            log.warning("which snapshot has directory %s is not known: %s", directory / name, exc)
            continue
        fields.pop("version")
        found.append(SnapshotRow(**{**fields, "directory": int(name)}))
    return found
