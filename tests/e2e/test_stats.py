"""Statistics of containers and pods: what the kernel counts, whatever shim there is and however it is."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.node import Node, node, until

from holdfast.lifecycle.stats import walk
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
# 32 MiB of memory that is its own, 4 MiB in its layer with 3 files, and one cpu.
SPEND = """
mkdir /d; dd if=/dev/urandom of=/d/a bs=1M count=4; : > /d/b; ln /d/a /d/c
x=$(dd if=/dev/zero bs=1M count=16 | tr '\\0' x); touch /ready; while :; do :; done
"""
HANDLERS = ("crun", "runc", "runc-v2")


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(runtimes={"runc-v2": {"shim": "containerd-shim-runc-v2"}}) as one:
        yield one


def stats(life: Node, container: str) -> Any:
    return life.call("ContainerStats", pb.ContainerStatsRequest(container_id=container)).stats


def pod_info(life: Node, pod: str) -> dict[str, Any]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    found: dict[str, Any] = json.loads(life.call("PodSandboxStatus", request).info["info"])
    return found


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_container_and_its_pod_use(life: Node, handler: str) -> None:
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=256 * MIB)
    pod = life.run_pod(handler=handler)
    config = life.container_config(SPEND, linux=pb.LinuxContainerConfig(resources=limits))
    config.labels["a"] = "b"
    container = life.create(pod, config)
    before = stats(life, container)
    assert before.attributes.id == container
    assert not before.HasField("cpu"), "it has not started"
    life.start_container(container)
    until(lambda: life.exec(container, ["test", "-e", "/ready"]).exit_code == 0, "its memory to be used")
    first = stats(life, container)
    assert (first.attributes.metadata.name, dict(first.attributes.labels)) == ("main", {"a": "b"})
    assert first.memory.rss_bytes.value > 15 * MIB
    assert first.memory.working_set_bytes.value <= first.memory.usage_bytes.value < 256 * MIB
    assert first.memory.available_bytes.value == 256 * MIB - first.memory.working_set_bytes.value
    assert first.memory.page_faults.value > 1000

    def rate() -> int:
        found = stats(life, container)
        assert found.cpu.usage_core_nano_seconds.value >= first.cpu.usage_core_nano_seconds.value
        return int(found.cpu.usage_nano_cores.value)

    until(lambda: 0 < rate() < 1.5e9, "two samples of one thread")  # of which one may be late, but not always
    layer = until(lambda: stats(life, container).writable_layer.used_bytes.value > 4 * MIB, "its layer to be counted")
    assert layer

    def counted() -> bool:
        found = stats(life, container).writable_layer
        assert found.used_bytes.value < 5 * MIB, "a file with two names is one"
        return (found.used_bytes.value, found.inodes_used.value) == walk(Path(found.fs_id.mountpoint))

    until(counted, "all that is in it to be counted", every=0.5)

    (listed,) = life.call("ListContainerStats", pb.ListContainerStatsRequest()).stats
    assert listed.attributes.id == container
    for wanted in ({"id": "no"}, {"pod_sandbox_id": "no"}, {"label_selector": {"a": "c"}}):
        asked = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**wanted))
        assert not life.call("ListContainerStats", asked).stats

    (whole,) = life.call("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()).stats
    assert (whole.attributes.id, [one.attributes.id for one in whole.linux.containers]) == (pod, [container])
    assert whole.linux.cpu.usage_core_nano_seconds.value >= first.cpu.usage_core_nano_seconds.value
    assert whole.linux.memory.working_set_bytes.value >= 15 * MIB
    assert whole.linux.process.process_count.value >= 1
    life.stop_container(container, 0)
    assert not life.call("ListContainerStats", pb.ListContainerStatsRequest()).stats
    ended = stats(life, container)
    assert ended.writable_layer.used_bytes.value > 4 * MIB
    assert not ended.HasField("cpu")
    life.remove_pod(pod)
    assert not life.call("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()).stats


def test_the_command_line(life: Node) -> None:
    pod = life.run_pod(life.pod_config("cli-stats"))
    container = life.run(pod, "while :; do :; done", "busy")
    life.run(pod, "sleep 1000", "idle")

    def shown() -> bool:
        head, first, second = life.cli("stats", "--no-stream").stdout.splitlines()
        assert head.split("   ")[0] == "CONTAINER ID"
        assert {(*line.split()[1:3],) for line in (first, second)} == {("busy", "cli-stats"), ("idle", "cli-stats")}
        is_first = first.split()[:2] == [container[:13], "busy"]
        return is_first and 10 < float(first.split()[3]) < 150 and float(second.split()[3]) < 10

    until(shown, "one of them to be busy, and shown first")  # others may be busier at a time
    (one,) = json.loads(life.cli("stats", "-o", "json", "busy").stdout)["stats"]
    assert (one["attributes"]["id"], int(one["memory"]["usage_bytes"]["value"]) > 0) == (container, True)
    life.remove_pod(pod)


@pytest.mark.parametrize("handler", ["", "runc-v2"])
def test_a_shim_that_stands_still_holds_up_no_statistics(life: Node, handler: str) -> None:
    pod = life.run_pod(handler=handler)
    container = life.run(pod, "sleep 1000")
    shim = pod_info(life, pod)["pid"]
    os.kill(shim, signal.SIGSTOP)
    try:
        assert stats(life, container).memory.usage_bytes.value > 0
        assert life.call("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.linux.containers
    finally:
        os.kill(shim, signal.SIGCONT)
    life.remove_pod(pod)


def test_networks_are_those_of_the_pod(life: Node) -> None:
    pod = life.run_pod(life.pod_config("net", network=pb.POD))
    netns = pod_info(life, pod)["networkNamespace"]
    for command in ("link add eth0 type veth peer name net1", "link set eth0 up"):
        subprocess.run(["nsenter", f"--net={netns}", "ip", *command.split()], check=True)
    found = life.call("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.linux.network
    assert (found.default_interface.name, [one.name for one in found.interfaces]) == ("eth0", ["net1"])
    assert found.default_interface.HasField("tx_bytes")
    life.remove_pod(pod)


def test_nobodys_statistics_are_not_found(life: Node) -> None:
    for method, request in (
        ("ContainerStats", pb.ContainerStatsRequest(container_id="nobody")),
        ("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id="nobody")),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            life.call(method, request)
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
