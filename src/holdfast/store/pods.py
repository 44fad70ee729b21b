"""Rows of pods, containers, intents and reports: functions on a connection, for use inside Store.write and read.

Every column is a field of its own; what is not a field of the model does not exist here.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import astuple, fields
from typing import Any, Final, TypeVar

import apsw

from holdfast.model.errors import AlreadyExists, NotFound
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef

log = logging.getLogger(__name__)

T = TypeVar("T")
Tx = apsw.Connection
Row = tuple[Any, ...]

KEEP_REPORTS: Final = 10

_POD_META: Final = tuple(field.name for field in fields(PodMetadata))
_CONTAINER_META: Final = tuple(field.name for field in fields(ContainerMetadata))
_POD_STATUS: Final = (
    "ready", "stopped_at", "netns", "network", "shim_pid", "shim_start_time", "shim_boot_id", "reason",
    "resources",
)  # fmt: skip
_CONTAINER_STATUS: Final = (
    "started_at", "finished_at", "exit_code", "reason", "message",
    "pid", "start_time", "boot_id", "oom_kills", "unknown", "resources", "user",
)  # fmt: skip


def insert_pod(tx: Tx, meta: PodMetadata, status: PodStatus) -> None:
    """Raises AlreadyExists with the id that has the name."""
    key = (meta.name, meta.namespace, meta.uid, meta.attempt)
    holder = tx.execute("SELECT id FROM pods WHERE (name, namespace, uid, attempt) = (?, ?, ?, ?)", key).fetchone()
    if holder is not None:
        what = f"{meta.namespace}/{meta.name} (uid {meta.uid}, attempt {meta.attempt})"
        raise AlreadyExists(f"cannot run pod sandbox {what}: {holder[0]} has that name", holder[0])
    _insert(tx, "pods", (*_POD_META, *_POD_STATUS), (*astuple(meta), *_pod_columns(status)))


def insert_container(tx: Tx, meta: ContainerMetadata, status: ContainerStatus) -> None:
    """Raises AlreadyExists with the id that has the name."""
    key = (meta.pod_id, meta.name, meta.attempt)
    holder = tx.execute("SELECT id FROM containers WHERE (pod_id, name, attempt) = (?, ?, ?)", key).fetchone()
    if holder is not None:
        what = f"{meta.name} (attempt {meta.attempt}) in pod sandbox {meta.pod_id}"
        raise AlreadyExists(f"cannot create container {what}: {holder[0]} has that name", holder[0])
    _insert(tx, "containers", (*_CONTAINER_META, *_CONTAINER_STATUS), (*astuple(meta), *_container_columns(status)))


def update_pod(tx: Tx, pod_id: str, change: Callable[[PodStatus], PodStatus]) -> PodStatus:
    """Replace the status by a function of itself. Raises NotFound."""
    row = tx.execute(f"SELECT {', '.join(_POD_STATUS)} FROM pods WHERE id = ?", (pod_id,)).fetchone()
    if row is None:
        raise NotFound(f"cannot update pod sandbox {pod_id}: it does not exist")
    before = _pod_status(row)
    after = change(before)
    if after != before:
        _update(tx, "pods", pod_id, _POD_STATUS, _pod_columns(after))
    return after


def update_container(
    tx: Tx, container_id: str, change: Callable[[ContainerStatus], ContainerStatus]
) -> ContainerStatus:
    """Replace the status by a function of itself. Raises NotFound."""
    row = tx.execute(f"SELECT {', '.join(_CONTAINER_STATUS)} FROM containers WHERE id = ?", (container_id,)).fetchone()
    if row is None:
        raise NotFound(f"cannot update container {container_id}: it does not exist")
    before = _container_status(row)
    after = change(before)
    if after != before:
        _update(tx, "containers", container_id, _CONTAINER_STATUS, _container_columns(after))
    return after


def delete_pod(tx: Tx, pod_id: str) -> None:
    tx.execute("DELETE FROM intents WHERE object_id = ?", (pod_id,))
    tx.execute("DELETE FROM pods WHERE id = ?", (pod_id,))


def delete_container(tx: Tx, container_id: str) -> None:
    tx.execute("DELETE FROM intents WHERE object_id = ?", (container_id,))
    tx.execute("DELETE FROM containers WHERE id = ?", (container_id,))


def load_pods(
    tx: Tx, check: Callable[[PodMetadata, PodStatus], object] = lambda *_: None
) -> list[tuple[PodMetadata, PodStatus]]:
    """All pods, the oldest first. A row that cannot be read, or whose `check` raises, is moved to the quarantine
    table, and its containers with it."""
    count = len(_POD_META)

    def decode(row: Row) -> tuple[PodMetadata, PodStatus]:
        meta, status = PodMetadata(*row[:count]), _pod_status(row[count:])
        check(meta, status)
        return meta, status

    return _load(tx, "pods", (*_POD_META, *_POD_STATUS), "created_at", decode)


def load_containers(
    tx: Tx, check: Callable[[ContainerMetadata], object] = lambda meta: None
) -> list[tuple[ContainerMetadata, ContainerStatus]]:
    """All containers, the oldest first. A row that cannot be read, or whose `check` raises, is moved to the
    quarantine table."""
    count = len(_CONTAINER_META)

    def decode(row: Row) -> tuple[ContainerMetadata, ContainerStatus]:
        meta = ContainerMetadata(*row[:count])
        check(meta)
        return meta, _container_status(row[count:])

    return _load(tx, "containers", (*_CONTAINER_META, *_CONTAINER_STATUS), "created_at", decode)


def put_intent(tx: Tx, intent: Intent) -> None:
    """Record an intent, or replace the one for the same operation."""
    row = (intent.object_id, intent.op, intent.since, json.dumps(intent.data))
    tx.execute("INSERT OR REPLACE INTO intents (object_id, op, since, data) VALUES (?, ?, ?, ?)", row)


def clear_intent(tx: Tx, object_id: str, op: str) -> None:
    tx.execute("DELETE FROM intents WHERE object_id = ? AND op = ?", (object_id, op))


def load_intents(tx: Tx) -> list[Intent]:
    """All intents, the oldest first. A row that cannot be read is moved to the quarantine table."""

    def decode(row: Row) -> Intent:
        object_id, op, since, data = row
        return Intent(object_id, op, since, json.loads(data))

    return _load(tx, "intents", ("object_id", "op", "since", "data"), "since", decode)


def get_meta(tx: Tx, key: str) -> str:
    """A value of the node as a whole; "" when it was never set."""
    row = tx.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def set_meta(tx: Tx, key: str, value: str) -> None:
    tx.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))


def save_report(tx: Tx, report: str) -> None:
    """Keep a recovery report, and only the last few."""
    tx.execute("INSERT INTO reports (json) VALUES (?)", (report,))
    tx.execute("DELETE FROM reports WHERE id <= (SELECT max(id) FROM reports) - ?", (KEEP_REPORTS,))


def last_report(tx: Tx) -> str:
    """The newest recovery report as JSON, or ""."""
    row = tx.execute("SELECT json FROM reports ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row else ""


def quarantined(tx: Tx) -> list[tuple[str, str, str]]:
    """(table, key, reason) of every row that was set aside; the key of a pod or container is its id."""
    return [(origin, key, reason) for origin, key, reason in tx.execute("SELECT origin, key, reason FROM quarantine")]


def set_aside(tx: Tx, table: str, key: str, row: str, reason: str) -> None:
    """Keep, in the quarantine table, a row as text that cannot be one."""
    log.error("row %s of table %s is set aside: %s", key, table, reason)
    tx.execute("INSERT INTO quarantine (origin, key, row, reason) VALUES (?, ?, ?, ?)", (table, key, row, reason))


def forget_quarantined(tx: Tx, key: str) -> None:
    """What was set aside of an object is not needed any more."""
    tx.execute("DELETE FROM quarantine WHERE key = ?", (key,))


def _insert(tx: Tx, table: str, columns: tuple[str, ...], values: tuple[Any, ...]) -> None:
    places = ", ".join("?" * len(columns))
    tx.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", values)


def _update(tx: Tx, table: str, key: str, columns: tuple[str, ...], values: tuple[Any, ...]) -> None:
    assignments = ", ".join(f"{column} = ?" for column in columns)
    tx.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*values, key))


def _load(tx: Tx, table: str, columns: tuple[str, ...], order: str, decode: Callable[[Row], T]) -> list[T]:
    """Decode every row by itself: text that is not UTF-8 fails as soon as it is fetched."""
    found = []
    query = f"SELECT {', '.join(columns)} FROM {table} WHERE rowid = ?"
    rowids: list[Row] = tx.execute(f"SELECT rowid FROM {table} ORDER BY {order}, rowid").fetchall()
    for (rowid,) in rowids:
        try:
            row = tx.execute(query, (rowid,)).fetchone()
            if row is not None:
                found.append(decode(row))
        except apsw.Error:
            raise
        except Exception as exc:  # whatever is wrong with one row, the others are loaded
            _quarantine(tx, table, columns, rowid, f"{type(exc).__name__}: {exc}")
    return found


def _quarantine(tx: Tx, table: str, columns: tuple[str, ...], rowid: int, reason: str) -> None:
    """Move a row, as JSON, out of the way; the containers of a pod go with it, since they refer to it."""
    if table == "pods":
        query = "SELECT rowid FROM containers WHERE pod_id = (SELECT id FROM pods WHERE rowid = ?)"
        containers: list[Row] = tx.execute(query, (rowid,)).fetchall()
        names = (*_CONTAINER_META, *_CONTAINER_STATUS)
        for (container,) in containers:
            _quarantine(tx, "containers", names, container, "its pod sandbox cannot be read")
    values = {}
    for name in columns:
        raw: Row = tx.execute(f"SELECT typeof({name}), CAST({name} AS BLOB) FROM {table} WHERE rowid = ?", (rowid,)).get
        values[name] = _readable(*raw)
    key = str(values[columns[0]])
    set_aside(tx, table, key, json.dumps(values), reason)
    tx.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))


def _readable(kind: str, value: bytes | None) -> Any:
    """A column as JSON can have it: blobs, and text that is not UTF-8, in hexadecimal."""
    if value is None or kind == "integer":
        return None if value is None else int(value)
    try:
        return {"hex": value.hex()} if kind == "blob" else value.decode()
    except UnicodeDecodeError:
        return {"hex": value.hex()}


def _ref(pid: Any, start_time: Any, boot_id: Any) -> ProcessRef | None:
    return None if pid is None else ProcessRef(int(pid), int(start_time), str(boot_id))


def _ref_columns(ref: ProcessRef | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if ref is None else (ref.pid, ref.start_time, ref.boot_id)


def _pod_columns(status: PodStatus) -> tuple[Any, ...]:
    shim = _ref_columns(status.shim)
    return (status.ready, status.stopped_at, status.netns, status.network, *shim, status.reason, status.resources)


def _pod_status(row: Row) -> PodStatus:
    ready, stopped_at, netns, network, pid, start_time, boot_id, reason, resources = row
    return PodStatus(bool(ready), stopped_at, netns, network, _ref(pid, start_time, boot_id), reason, resources)


def _container_columns(status: ContainerStatus) -> tuple[Any, ...]:
    before = (status.started_at, status.finished_at, status.exit_code, status.reason, status.message)
    return (*before, *_ref_columns(status.process), status.oom_kills, status.unknown, status.resources, status.user)


def _container_status(row: Row) -> ContainerStatus:
    started_at, finished_at, exit_code, reason, message, *rest = row
    pid, start_time, boot_id, oom_kills, unknown, resources, user = rest
    ref = _ref(pid, start_time, boot_id)
    return ContainerStatus(
        started_at, finished_at, exit_code, reason, message, ref, oom_kills, bool(unknown), resources, user
    )
