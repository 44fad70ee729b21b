"""A store that cannot be worked with any more: what can be read goes into a new one, the old one into quarantine.

SQLite finds it corrupt, or it is empty, lost, or of a newer release, which an upgrade can go back to.

The order survives being killed anywhere. The new store is written beside the old one and renamed to
`<name>-salvaged` when it is whole and on disk; only then is the old one moved away, its log first, and the new one
takes its name. A start that finds `<name>-salvaged` does the rest.

The new store says in its meta table, under SALVAGED, that it came about so; as long as that is there nothing is swept.
It is taken away by the first recovery that finds an owner for everything there is.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apsw

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import NotFound
from holdfast.store.copy import copied
from holdfast.store.migrations import MIGRATIONS
from holdfast.store.quarantine import place_for

log = logging.getLogger(__name__)

SALVAGED: Final = "salvaged"  # meta: JSON, a list of sentences
PARTS: Final = ("-wal", "-journal", "-shm", "")  # the log first: it must never meet another database
TABLES: Final = (
    "meta", "pods", "containers", "intents", "reports", "quarantine",
    "images", "image_names", "blobs", "image_blobs", "snapshots",
)  # fmt: skip
_GAP: Final = 4096  # row numbers tried one by one behind a place that cannot be read

Row = tuple[Any, ...]


def is_lost(path: Path, witnesses: tuple[Path, ...]) -> bool:
    """Whether there was a store here once, of which nothing is left but its companions or what it knew of."""
    if path.exists() and path.stat().st_size:
        return False
    beside = any(path.with_name(f"{path.name}{part}").exists() for part in ("-wal", "-ballast"))
    return beside or any(place.is_dir() and any(place.iterdir()) for place in witnesses)


def told(connection: apsw.Connection) -> list[str]:
    """What was wrong with this store when it was salvaged; nothing for one that never was."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (SALVAGED,)).fetchone()
    return [str(line) for line in json.loads(row[0])] if row else []


def tell(connection: apsw.Connection, lines: list[str]) -> None:
    """Record what was lost; nothing when all that was lost is there again."""
    if lines:
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (SALVAGED, json.dumps(lines)))
    else:
        connection.execute("DELETE FROM meta WHERE key = ?", (SALVAGED,))


def finish(path: Path) -> None:
    """Complete a salvage that was cut off once the new store was whole; drop one that was not."""
    _unlink_all(path.with_name(f"{path.name}-partial"))
    if path.with_name(f"{path.name}-salvaged").exists():
        _replace(path)


def salvage(path: Path, problem: str) -> None:
    """Replace a damaged, empty or missing store by one with every row that can be read. Raises OSError, apsw.Error."""
    log.error("the store %s cannot be used (%s): what can be read of it is carried over", path, problem)
    path.with_name(f"{path.name}-ballast").unlink(missing_ok=True)  # it has no content; its room may be needed
    partial = path.with_name(f"{path.name}-partial")
    _unlink_all(partial)
    lines = [f"the store could not be used and was set aside: {problem}"]
    connection = apsw.Connection(str(partial))
    try:
        connection.execute("PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF")
        with connection:
            for statements in MIGRATIONS:
                connection.execute(statements)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            lines += _carry_over(path, connection)
            connection.execute("DELETE FROM meta WHERE key = 'generation'")  # of whatever has a copy, that is newer
            tell(connection, lines)
    finally:
        connection.close()
    crashpoint("salvage.written")
    files.rename(partial, path.with_name(f"{path.name}-salvaged"))
    files.sync_directory(path.parent)
    crashpoint("salvage.whole")
    _replace(path)


def _replace(path: Path) -> None:
    """The old store goes to quarantine, the new one takes its name."""
    parts = [old for part in PARTS if (old := path.with_name(f"{path.name}{part}")).exists()]
    if parts:
        place = place_for(path.parent, path.name)
        files.make_private(place.parent)
        files.mkdir(place, 0o700)
        for old in parts:
            files.rename(old, place / old.name)
            crashpoint("salvage.moved")
        for directory in (place, place.parent):
            files.sync_directory(directory)
        log.error("the old store was moved to %s", place)
    files.sync_directory(path.parent)
    files.rename(path.with_name(f"{path.name}-salvaged"), path)
    files.sync_directory(path.parent)
    crashpoint("salvage.done")


def _carry_over(path: Path, target: apsw.Connection) -> list[str]:
    """Copy every row that can be read. Returns what there is to say about each table."""
    told: list[str] = []
    try:
        with copied(path) as copy:  # looking into it mends and changes it
            source = apsw.Connection(str(copy))
            try:
                for table in TABLES:
                    told += _copy_table(source, target, table)
            finally:
                source.close()
    except (NotFound, OSError, apsw.Error) as exc:
        told.append(f"nothing of it could be read: {exc}")
    return told


def _copy_table(source: apsw.Connection, target: apsw.Connection, table: str) -> list[str]:
    columns, there = (_columns(one, table) for one in (target, source))
    if there:  # what an older release has not got comes with its default, what a newer one has added stays behind
        columns = [name for name in columns if name in there]
    keyed = "WITHOUT ROWID" in str(target.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get)
    names, places = ", ".join(columns), ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({places})"
    problems: list[str] = []
    count = 0
    for row in _by_key(source, table, names, problems) if keyed else _by_rowid(source, table, names, problems):
        try:
            target.execute(insert, row)
            count += target.changes()
        except apsw.Error as exc:
            problems.append(str(exc))
    if not problems:
        return []
    return [f"{count} rows of {table} could be read; {problems[0]}"]


def _columns(connection: apsw.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]


def _by_key(source: apsw.Connection, table: str, names: str, problems: list[str]) -> Iterator[Row]:
    """From both ends, each up to where it cannot be read."""
    for order in ("ASC", "DESC"):
        try:
            yield from source.execute(f"SELECT {names} FROM {table} ORDER BY 1 {order}")
        except (apsw.Error, UnicodeDecodeError) as exc:
            problems.append(str(exc))
        else:
            return


def _by_rowid(source: apsw.Connection, table: str, names: str, problems: list[str]) -> Iterator[Row]:
    """In the order of the file; behind a place that cannot be read, row by row until it can; and from the end back."""
    after = -1
    while (stopped := (yield from _scan(source, table, names, after, problems))) is not None:
        for rowid in range(stopped + 1, stopped + _GAP):
            try:
                row = source.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
            except (apsw.Error, UnicodeDecodeError):
                continue
            if row is not None:
                yield row
                after = rowid
        if after <= stopped:
            break
    else:
        return
    try:
        yield from source.execute(f"SELECT {names} FROM {table} NOT INDEXED ORDER BY rowid DESC")
    except (apsw.Error, UnicodeDecodeError):
        return


def _scan(source: apsw.Connection, table: str, names: str, after: int, problems: list[str]) -> Any:
    """Rows behind `after`. The value of the generator is the last number that could be read, None at the end."""
    last = after
    query = f"SELECT rowid, {names} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid"
    try:
        for rowid, *row in source.execute(query, (after,)):
            yield tuple(row)
            last = rowid
    except (apsw.Error, UnicodeDecodeError) as exc:
        problems.append(str(exc))
        return last
    return None


def _unlink_all(path: Path) -> None:
    for part in ("", "-wal", "-journal"):
        files.unlink(path.with_name(f"{path.name}{part}"))
