"""F12: the wall clock steps back by months, and forward again; what is handed out never does.

The daemon, and what it forks, have a clock of their own by libfaketime; the monotonic clocks are the machine's.
"""

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.crash import recovered
from kit.node import Node, until

from holdfast.linux import files
from holdfast.model.spec import new_id

MONTHS = "-300d"


class Clock:
    """The wall clock of a node."""

    def __init__(self, node: Node) -> None:
        self._file = node.base / "clock"
        self.step("+0")

    def step(self, offset: str) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{offset}\n")
        temporary.rename(self._file)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Node]:
    library = f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1"
    assert Path(library).exists(), f"{library} is missing; `make setup` installs it"
    faked = {"LD_PRELOAD": library, "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    node = Node()
    node.set_environment(**faked, FAKETIME_TIMESTAMP_FILE=str(node.base / "clock"))
    Clock(node)
    node.start()
    node.busybox()
    yield node
    node.purge()


def told(life: Node, since: int) -> list[dict[str, Any]]:
    found = life.cli("events", "--output", "json", "--since", str(since), "--no-follow").stdout
    return [json.loads(line) for line in found.splitlines()]


def attempt(life: Node, number: int) -> tuple[str, list[int]]:
    """The next attempt of one and the same pod; its id, and its times in the order in which they come."""
    pod = life.run_pod(life.pod_config("same", attempt=number))
    status = life.exited(life.run(pod, "exit 3"))
    assert status.exit_code == 3
    created = next(one.created_at for one in life.pods() if one.id == pod)
    return pod, [created, status.created_at, status.started_at, status.finished_at]


def test_f12_each_attempt_is_newer_than_the_one_before(life: Node) -> None:
    clock = Clock(life)
    pods, times = [], []
    for number, offset in enumerate(("+0", MONTHS, "+0", MONTHS, "-40s")):
        clock.step(offset)
        if number == 3:
            life.restart()
        pod, found = attempt(life, number)
        pods.append(pod)
        times += found
    assert times == sorted(times)
    newest = max(life.pods(), key=lambda one: one.created_at)
    assert (newest.id, newest.metadata.attempt) == (pods[-1], 4)


def test_f12_not_even_when_those_before_are_gone(life: Node) -> None:
    clock = Clock(life)
    pod, before = attempt(life, 0)
    life.remove_pod(pod)
    clock.step(MONTHS)
    life.restart()
    _, after = attempt(life, 1)
    assert after[0] > before[2]


def test_f12_events_are_numbered_on_from_where_they_were(life: Node) -> None:
    clock, seen = Clock(life), 0
    for offset in ("+0", MONTHS, MONTHS, "-400d"):
        clock.step(offset)
        life.restart()
        life.remove_pod(life.run_pod())
        gap, *found = told(life, seen)
        assert gap["kind"] == "gap"
        assert [one["kind"] for one in found] == ["created", "started", "stopped", "deleted"]
        numbers = [int(one["number"]) for one in found]
        assert numbers == list(range(numbers[0], numbers[0] + 4)) and numbers[0] > seen
        seen = numbers[-1]


@pytest.mark.parametrize("offset", ["+300d", MONTHS])
def test_f12_nothing_is_old_or_young_because_the_clock_was_set(life: Node, offset: str) -> None:
    """The blob of a pull that failed is kept for an hour; what somebody was writing is gone after some seconds."""
    blob = life.root / "content" / "sha256" / new_id()
    forsaken = life.state / files.temporary_name("hosts")
    life.kill()
    blob.write_text("a layer")
    life.start()
    until(lambda: recovered(life), "recovery")
    forsaken.write_text("half")
    until(lambda: files.temporary_age(forsaken.name) > 3, "a while")
    Clock(life).step(offset)
    fixed = json.loads(life.cli("doctor", "--fix", "--output", "json").stdout)["fixed"]
    assert fixed == [f"temporary file {forsaken}"]
    assert blob.exists() and not forsaken.exists()
    blob.unlink()


def test_f12_a_stop_takes_as_long_as_it_may_whatever_the_clock_says(life: Node) -> None:
    clock = Clock(life)
    pod = life.run_pod()
    one = life.run(pod, "trap 'sleep 0.5; exit 4' TERM; > /ready; while :; do sleep 0.02; done")
    until(Path(f"/proc/{life.pid(one)}/root/ready").exists, "the trap to be set")
    clock.step("+300d")
    life.stop_container(one, 20)
    assert life.status(one).exit_code == 4
