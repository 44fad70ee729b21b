"""Rows of images, their names, blobs and snapshots: functions on a connection, for use inside Store.write and read."""

from dataclasses import dataclass
from typing import Any, Final

import apsw

Tx = apsw.Connection

SCHEMA: Final = """
CREATE TABLE images (id TEXT PRIMARY KEY, config BLOB NOT NULL, size INTEGER NOT NULL) STRICT;
CREATE TABLE image_names (
  name TEXT PRIMARY KEY,
  image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE image_blobs (
  image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  digest TEXT NOT NULL REFERENCES blobs (digest),
  PRIMARY KEY (image_id, digest)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
  key TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  parent TEXT REFERENCES snapshots (key),
  directory INTEGER NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  inodes INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """`kind` is "active", "view" or "committed"; `parent` is the key of a committed one, or None."""

    key: str
    kind: str
    parent: str | None
    directory: int
    bytes: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class ImageRow:
    """`names` are references by tag and by digest."""

    id: str
    config: bytes
    size: int
    names: tuple[str, ...]


def insert_snapshot(tx: Tx, row: SnapshotRow) -> None:
    """Raises apsw.ConstraintError for a key that is taken or a parent that does not exist."""
    values = (row.key, row.kind, row.parent, row.directory, row.bytes, row.inodes)
    tx.execute("INSERT INTO snapshots (key, kind, parent, directory, bytes, inodes) VALUES (?, ?, ?, ?, ?, ?)", values)


def commit_snapshot(tx: Tx, key: str, row: SnapshotRow) -> None:
    """Turn an active snapshot into a committed one under another key."""
    values = (row.key, row.kind, row.bytes, row.inodes, key)
    tx.execute("UPDATE snapshots SET key = ?, kind = ?, bytes = ?, inodes = ? WHERE key = ?", values)


def replace_snapshot(tx: Tx, key: str, row: SnapshotRow) -> None:
    """Give a committed snapshot the directory of an active one, which is no more."""
    delete_snapshot(tx, key)
    values = (row.directory, row.bytes, row.inodes, row.key)
    tx.execute("UPDATE snapshots SET directory = ?, bytes = ?, inodes = ? WHERE key = ?", values)


def delete_snapshot(tx: Tx, key: str) -> None:
    tx.execute("DELETE FROM snapshots WHERE key = ?", (key,))


def load_snapshots(tx: Tx) -> list[SnapshotRow]:
    query = "SELECT key, kind, parent, directory, bytes, inodes FROM snapshots"
    found: list[tuple[Any, ...]] = tx.execute(query).fetchall()
    return [SnapshotRow(*row) for row in found]


def put_image(tx: Tx, row: ImageRow, blobs: dict[str, int]) -> None:
    """Insert an image with its names and blobs; a name that another image has moves to this one."""
    insert = "INSERT INTO images (id, config, size) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET config = ?"
    tx.execute(insert, (row.id, row.config, row.size, row.config))
    for name in row.names:
        tx.execute("INSERT OR REPLACE INTO image_names (name, image_id) VALUES (?, ?)", (name, row.id))
    for digest, size in blobs.items():
        tx.execute("INSERT OR IGNORE INTO blobs (digest, size) VALUES (?, ?)", (digest, size))
        tx.execute("INSERT OR IGNORE INTO image_blobs (image_id, digest) VALUES (?, ?)", (row.id, digest))


def delete_image(tx: Tx, image_id: str) -> None:
    """Delete an image with its names. The rows of its blobs stay, for as long as their files are there."""
    tx.execute("DELETE FROM images WHERE id = ?", (image_id,))


def unused_blobs(tx: Tx) -> list[str]:
    """Digests that no image refers to any more; their files are to be deleted."""
    query = "SELECT digest FROM blobs WHERE digest NOT IN (SELECT digest FROM image_blobs)"
    return [str(digest) for (digest,) in tx.execute(query)]


def forget_blobs(tx: Tx, digests: list[str]) -> None:
    """Their files are gone; what an image refers to again stays."""
    for digest in digests:
        tx.execute("DELETE FROM blobs WHERE digest = ? AND digest NOT IN (SELECT digest FROM image_blobs)", (digest,))


def load_images(tx: Tx) -> list[ImageRow]:
    names: dict[str, list[str]] = {}
    found: list[tuple[Any, ...]] = tx.execute("SELECT name, image_id FROM image_names ORDER BY name").fetchall()
    for name, image_id in found:
        names.setdefault(image_id, []).append(name)
    rows: list[tuple[Any, ...]] = tx.execute("SELECT id, config, size FROM images").fetchall()
    return [ImageRow(image_id, config, size, tuple(names.get(image_id, ()))) for image_id, config, size in rows]


def names_of(tx: Tx, image_id: str) -> tuple[str, ...]:
    found = tx.execute("SELECT name FROM image_names WHERE image_id = ? ORDER BY name", (image_id,))
    return tuple(str(name) for (name,) in found)


def blobs_of(tx: Tx, image_id: str) -> dict[str, int]:
    """Digest and size of each."""
    query = "SELECT digest, size FROM blobs JOIN image_blobs USING (digest) WHERE image_id = ?"
    found: list[tuple[Any, ...]] = tx.execute(query, (image_id,)).fetchall()
    return dict(found)


def load_blobs(tx: Tx) -> dict[str, int]:
    found: list[tuple[Any, ...]] = tx.execute("SELECT digest, size FROM blobs").fetchall()
    return dict(found)
