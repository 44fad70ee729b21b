"""OCI runtimes whose delete fails or hangs, and one whose binary is missing for a while."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit import invariants
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SECONDS = 8  # that a command of the runtime may take: one that is well takes less on the slowest of machines
SCRIPT = """#!/bin/sh
for word in "$@"; do
    if [ "$word" = delete ] && read how < {sick}/how 2> /dev/null; then
        echo x >> {sick}/tried
        [ $how = hang ] && exec sleep 1000
        echo '{{"level":"error","msg":"it does not want to"}}' > /dev/stderr
        exit 1
    fi
done
exec {crun} "$@"
"""


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    """A directory that says how the runtime is sick: "fail" or "hang" in the file `how`; `tried` counts."""
    return tmp_path


@pytest.fixture
def flaky(sick: Path) -> Iterator[Node]:
    binary = sick / "crun"  # by that name it is known to be one
    binary.write_text(SCRIPT.format(sick=sick, crun=shutil.which("crun")))
    binary.chmod(0o755)
    with node("flaky", runtimes={"flaky": {"binary": str(binary)}}, runtime_timeout=SECONDS) as one:
        yield one


def is_well(one: Node) -> None:
    pod = one.run_pod()
    container = one.run(pod, "exit 5")
    assert one.exited(container).exit_code == 5


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_a_runtimes_delete_that_does_not_succeed_hides_nothing_and_is_tried_again(
    flaky: Node, sick: Path, how: str
) -> None:
    pod = flaky.run_pod()
    beside = flaky.run(pod, ["/bin/sleep", "1000"], "beside")
    (sick / "how").write_text(f"{how}\n")
    one = flaky.run(pod, "exit 7", "one")
    status = flaky.exited(one)
    assert (status.exit_code, status.reason) == (7, "Error")
    until(lambda: (sick / "tried").exists() and len((sick / "tried").read_text().split()) >= 2, "it to be tried again")
    assert flaky.status(one) == status
    assert flaky.exec(beside, ["/bin/echo", "here"]).stdout == b"here\n"
    is_well(flaky)
    flaky.restart()
    assert flaky.status(one) == status
    (sick / "how").unlink()
    flaky.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one), 60)
    assert flaky.status(beside).state == pb.CONTAINER_RUNNING
    for pod in [one.id for one in flaky.pods()]:
        flaky.remove_pod(pod)
    invariants.check(flaky)
    until(lambda: not flaky.leftovers() and not list((flaky.state / "oci" / "flaky").iterdir()), "nothing to be left")


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    found = shutil.which("crun")
    assert found is not None
    return Path(shutil.copy(found, tmp_path / "crun"))


@pytest.mark.parametrize("shim_dies", [False, True], ids=["", "its shim dies"])
def test_a_runtime_that_is_missing_for_a_while_stops_nothing_that_runs(binary: Path, shim_dies: bool) -> None:
    with node("gone", runtimes={"gone": {"binary": str(binary)}}) as one:
        pod = one.run_pod()
        script = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
        running, stopped = one.run(pod, script), one.run(pod, script, "stopped")
        exited = one.run(pod, "exit 7", "exited")
        one.exited(exited)
        before = {one_.id: one_.state for one_ in one.containers()}
        pid = one.pid(running)
        away = binary.rename(binary.with_name("away"))
        if shim_dies:
            (shim,) = [worker.pid for worker in keeper.workers(one.state) if worker.id == pod]
            one.kill()
            os.kill(shim, signal.SIGKILL)
            one.start()
        else:
            one.restart()
        until(lambda: recovered(one), "recovery to end")
        assert {one_.id: one_.state for one_ in one.containers()} == before
        until(lambda: [p.state for p in one.pods()] == [pb.SANDBOX_READY], "the pod to be ready")
        assert one.pid(running) == pid and process.state(pid) not in ("Z", "")
        with pytest.raises(grpc.RpcError) as refused:
            one.run_pod()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert str(binary) in refused.value.details()
        assert [p.id for p in one.pods()] == [pod]
        one.stop_container(stopped, 10)
        assert one.status(stopped).exit_code == 3
        if not shim_dies:  # its shim has the runtime's program in memory
            one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=stopped))
            assert one.exec(running, ["/bin/echo", "here"]).stdout == b"here\n"
        away.rename(binary)
        another = one.run_pod()
        assert one.exited(one.run(another, "exit 5")).exit_code == 5
        assert one.exec(running, ["/bin/echo", "here"]).stdout == b"here\n"
        one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=exited), 60)
        for one_ in one.pods():
            one.remove_pod(one_.id)
        invariants.check(one)
        until(lambda: not one.leftovers(), "nothing to be left")


def test_a_node_whose_only_runtime_is_missing_starts_and_takes_its_pods_apart(binary: Path) -> None:
    """Its shim dead and adoption off, there is nobody left but the kernel to end them by."""
    with node("gone", runtimes={"gone": {"binary": str(binary)}}, on_shim_death="cleanup") as one:
        pod = one.run_pod()
        running = one.run(pod, ["/bin/sleep", "1000"])
        pid = one.pid(running)
        away = binary.rename(binary.with_name("away"))
        (shim,) = [worker.pid for worker in keeper.workers(one.state) if worker.id == pod]
        one.kill()
        os.kill(shim, signal.SIGKILL)
        one.start()
        assert one.exited(running).exit_code == 137
        assert process.state(pid) in ("Z", "")
        one.remove_pod(pod)
        invariants.check(one)
        until(lambda: not one.leftovers(), "nothing to be left")
        away.rename(binary)
