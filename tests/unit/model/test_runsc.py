"""runsc's files and words."""

import json

import pytest

from holdfast.model import gvisor

POD, ID = "p" * 64, "c" * 64


def test_whose_a_file_is() -> None:
    state = gvisor.state_file(ID, POD)
    assert gvisor.owner_of(state) == gvisor.owner_of(state.replace(".state", ".lock")) == ID
    assert gvisor.owner_of(f"runsc-{POD}.sock") == POD
    assert gvisor.owner_of("works.json") == gvisor.owner_of(ID) == ""


def test_with_the_sandbox_goes_all_that_is_of_its_pod() -> None:
    of_container, of_sandbox = gvisor.state_file(ID, POD), gvisor.state_file(POD, POD)
    assert gvisor.is_of(of_container, ID, POD) and gvisor.is_of(of_container, POD, POD)
    assert gvisor.is_of(of_sandbox, POD, POD) and not gvisor.is_of(of_sandbox, ID, POD)
    assert gvisor.is_of(f"runsc-{POD}.sock", POD, POD) and not gvisor.is_of(f"runsc-{POD}.sock", ID, POD)
    assert not gvisor.is_of(gvisor.state_file(ID, "q" * 64), ID, POD)
    assert not gvisor.is_of("stranger", POD, POD)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b'{"id":"c","exitStatus":143}\n', 143),
        (b'log line\n{"id":"c","exitStatus":0}\n', 0),
        (b'{"id":"c","exitStatus":"x"}', None),
        (b"loading container: file does not exist", None),
        (b"[3]", None),
        (b"", None),
    ],
)
def test_how_a_container_has_ended(said: bytes, code: int | None) -> None:
    assert gvisor.exit_code(said) == code


def test_what_a_container_uses() -> None:
    data = {"cpu": {"usage": {"total": 7}}, "memory": {"usage": {"usage": 8}}, "pids": {"current": 9}}
    assert gvisor.usage(json.dumps({"data": data}).encode()) == (7, 8, 9)
    asleep = {"cpu": {"usage": {}}, "memory": {"usage": {"usage": 8}}, "pids": {"current": 1}}
    assert gvisor.usage(json.dumps({"data": asleep}).encode()) == (0, 8, 1)
    assert gvisor.usage(b"{}") is None and gvisor.usage(b"what?") is None
    assert gvisor.usage(b'{"data": {"cpu": {"usage": 7}, "memory": {"usage": 8}, "pids": 9}}') is None


def test_the_status_in_a_state_file() -> None:
    assert gvisor.status(b'{"status": "created"}') == gvisor.CREATED
    assert gvisor.status(b"{}") == gvisor.status(b"\xff") == gvisor.status(b"[]") == ""


def test_distractions_are_more_than_a_procfs_remembers() -> None:
    found = gvisor.distractions(7)
    assert len(set(found)) > 1000 and len(found) == 2 * len(set(found))
    assert all(path.startswith("/proc/7/root/proc/1/fd") and len(path.rpartition("/")[2]) <= 255 for path in found)
    assert {int(path.rpartition("/")[2]) for path in found} == {0, 1, 2}


def test_pids_as_runsc_says_them() -> None:
    assert gvisor.pids(b"[\n 12,\n 2]\n") == [2, 12]
    assert gvisor.pids(b"") == gvisor.pids(b'{"pids": 1}') == gvisor.pids(b'["x"]') == []
