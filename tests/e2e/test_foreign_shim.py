"""Pods under a foreign shim, Debian's containerd-shim-runc-v2: everything as under ours, but that its death is the pod's."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import cgroup, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SHIM = "/usr/bin/containerd-shim-runc-v2"
SLEEP = ["/bin/sleep", "100000"]


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node("runc-v2", runtimes={"runc-v2": {"shim": SHIM}}) as one:
        yield one


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


def shims(life: Node) -> list[int]:
    """Foreign shims of this node, by what they were started with."""
    address = str(life.state / "events.sock")
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and address in process.arguments(int(name))]


def test_a_life_under_it(life: Node, pod: str) -> None:
    one = life.run(pod, "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done")
    until(lambda: len(life.container_log(one).splitlines()) == 2, "its log")
    assert sorted(line.split(b" ", 1)[1] for line in life.container_log(one).splitlines()) == [
        b"stderr F err", b"stdout F out",
    ]  # fmt: skip
    answer = life.exec(one, ["/bin/sh", "-c", "echo hello; echo bad >&2; exit 3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"hello\n", b"bad\n", 3)
    assert [each.id for each in life.containers() if each.pod_sandbox_id == pod] == [one], "the sandbox is none"
    life.stop_container(one, 20)
    status = life.status(one)
    assert (status.exit_code, status.reason) == (7, "Error")
