"""Rows: what is written is read again; names are unique; a row that cannot be read does no harm to the others."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.model.errors import AlreadyExists, NotFound
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata, new_id
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef
from holdfast.store import copies, pods, salvage
from holdfast.store.copies import ContainerCopy
from holdfast.store.db import Store
from holdfast.store.migrations import MIGRATIONS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(0, 2**63 - 1)
PROCESS = st.none() | st.builds(ProcessRef, NUMBER, NUMBER, TEXT)
POD = st.builds(
    PodMetadata, st.builds(new_id), TEXT, TEXT, TEXT, st.integers(0, 2**32 - 1), TEXT, st.binary(max_size=50), TEXT,
    st.booleans(), NUMBER,
)  # fmt: skip
POD_STATUS = st.builds(PodStatus, st.booleans(), NUMBER, TEXT, TEXT, PROCESS, TEXT, st.binary(max_size=50))
CONTAINER_STATUS = st.builds(
    ContainerStatus, NUMBER, NUMBER, st.integers(0, 255), TEXT, TEXT, PROCESS, NUMBER, st.booleans(),
    st.binary(max_size=50), st.binary(max_size=50),
)  # fmt: skip


def database() -> apsw.Connection:
    tx = apsw.Connection(":memory:")
    tx.execute("PRAGMA foreign_keys = ON")
    for step in MIGRATIONS:
        tx.execute(step)
    return tx


@pytest.fixture
def tx() -> Iterator[apsw.Connection]:
    connection = database()
    yield connection
    connection.close()


def pod(name: str = "web", **more: object) -> PodMetadata:
    return replace(PodMetadata(new_id(), name, "default", "u1", 0, "crun", b"config", "/pods", True, 1), **more)


def container(pod_id: str, name: str = "main", **more: object) -> ContainerMetadata:
    meta = ContainerMetadata(new_id(), pod_id, name, 0, b"config", "image", "sha256:1", "key", "/log", "SIGTERM", 2)
    return replace(meta, **more)


@settings(max_examples=60, deadline=None)
@given(POD, POD_STATUS, POD_STATUS, TEXT, st.integers(0, 2**32 - 1), CONTAINER_STATUS, CONTAINER_STATUS)
def test_what_is_written_is_read_again(
    meta: PodMetadata,
    status: PodStatus,
    later: PodStatus,
    name: str,
    attempt: int,
    container_status: ContainerStatus,
    container_later: ContainerStatus,
) -> None:
    tx = database()
    inner = container(meta.id, name, attempt=attempt)
    pods.insert_pod(tx, meta, status)
    pods.insert_container(tx, inner, container_status)
    assert pods.load_pods(tx) == [(meta, status)]
    assert pods.load_containers(tx) == [(inner, container_status)]
    assert pods.update_pod(tx, meta.id, lambda before: later) == later
    assert pods.update_container(tx, inner.id, lambda before: container_later) == container_later
    assert pods.load_pods(tx) == [(meta, later)]
    assert pods.load_containers(tx) == [(inner, container_later)]
    tx.close()


def test_a_name_has_one_owner(tx: apsw.Connection) -> None:
    first = pod()
    pods.insert_pod(tx, first, PodStatus())
    with pytest.raises(AlreadyExists, match=r"default/web") as refused:
        pods.insert_pod(tx, pod(), PodStatus())
    assert refused.value.holder == first.id
    pods.insert_pod(tx, pod(attempt=1), PodStatus())
    one = container(first.id)
    pods.insert_container(tx, one, ContainerStatus())
    with pytest.raises(AlreadyExists, match="main") as refused:
        pods.insert_container(tx, container(first.id), ContainerStatus())
    assert refused.value.holder == one.id
    pods.insert_container(tx, container(first.id, attempt=1), ContainerStatus())
    pods.delete_container(tx, one.id)
    pods.insert_container(tx, container(first.id), ContainerStatus())


def test_the_index_refuses_what_the_question_before_it_missed(tx: apsw.Connection) -> None:
    meta = pod()
    pods.insert_pod(tx, meta, PodStatus())
    with pytest.raises(apsw.ConstraintError):
        tx.execute("INSERT INTO pods SELECT * FROM pods")
    with pytest.raises(apsw.ConstraintError):
        pods.insert_container(tx, container(new_id()), ContainerStatus())


def test_only_what_exists_is_updated(tx: apsw.Connection) -> None:
    with pytest.raises(NotFound):
        pods.update_pod(tx, "a", lambda before: before)
    with pytest.raises(NotFound):
        pods.update_container(tx, "a", lambda before: before)
    pods.delete_pod(tx, "a")
    pods.delete_container(tx, "a")


def test_intents_last_until_they_are_cleared(tx: apsw.Connection) -> None:
    meta = pod()
    pods.insert_pod(tx, meta, PodStatus())
    stop = Intent(meta.id, "stop", 5, {"deadline": 7, "signal": "SIGTERM"})
    pods.put_intent(tx, replace(stop, since=1))
    pods.put_intent(tx, stop)
    pods.put_intent(tx, Intent(meta.id, "remove", 3, {}))
    assert pods.load_intents(tx) == [Intent(meta.id, "remove", 3, {}), stop]
    pods.clear_intent(tx, meta.id, "remove")
    assert pods.load_intents(tx) == [stop]
    pods.delete_pod(tx, meta.id)
    assert pods.load_intents(tx) == []


def test_the_last_reports_are_kept(tx: apsw.Connection) -> None:
    assert pods.last_report(tx) == ""
    for number in range(30):
        pods.save_report(tx, json.dumps(number))
    assert pods.last_report(tx) == "29"
    assert tx.execute("SELECT count(*) FROM reports").get == pods.KEEP_REPORTS


def test_meta(tx: apsw.Connection) -> None:
    assert pods.get_meta(tx, "boot_id") == ""
    pods.set_meta(tx, "boot_id", "a")
    pods.set_meta(tx, "boot_id", "b")
    assert pods.get_meta(tx, "boot_id") == "b"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("shim_pid = 1, shim_boot_id = NULL, shim_start_time = NULL", "TypeError"),
        ("name = CAST(x'ff' AS TEXT)", "UnicodeDecodeError"),
        ("netns = CAST(x'c328' AS TEXT)", "UnicodeDecodeError"),
    ],
)
def test_a_pod_that_cannot_be_read_is_set_aside(tx: apsw.Connection, damage: str, reason: str) -> None:
    good, bad = pod("good"), pod("bad")
    for meta in (bad, good):
        pods.insert_pod(tx, meta, PodStatus())
        pods.insert_container(tx, container(meta.id), ContainerStatus())
    tx.execute(f"UPDATE pods SET {damage} WHERE id = ?", (bad.id,))
    assert [meta for meta, _ in pods.load_pods(tx)] == [good]
    assert [meta.pod_id for meta, _ in pods.load_containers(tx)] == [good.id]
    found = pods.quarantined(tx)
    assert [(origin, key) for origin, key, _ in found if origin == "pods"] == [("pods", bad.id)]
    assert reason in found[-1][2]
    assert [origin for origin, _, _ in found] == ["containers", "pods"]
    row = json.loads(tx.execute("SELECT row FROM quarantine WHERE origin = 'pods'").get)
    assert row["namespace"] == "default"
    assert row["config"] == {"hex": b"config".hex()}
    assert [meta for meta, _ in pods.load_pods(tx)] == [good]
    assert pods.quarantined(tx) == found


def test_a_row_whose_check_fails_is_set_aside(tx: apsw.Connection) -> None:
    good, bad = pod("good"), pod("bad", config=b"?")
    for meta in (good, bad):
        pods.insert_pod(tx, meta, PodStatus())

    def check(meta: PodMetadata, status: PodStatus) -> None:
        assert status == PodStatus()
        if meta.config == b"?":
            raise RuntimeError("not a config")

    assert [meta for meta, _ in pods.load_pods(tx, check)] == [good]
    assert pods.quarantined(tx) == [("pods", bad.id, "RuntimeError: not a config")]


def test_an_intent_that_cannot_be_read_is_set_aside(tx: apsw.Connection) -> None:
    pods.put_intent(tx, Intent("a", "stop", 1, {}))
    tx.execute("UPDATE intents SET data = '{'")
    pods.put_intent(tx, Intent("b", "stop", 1, {}))
    assert [intent.object_id for intent in pods.load_intents(tx)] == ["b"]
    assert [(origin, key) for origin, key, _ in pods.quarantined(tx)] == [("intents", "a")]


def test_a_name_that_was_set_aside_can_be_had_again(tx: apsw.Connection) -> None:
    meta = pod()
    pods.insert_pod(tx, meta, PodStatus(netns="x"))
    tx.execute("UPDATE pods SET netns = CAST(x'ff' AS TEXT)")
    assert pods.load_pods(tx) == []
    again = pod()
    pods.insert_pod(tx, again, PodStatus())
    assert [found.id for found, _ in pods.load_pods(tx)] == [again.id]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_store_of_the_first_release_is_read(tmp_path: Path, damaged: bool) -> None:
    """It knows no users of containers; whether it is opened or salvaged, every row is there."""
    path = tmp_path / "holdfast.db"
    old = apsw.Connection(str(path))
    for step in MIGRATIONS:
        old.execute(step)
    first = pod()
    pods.insert_pod(old, first, PodStatus())
    pods.insert_container(old, meta := container(first.id), ContainerStatus(started_at=5, user=b"gone"))
    later = "".join(
        f"ALTER TABLE {table} DROP COLUMN {column};"
        for table, column in (("containers", "user"), ("containers", "checkpoint"), ("pods", "resources"))
    )
    old.execute(f"{later} PRAGMA user_version = 1")
    old.close()
    if damaged:
        salvage.salvage(path, "a test says so")
    Store.open(path, 1 << 20).close()
    connection = apsw.Connection(str(path))
    assert pods.load_containers(connection) == [(meta, ContainerStatus(started_at=5))]
    connection.close()


def test_a_copy_of_a_later_release_is_read_as_far_as_it_is_known() -> None:
    copy = ContainerCopy(3, container(new_id()), ContainerStatus(started_at=5, user=b"u"))
    fields = copies.unseal(copies.encode(copy))
    fields["meta"]["more"] = fields["status"]["more"] = 1
    assert copies.decode(copy.id, copies.seal(fields)) == copy
    del fields["status"]["user"]
    assert copies.decode(copy.id, copies.seal(fields)) == replace(copy, status=ContainerStatus(started_at=5))
