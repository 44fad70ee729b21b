"""OOM kills: those that the init outlives are told as they happen, and are no reason for its end (F11)."""

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.crash import recovered
from kit.node import Node, node, until
from kit.ports import free_port

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

LINUX = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=24 << 20))
EAT = "dd if=/dev/zero of=/dev/null bs=256M 2>/dev/null"
FED = f"n=0; while :; do n=$((n+1)); while ! test -e /data/eat-$n; do sleep 0.02; done; {EAT}; echo $n; done"


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(metrics_address=f"127.0.0.1:{free_port()}") as one:
        yield one


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    for left in life.base.glob("eat-*"):
        left.unlink()


def run(life: Node, pod: str, script: str, name: str = "main") -> str:
    return life.run(pod, script, name, linux=LINUX, mounts=[pb.Mount(host_path=str(life.base), container_path="/data")])


def eat(life: Node, log: Path, *numbers: int) -> None:
    """Have children of the container with this log killed, one after the other; the daemon may be down."""
    for number in numbers:
        (life.base / f"eat-{number}").touch()
        until(lambda number=number: f" {number}\n".encode() in log.read_bytes(), "the child to be killed")


def log_of(life: Node, container: str) -> Path:
    return Path(life.status(container).log_path)


def told(life: Node, container: str) -> list[tuple[str, int]]:
    """What happened to it, with the kills that were known by then."""
    lines = life.cli("events", "-o", "json", "--since", "0", "--no-follow").stdout.splitlines()
    events = [event for line in lines if (event := json.loads(line)).get("id") == container]
    return [(event["kind"], int(event.get("oom_kills", 0))) for event in events]


def kills(life: Node, container: str) -> list[int]:
    return [count for kind, count in told(life, container) if kind == "oom"]


@pytest.mark.parametrize("end", ["stop", "killed by somebody"])
def test_kills_of_children_are_told_and_are_not_its_end(life: Node, pod: str, end: str) -> None:
    one = run(life, pod, FED)
    log = log_of(life, one)
    for number in (1, 2):
        eat(life, log, number)
        until(lambda number=number: kills(life, one)[-1:] == [number], "the event")
    assert life.info(one)["oomKills"] == 2
    assert life.status(one).state == pb.CONTAINER_RUNNING
    if end == "stop":
        life.stop_container(one, 0)
    else:
        os.kill(life.pid(one), signal.SIGKILL)
    status = life.exited(one)
    assert (status.exit_code, status.reason) == (137, "Error")
    assert "killed so far" in life.cli("events", "--since", "0", "--no-follow").stdout


def test_the_kill_of_its_init_is_its_end(life: Node, pod: str) -> None:
    one = run(life, pod, f"{EAT}; echo 0; exec {EAT}")
    status = life.exited(one)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert life.info(one)["oomKills"] == 2
    found = told(life, one)
    assert found[-1][0] in ("stopped", "cleaned")
    assert [kind for kind, _ in found if kind in ("oom", "stopped")][-2:] == ["oom", "stopped"]
    assert kills(life, one)[-1] == 2
    lines = [line for line in life.cli("events", "--since", "0", "--no-follow").stdout.splitlines() if one[:13] in line]
    assert [line.endswith("2 killed so far, its init too)") for line in lines if "container oom" in line][-1]


def test_what_happened_without_the_daemon_is_told_once(life: Node, pod: str) -> None:
    one = run(life, pod, FED)
    log = log_of(life, one)
    eat(life, log, 1)
    until(lambda: kills(life, one) == [1], "the first")
    life.kill()
    eat(life, log, 2, 3)
    life.start()
    until(lambda: recovered(life), "recovery")
    until(lambda: kills(life, one) == [3], "both of the others at once")
    eat(life, log, 4)
    until(lambda: kills(life, one) == [3, 4], "that it goes on")
    life.restart()
    until(lambda: recovered(life), "recovery")
    eat(life, log, 5)
    until(lambda: kills(life, one) == [5], "nothing to be told twice")


def test_it_does_not_depend_on_the_shim(life: Node, pod: str) -> None:
    one, other = run(life, pod, FED, "one"), run(life, pod, "sleep 1000", "other")
    log = log_of(life, one)
    os.kill(next(each.pid for each in keeper.workers(life.state) if each.id == pod), signal.SIGKILL)
    eat(life, log, 1)
    until(lambda: kills(life, one) == [1], "the event")
    assert kills(life, other) == []
    until(lambda: life.works(one), "another shim, to be told how it ends")
    os.kill(life.pid(one), signal.SIGKILL)
    assert life.exited(one).reason == "Error"
    assert process.state(life.pid(other)) == "S"


def test_who_has_ended_is_watched_no_more(life: Node, pod: str) -> None:
    def watches() -> int:
        assert life.process is not None
        found = 0
        for each in Path(f"/proc/{life.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by now
                found += os.readlink(each) == "anon_inode:[eventfd]"
        return found

    before = watches()
    for number in range(8):
        one = run(life, pod, "sleep 1000", f"nr-{number}")
        life.stop_container(one, 0)
        life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    until(lambda: watches() <= before, "the last of them to be let go of")


def test_a_counter_is_served(life: Node, pod: str) -> None:
    address = json.loads(life.config.read_text().partition("metrics_address = ")[2].splitlines()[0])

    def counted() -> float:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("holdfast_container_oom_kills_total")).split()[1])

    before = counted()
    one = run(life, pod, FED)
    log = log_of(life, one)
    eat(life, log, 1)
    until(lambda: counted() == before + 1, "the counter to move")
