"""What each snapshot's directory says of itself, in its file `row`: the witness for when the store lost its rows."""

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.store.copies import VERSION, seal, unseal
from holdfast.store.images import SnapshotRow

log = logging.getLogger(__name__)

NAME: Final = "row"
ROW_BYTES: Final = 64 * 1024


def write(place: Path, row: SnapshotRow) -> None:
    """Raises OSError."""
    files.write_atomic(place / NAME, seal({"version": VERSION, **asdict(row)}), sync=False)


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
