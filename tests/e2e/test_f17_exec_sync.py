"""F17: an ExecSync ends when its command does or its time is over, whatever was left running, and leaves nothing."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from kit import crash, resources
from kit.hung import slow_exec
from kit.node import Node, node, until

from holdfast.linux import process

WARM_UP = 300
ROUNDS = 60
MANY = 10_000


@pytest.fixture(scope="module", params=["crun", "runc"])
def life(request: pytest.FixtureRequest) -> Iterator[Node]:
    with node(request.param) as one:
        yield one


@pytest.fixture
def container(life: Node) -> Iterator[str]:
    pod = life.run_pod()
    yield life.run(pod, "sleep 5001")
    life.remove_pod(pod)


def sleepers(life: Node, container: str) -> list[str]:
    """How long those sleep that there are in the container."""
    found = life.exec(container, ["ps", "-o", "args"]).stdout.decode().splitlines()
    return sorted(line.split()[1] for line in found if line.startswith("sleep "))


def test_f17_what_a_command_leaves_running_is_not_waited_for(life: Node, container: str) -> None:
    """Though it keeps the command's output open; it goes on, as it would under a shell."""
    found = life.exec(container, ["sh", "-c", "sleep 5002 & echo said; exit 4"], 20)
    assert (found.stdout, found.exit_code) == (b"said\n", 4)
    until(lambda: sleepers(life, container) == ["5001", "5002"], "both to sleep")


def test_f17_all_that_it_has_started_is_ended_with_it_and_nobody_else(life: Node, container: str) -> None:
    life.exec(container, ["sh", "-c", "sleep 5003 >/dev/null 2>&1 &"])
    with ThreadPoolExecutor() as pool:
        other = pool.submit(life.exec, container, ["sh", "-c", "sleep 5004; echo never"], 60)
        until(lambda: "5004" in sleepers(life, container), "another one to run")
        script = "sleep 5005 & sh -c 'sleep 5006 & sleep 5007' & (sleep 5008 &) ; setsid sleep 5009 & wait"
        with pytest.raises(grpc.RpcError) as failure:
            life.exec(container, ["sh", "-c", script], 5)  # in which all of them are to begin
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: sleepers(life, container) == ["5001", "5003", "5004", "5009"], "the rest to be ended")
        life.exec(container, ["sh", "-c", "kill $(ps -o pid,args | awk '/sleep 5004$/ {print $1}')"])
        other.result()


@pytest.mark.parametrize("dies", [False, True], ids=["", "the daemon dies"])
@pytest.mark.parametrize("runtime", ["crun", "runc-v2"])
def test_f17_what_has_not_begun_when_its_time_is_over_is_ended_when_it_does(
    tmp_path: Path, runtime: str, dies: bool
) -> None:
    """As on a machine that is too busy for a probe: nothing of it is left in the container, nor of its files."""
    binary = slow_exec(tmp_path, "crun" if runtime == "crun" else "runc")
    hold, executed = tmp_path / "hold", tmp_path / "executed"
    foreign = {"shim": "/usr/bin/containerd-shim-runc-v2", "options": {"binary_name": str(binary)}}
    with node("slow", runtimes={"slow": {"binary": str(binary)} if runtime == "crun" else foreign}) as one:
        container = one.run(pod := one.run_pod(), "sleep 5001")
        hold.touch()
        with pytest.raises(grpc.RpcError) as failure:
            one.exec(container, ["sleep", "5002"], 1)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if dies:
            one.restart()
            until(lambda: crash.recovered(one), "it to recover")
            assert json.loads(one.cli("recovery", "-o", "json").stdout)["problems"] == []
        hold.unlink()
        if runtime == "crun" or not dies:  # a foreign shim gives up what is asked by somebody who goes
            until(executed.exists, "it to begin")
        until(lambda: sleepers(one, container) == ["5001"], "it to be ended")
        place = one.state / "pods" / pod / container / "exec"
        until(lambda: not os.listdir(place), "nothing to be left of it")


def probes(life: Node, number: int) -> None:
    pod = life.run_pod()
    container = life.run(pod, "sleep 5001")
    for _ in range(min(number, WARM_UP)):
        life.exec(container, ["true"])
    before = resources.of_node(life, pod)
    for turn in range(number):
        if turn % 1000 == 999:
            print(turn + 1, resources.of_node(life, pod))
        if turn % 20 == 7:
            with pytest.raises(grpc.RpcError):
                life.exec(container, ["sh", "-c", "sleep 1000 & wait"], 1)
        else:
            assert life.exec(container, ["sh", "-c", "exit 3"]).exit_code == 3
    until(lambda: sleepers(life, container) == ["5001"], "nothing to be left running")
    more = lambda: resources.grown(resources.of_node(life, pod), before)  # noqa: E731
    until(lambda: not more(), f"all to be as it was, but there is {more()}")
    bundle = life.state / "pods" / pod / container / "exec"
    until(lambda: not bundle.exists() or not os.listdir(bundle), "nothing to be left of them")
    assert process.state(life.pid(container)) not in ("", "Z")
    life.remove_pod(pod)


def test_f17_probes_leave_nothing(life: Node) -> None:
    probes(life, ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_f17_ten_thousand_probes(life: Node) -> None:
    probes(life, MANY)
