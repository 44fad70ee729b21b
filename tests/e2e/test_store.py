"""The daemon on a store in trouble: a disk that is full, rows that cannot be read."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import apsw
import grpc
import pytest
from kit import disk
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.model import witness
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb


@pytest.fixture(params=disk.KINDS)
def cramped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node whose root directory lies on a small filesystem of its own."""
    with disk.small(request.param, tmp_path) as place:
        one = Node()
        one.root = place
        try:
            one.start()
            one.busybox()
            yield one
        finally:
            disk.free(place)
            one.purge()


def report(life: Node) -> dict[str, list[str]]:
    """The recovery report of the last start, once it is complete."""
    stub = node_pb2_grpc.NodeStub(life.channel)
    return until(  # type: ignore[no-any-return]
        lambda: (found := json.loads(stub.Recovery(node_pb2.RecoveryRequest()).json))["total_milliseconds"] and found,
        "recovery to end",
    )


def test_exits_are_recorded_and_kept_on_a_full_disk(cramped: Node) -> None:
    pod = cramped.run_pod()
    waiting = cramped.create(pod, cramped.container_config("exit 3", "waiting"))
    ids = [cramped.run(pod, "trap 'exit 7' TERM; while :; do sleep 0.05; done", f"c{n}") for n in range(4)]
    disk.fill(cramped.root)
    assert disk.is_full(cramped.root)
    cramped.stop_container(ids[0], 10)
    assert cramped.exited(ids[0]).exit_code == 7
    cramped.kill()
    (init_file,) = (cramped.state / "pods").glob(f"*/{ids[1]}/init.json")
    init = witness.decode_init(init_file.read_bytes())
    with process.pin(init.pid, init.start_time) as running:
        assert running is not None
        running.send(signal.SIGKILL)
    cramped.start()
    assert cramped.exited(ids[1]).exit_code == 137
    assert cramped.status(ids[0]).exit_code == 7
    for one in ids[2:]:
        assert cramped.status(one).state == pb.CONTAINER_RUNNING
    assert cramped.status(waiting).state == pb.CONTAINER_CREATED
    cramped.restart()
    assert [cramped.status(one).exit_code for one in ids[:2]] == [7, 137]
    assert disk.is_full(cramped.root)
    cramped.remove_pod(pod)
    assert cramped.pods() == []
    assert not cramped.leftovers()


def test_what_cannot_be_made_on_a_full_disk_leaves_nothing(cramped: Node) -> None:
    pod = cramped.run_pod()
    disk.fill(cramped.root)
    with pytest.raises(grpc.RpcError) as refused:
        cramped.create(pod, cramped.container_config("exit 0"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "No space left" in refused.value.details() or "is full" in refused.value.details()
    assert cramped.containers() == []
    disk.free(cramped.root)
    assert cramped.exited(cramped.run(pod, "exit 5")).exit_code == 5
    cramped.remove_pod(pod)
    assert not cramped.leftovers()


@pytest.mark.parametrize("copied", [True, False], ids=["with-a-copy", "without"])
def test_a_row_that_cannot_be_read_costs_nobody_anything(copied: bool) -> None:
    """It is brought back from its copy; without one it is set aside, and what it is the row of is left alone."""
    with node() as life:
        pods = [life.run_pod(), life.run_pod()]
        ids = [life.run(pod, "sleep 1000") for pod in pods]
        pids = [life.pid(one) for one in ids]
        started = process.start_time(pids[0])
        life.end(signal.SIGTERM)
        database, copies = life.root / "holdfast.db", [life.root / "copies" / id for id in (pods[0], ids[0])]
        files = [path for path in life.root.iterdir() if path.name.startswith(database.name)]
        kept = life.base / "kept"
        kept.mkdir()
        for path in [*files, *copies]:
            shutil.copy2(path, kept)
        connection = apsw.Connection(str(database))
        connection.execute("UPDATE pods SET config = x'ffff' WHERE id = ?", (pods[0],))
        connection.close()
        if not copied:
            for path in copies:
                path.unlink()
        life.start()
        problems = report(life)["problems"]
        assert {pod.id for pod in life.pods()} == set(pods if copied else pods[1:])
        assert {one.id for one in life.containers()} == set(ids if copied else ids[1:])
        words = "brought back from its copy" if copied else "set aside"
        assert any(pods[0] in problem and words in problem for problem in problems)
        assert process.start_time(pids[0]) == started, "what belongs to the row was killed"
        life.end(signal.SIGTERM)
        for path in [*files, *copies]:
            shutil.copy2(kept / path.name, path)
        life.start()
        assert [life.pid(one) for one in ids] == pids
