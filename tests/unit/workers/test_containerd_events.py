"""containerd as an owner: the order of what it is told, and who is still a member of the group."""

from pathlib import Path

import pytest

from holdfast.proto import containerd_events_pb2, events_ttrpc_pb2
from holdfast.workers.containerd import events
from holdfast.workers.containerd.events import Containerd
from holdfast.workers.containerd.forward import Forwarder
from holdfast.workers.containerd.group import Group
from holdfast.workers.shim.loop import Lock, Loop
from holdfast.workers.shim.stdio import Stdio
from holdfast.workers.shim.task import Process, Task


class Kept(Forwarder):
    """Keeps what would be forwarded."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, "")
        self.told: list[events_ttrpc_pb2.Envelope] = []

    def put(self, request: bytes) -> None:
        self.told.append(events_ttrpc_pb2.ForwardRequest.FromString(request).envelope)

    @property
    def topics(self) -> list[str]:
        return [envelope.topic.removeprefix("/tasks/") for envelope in self.told]


@pytest.fixture
def kept(loop: Loop) -> Kept:
    return Kept(loop)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    made = Group(tmp_path / "group")
    with made.locked():
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            made.join(name, tmp_path / name)
    return made


@pytest.fixture
def owner(loop: Loop, kept: Kept, group: Group) -> Containerd:
    return Containerd(loop, kept, "ns", group)


def task(loop: Loop, directory: Path) -> Task:
    init = Process("", Stdio(loop, directory), ("", "", ""), False, pid=7, exit_code=3, exited_at=5)
    return Task("one", directory, init, Lock(loop))


def test_an_exit_waits_for_the_start_that_it_belongs_to(
    loop: Loop, owner: Containerd, kept: Kept, tmp_path: Path
) -> None:
    one = task(loop, tmp_path)
    with owner.starting(one.init):
        owner.exited(one, one.init)
        assert kept.topics == []
        owner.started(one, one.init)
    assert kept.topics == ["start", "exit"]
    assert {envelope.namespace for envelope in kept.told} == {"ns"}
    assert kept.told[1].event.type_url == "containerd.events.TaskExit"
    told = containerd_events_pb2.TaskExit.FromString(kept.told[1].event.value)
    assert (told.container_id, told.id, told.pid, told.exit_status) == ("one", "one", 7, 3)
    assert told.exited_at.ToNanoseconds() == 5


def test_an_exit_is_told_though_the_start_has_failed(loop: Loop, owner: Containerd, kept: Kept, tmp_path: Path) -> None:
    one = task(loop, tmp_path)
    with pytest.raises(OSError, match="no"), owner.starting(one.init):
        owner.exited(one, one.init)
        raise OSError("no")
    assert kept.topics == ["exit"]


def look(loop: Loop, owner: Containerd, tasks: set[str]) -> bool:
    outcome: list[bool] = []

    def done(nobody: bool, error: Exception | None) -> None:
        assert error is None
        outcome.append(nobody)

    loop.start(owner.look_after(tasks), done)
    return outcome[0]


def test_members_whose_bundle_is_gone_are_let_go(loop: Loop, owner: Containerd, group: Group, tmp_path: Path) -> None:
    assert not look(loop, owner, {"one"})
    assert set(group.members) == {"one", "two"}
    for name in ("one", "two"):
        (tmp_path / name).rmdir()
    assert not look(loop, owner, {"one"}), "it has a task"
    assert set(group.members) == {"one"}
    assert look(loop, owner, set())
    assert not group.directory.exists()


def test_members_without_a_task_for_too_long_are_let_go(
    loop: Loop, owner: Containerd, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not look(loop, owner, {"one"})
    monkeypatch.setattr(events, "FORGOTTEN_SECONDS", -1.0)
    assert not look(loop, owner, {"one"})
    assert set(group.members) == {"one"}
    monkeypatch.undo()
    assert not look(loop, owner, set()), "its time has only begun"
    monkeypatch.setattr(events, "FORGOTTEN_SECONDS", -1.0)
    assert look(loop, owner, set())


def test_only_the_last_to_leave_takes_the_group_along(loop: Loop, owner: Containerd, group: Group) -> None:
    outcome: list[bool] = []
    for name in ("one", "one", "two"):
        loop.start(owner.lets_go(name, idle=False), lambda last, _: outcome.append(last))
    assert outcome == [False, False, True]
    assert not group.directory.exists()
