"""GetContainerEvents: what becomes of pods and containers, in order, with full status."""

import json
import threading
from collections.abc import Iterator

import grpc
import pytest
from kit.node import Node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

CREATED, STARTED, STOPPED, DELETED = range(4)


class Reader:
    """Follows events in a thread of its own."""

    def __init__(self, life: Node) -> None:
        self._channel = grpc.insecure_channel(f"unix:{life.socket}")
        self.seen: list[pb.ContainerEventResponse] = []
        self.error: grpc.RpcError | None = None
        self._call = RuntimeServiceStub(self._channel).GetContainerEvents(pb.GetEventsRequest())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.seen.append(event)
        except grpc.RpcError as exc:
            self.error = exc

    def close(self) -> None:
        self._call.cancel()
        self._thread.join()
        self._channel.close()

    def of(self, *ids: str) -> list[tuple[int, int]]:
        """(index of the id, kind) of each event about one of these, in order."""
        return [(ids.index(one.container_id), one.container_event_type) for one in self.seen if one.container_id in ids]


@pytest.fixture
def reader(life: Node) -> Iterator[Reader]:
    one = Reader(life)
    until(lambda: (life.remove_pod(life.run_pod()), one.seen)[1], "the stream to be there")
    yield one
    one.close()


def test_a_life_is_told_in_order_with_full_status(life: Node, reader: Reader) -> None:
    pod = life.run_pod()
    container = life.run(pod, "exit 7")
    life.exited(container)
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
    life.remove_pod(pod)
    until(lambda: (0, DELETED) in reader.of(pod), "the last event")
    assert reader.of(pod, container) == [
        (0, CREATED), (0, STARTED), (1, CREATED), (1, STARTED), (1, STOPPED), (1, DELETED), (0, STOPPED), (0, DELETED),
    ]  # fmt: skip
    stopped = next(one for one in reader.seen if (one.container_id, one.container_event_type) == (container, STOPPED))
    assert stopped.pod_sandbox_status.id == pod
    assert [(one.id, one.exit_code) for one in stopped.containers_statuses] == [(container, 7)]
    assert [one.created_at for one in reader.seen] == sorted(one.created_at for one in reader.seen)


def test_what_happened_while_the_daemon_was_down_is_told_by_its_list_not_by_events(life: Node) -> None:
    pod = life.run_pod()
    container = life.run(pod, "while [ ! -e /end ]; do sleep 0.02; done; exit 9")
    root = f"/proc/{life.pid(container)}/root"
    one = Reader(life)
    life.kill()
    until(lambda: one.error is not None, "the stream to break")
    one.close()
    with open(f"{root}/end", "w"):
        pass
    life.start()
    assert life.exited(container).exit_code == 9
    life.remove_pod(pod)


def test_a_reader_does_not_hold_up_the_daemons_end(life: Node, reader: Reader) -> None:
    life.restart(15)
    until(lambda: not reader._thread.is_alive(), "the stream to end")


def told(life: Node, *arguments: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in life.cli("events", "-o", "json", *arguments).stdout.splitlines()]


def test_the_command_line_asks_for_what_it_has_missed(life: Node) -> None:
    pod = life.run_pod()
    container = life.run(pod, "exit 3")
    life.exited(container)

    def of_pod() -> list[dict[str, object]]:
        return [one for one in told(life, "--since", "0", "--no-follow") if one.get("pod_id") == pod]

    until(lambda: of_pod()[-1]["kind"] == "cleaned", "its task to be gone")
    before = of_pod()
    assert [one["kind"] for one in before] == ["created", "started", "created", "started", "stopped", "cleaned"]
    assert (before[-2]["id"], before[-2]["exit_code"], before[-2]["reason"]) == (container, 3, "Error")
    life.remove_pod(pod)
    after = told(life, "--since", str(before[-1]["number"]), "--no-follow")
    assert [(one["object"], one["kind"]) for one in after] == [
        ("pod", "stopped"), ("container", "deleted"), ("pod", "deleted"),
    ]  # fmt: skip
    assert "container stopped  main" in life.cli("events", "--since", "0", "--no-follow").stdout


def test_events_of_an_earlier_daemon_are_told_as_a_gap(life: Node) -> None:
    life.remove_pod(life.run_pod())
    seen = told(life, "--since", "0", "--no-follow")[-1]["number"]
    life.restart()
    life.remove_pod(life.run_pod())
    gap, *rest = told(life, "--since", str(seen), "--no-follow")
    assert gap["kind"] == "gap"
    assert [one["kind"] for one in rest] == ["created", "started", "stopped", "deleted"]


def test_a_number_that_has_not_been_reached_is_refused(life: Node) -> None:
    found = life.cli("events", "--since", str(1 << 62), check=False)
    assert found.returncode == 1
    assert "since: " in found.stderr
