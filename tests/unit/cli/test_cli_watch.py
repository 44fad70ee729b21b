"""pods --watch: what is told of two lists, and across a daemon that goes and comes."""

import pytest

from holdfast.cli.client import Client
from holdfast.cli.errors import Unreachable
from holdfast.cli.watch import ADDED, DELETED, MODIFIED, changes, watch
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb


def pod(name: str, state: str = "SANDBOX_READY", at: int = 0) -> pb.PodSandbox:
    return pb.PodSandbox(id=name, metadata=pb.PodSandboxMetadata(name=name), state=state, created_at=at)


def test_changes_are_the_difference_of_two_lists() -> None:
    before = {one.id: one for one in (pod("stays"), pod("ends"), pod("goes"))}
    now = {one.id: one for one in (pod("new", at=2), pod("stays"), pod("ends", "SANDBOX_NOTREADY", at=1))}
    assert list(changes(before, now)) == [(MODIFIED, now["ends"]), (ADDED, now["new"]), (DELETED, before["goes"])]
    assert list(changes(now, now)) == []


class Daemon:
    """Answers with one list after the other; at "away" it does not answer, and events end."""

    def __init__(self, *lists: list[pb.PodSandbox] | str) -> None:
        self._lists = iter(lists)

    def pods(self) -> list[pb.PodSandbox]:
        found = next(self._lists)
        if isinstance(found, str):
            raise Unreachable(found)
        return found

    def node(self) -> "Daemon":
        return self

    def errors(self) -> "Daemon":
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def Events(self, _: node_pb2.EventsRequest) -> "Daemon":
        return self

    def initial_metadata(self) -> None: ...

    def cancel(self) -> None: ...

    def __iter__(self) -> "Daemon":
        return self

    def __next__(self) -> node_pb2.Event:
        return node_pb2.Event(kind="gap")  # whatever it is, the list tells what has become of it


def test_a_restart_is_a_list_like_any_other(capsys) -> None:
    a, b, ended = pod("a"), pod("b"), pod("a", "SANDBOX_NOTREADY")
    daemon = Daemon([a], [a], "away", "away", [ended, b], [b])
    found = watch(daemon, lambda one: one.id == "a")  # type: ignore[arg-type]
    assert [next(found) for _ in range(3)] == [(ADDED, [a]), (MODIFIED, [ended]), (DELETED, [ended])]
    assert capsys.readouterr().err.count("\n") == 2


def test_who_is_not_wanted_any_more_is_still_told() -> None:
    ready, ended = pod("a"), pod("a", "SANDBOX_NOTREADY")
    daemon = Daemon([ready], [ended], [])
    found = watch(daemon, lambda one: one.state == pb.SANDBOX_READY)  # type: ignore[arg-type]
    assert [next(found) for _ in range(3)] == [(ADDED, [ready]), (MODIFIED, [ended]), (DELETED, [ended])]


def test_without_a_daemon_at_first_it_is_an_error() -> None:
    with pytest.raises(Unreachable, match=r"is holdfastd running\?"):
        next(watch(Client("/nonexistent.sock", 1), lambda _: True))
