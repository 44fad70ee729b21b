"""Samples as the CRI's messages of statistics: each number in its field, and none where nothing is known."""

from pathlib import Path

import pytest

from holdfast.cri.stats import container_stats, pod_stats
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.stats import ContainerSample, Interface, Layer, PodSample, Pressure, Sample
from holdfast.linux.usage import Usage
from holdfast.model.spec import ContainerMetadata, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus
from holdfast.proto import runtime_v1_pb2 as pb

STALLS = (Pressure(500, (1.0, 2.0, 3.0)), Pressure(200, (4.0, 5.0, 6.0)))
USAGE = Usage(7000, 100, 80, 60, 5, 1, 1000, 3, 9, 4, pressure=dict.fromkeys(("cpu", "memory", "io"), STALLS))


def sampled(usage: Usage | None, rate: int | None = None) -> PodSample:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", namespace="default"), labels={"of": "pod"})
    pod = Pod(PodMetadata("p", "web", "default", "u", 0, "crun", b"", "/x", False, 1), PodStatus(ready=True), config)
    inside = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main", attempt=2), labels={"a": "b"})
    meta = ContainerMetadata("c", "p", "main", 2, b"", "busybox", "sha256:1", "k", "", "", 1)
    container = Container(meta, ContainerStatus(started_at=5), inside, pod)
    sample = Sample(9, usage, rate)
    one = ContainerSample(container, sample, Layer(Path("/layer"), 4096, 2, 8))
    return PodSample(pod, sample, [Interface("net1", *range(1, 9)), Interface("eth0", *range(11, 19))], [one])


def test_a_container() -> None:
    (one,) = sampled(USAGE, 50).containers
    found = container_stats(one)
    psi = pb.PsiStats(
        Some=pb.PsiData(Total=500, Avg10=1, Avg60=2, Avg300=3), Full=pb.PsiData(Total=200, Avg10=4, Avg60=5, Avg300=6)
    )
    number = lambda value: pb.UInt64Value(value=value)  # noqa: E731
    assert found == pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id="c", metadata=pb.ContainerMetadata(name="main", attempt=2), labels={"a": "b"}
        ),
        cpu=pb.CpuUsage(timestamp=9, usage_core_nano_seconds=number(7000), usage_nano_cores=number(50), psi=psi),
        memory=pb.MemoryUsage(
            timestamp=9,
            working_set_bytes=number(80),
            available_bytes=number(920),
            usage_bytes=number(100),
            rss_bytes=number(60),
            page_faults=number(5),
            major_page_faults=number(1),
            psi=psi,
        ),
        swap=pb.SwapUsage(timestamp=9, swap_available_bytes=number(6), swap_usage_bytes=number(3)),
        io=pb.IoUsage(timestamp=9, psi=psi),
        writable_layer=pb.FilesystemUsage(
            timestamp=8,
            fs_id=pb.FilesystemIdentifier(mountpoint="/layer"),
            used_bytes=number(4096),
            inodes_used=number(2),
        ),
    )


def test_a_pod_has_its_own_network_and_processes() -> None:
    found = pod_stats(sampled(USAGE, 50))
    assert (found.attributes.id, found.attributes.metadata.name, found.attributes.labels["of"]) == ("p", "web", "pod")
    assert (found.linux.cpu.usage_nano_cores.value, found.linux.memory.rss_bytes.value) == (50, 60)
    assert found.linux.io.psi.Full.Total == 200
    assert found.linux.process == pb.ProcessUsage(timestamp=9, process_count=pb.UInt64Value(value=4))
    assert found.linux.network.default_interface.name == "eth0"
    assert [one.name for one in found.linux.network.interfaces] == ["net1"]
    assert found.linux.network.interfaces[0].rx_bytes.value == 1
    assert [one.attributes.id for one in found.linux.containers] == ["c"]


@pytest.mark.parametrize("usage", [None, Usage()])
def test_what_is_not_known_is_not_said(usage: Usage | None) -> None:
    (one,) = sampled(usage).containers
    found = container_stats(one)
    assert found.HasField("writable_layer")
    assert not found.HasField("swap") and not found.HasField("io")
    assert found.HasField("cpu") is found.HasField("memory") is (usage is not None)
    assert not found.cpu.HasField("usage_core_nano_seconds") and not found.memory.HasField("usage_bytes")


def test_attributes_are_made_once_and_are_everybodys_own() -> None:
    (one,) = sampled(USAGE).containers
    first, second = container_stats(one), container_stats(one)
    first.attributes.labels["a"] = "changed"
    assert second.attributes.labels["a"] == container_stats(one).attributes.labels["a"] == "b"
