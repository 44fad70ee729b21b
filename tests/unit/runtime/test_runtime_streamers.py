"""A session's id says what it is and whose; who serves it is on record."""

import os
from pathlib import Path

import pytest

from holdfast.linux import process
from holdfast.model.spec import new_id as object_id
from holdfast.model.state import ProcessRef
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.streamers import ATTACH, EXEC, FORWARD, Streamers, kind_of, new_id, owner_of

POD, CONTAINER = "a" * 64, "b" * 64


@pytest.mark.parametrize("kind", [EXEC, ATTACH, FORWARD])
def test_an_id_says_what_it_is_and_whose(kind: str) -> None:
    owner = object_id()
    ids = {new_id(kind, owner) for _ in range(100)}
    assert len(ids) == 100
    assert {(kind_of(id), owner_of(id)) for id in ids} == {(kind, owner)}
    assert all(id.isalnum() and id == id.lower() and len(id) <= 76 for id in ids), "what containerd's shims take"


@pytest.mark.parametrize("other", ["", "e", "0123456789abcdef", CONTAINER, f"x0123456789{CONTAINER}", f"e{CONTAINER}"])
def test_what_is_no_sessions_id(other: str) -> None:
    assert kind_of(other) == ""


def test_records(tmp_path: Path) -> None:
    streamers = Streamers(tmp_path, Keeper(tmp_path / "keeper.sock"))
    (tmp_path / POD).mkdir()
    assert streamers.recorded(POD) == {}
    one, two = new_id(EXEC, CONTAINER), new_id(FORWARD, POD)
    streamers.record(POD, one, ProcessRef(7, 8, "boot"))
    streamers.record(POD, two, ProcessRef(9, 10, "boot"))
    (tmp_path / POD / "sessions" / new_id(EXEC, CONTAINER)).write_text("{")
    (tmp_path / POD / "sessions" / "somebody's").write_text("{}")
    assert streamers.recorded(POD) == {one: ProcessRef(7, 8, "boot"), two: ProcessRef(9, 10, "boot")}
    streamers.forget(POD, one)
    streamers.forget(POD, one)
    assert streamers.recorded(POD).keys() == {two}


async def test_nobody_is_ended_for_a_number_that_somebody_else_has_by_now(tmp_path: Path) -> None:
    """This very process has the pid, and is not the streamer."""
    streamers = Streamers(tmp_path, Keeper(tmp_path / "keeper.sock"))
    (tmp_path / POD).mkdir()
    me = os.getpid()
    streamers.record(POD, new_id(FORWARD, POD), ProcessRef(me, 1, process.boot_id()))
    streamers.record(POD, new_id(FORWARD, POD), ProcessRef(me, process.start_time(me) or 0, "another boot"))
    await streamers.end(POD, [POD])
