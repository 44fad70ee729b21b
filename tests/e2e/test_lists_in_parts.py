"""The lists of the CRI in parts."""

from collections.abc import Iterator

import pytest
from kit.node import Node, node

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub

PODS = 12
NOTE = "x" * 200_000  # so that the list takes several parts


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node() as one:
        for number in range(PODS):
            pod = one.run_pod(one.pod_config(f"p{number}", annotations={"note": NOTE}))
            one.run(pod, "sleep 1000")
        yield one


def test_pods_and_containers(life: Node) -> None:
    runtime = RuntimeServiceStub(life.channel)
    found = list(runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest(), timeout=20))
    assert len(found) > 1
    assert [pod for part in found for pod in part.pod_sandboxes] == life.pods()
    assert all(part.ByteSize() < 2 << 20 for part in found)
    wanted = pb.PodSandboxFilter(id=life.pods()[3].id)
    (part,) = runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest(filter=wanted), timeout=20)
    assert list(part.pod_sandboxes) == [life.pods()[3]]
    containers = runtime.StreamContainers(pb.StreamContainersRequest(), timeout=20)
    assert [one for part in containers for one in part.containers] == life.containers()
    nobody = pb.ContainerFilter(id="nobody")
    assert list(runtime.StreamContainers(pb.StreamContainersRequest(filter=nobody), timeout=20)) == []


def test_statistics(life: Node) -> None:
    runtime = RuntimeServiceStub(life.channel)
    of_containers = runtime.StreamContainerStats(pb.StreamContainerStatsRequest(), timeout=20)
    found = [one for part in of_containers for one in part.container_stats]
    assert [one.attributes.id for one in found] == [one.id for one in life.containers()]
    assert all(one.memory.usage_bytes.value for one in found)
    parts = list(runtime.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest(), timeout=20))
    assert len(parts) > 1
    pods = [one for part in parts for one in part.pod_sandbox_stats]
    assert [one.attributes.id for one in pods] == [pod.id for pod in life.pods()]
    assert all(len(one.linux.containers) == 1 for one in pods)


def test_images(life: Node) -> None:
    images = ImageServiceStub(life.channel)
    (part,) = images.StreamImages(pb.StreamImagesRequest(), timeout=20)
    assert part.images == life.images("ListImages", pb.ListImagesRequest()).images
    nobody = pb.ImageFilter(image=pb.ImageSpec(image="nobody"))
    assert list(images.StreamImages(pb.StreamImagesRequest(filter=nobody), timeout=20)) == []


def test_metrics(life: Node) -> None:
    runtime = RuntimeServiceStub(life.channel)
    known = {
        one.name: list(one.label_keys)
        for one in life.call("ListMetricDescriptors", pb.ListMetricDescriptorsRequest()).descriptors
    }
    found = life.call("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest()).pod_metrics
    assert [one.pod_sandbox_id for one in found] == [pod.id for pod in life.pods()]
    for pod in found:
        (inside,) = pod.container_metrics
        sent = {one.name: one for one in inside.metrics}
        assert len(sent) > 20
        for one in inside.metrics:
            labels = dict(zip(known[one.name], one.label_values, strict=True))
            assert (labels["id"], labels["container"]) == (inside.container_id, "main")
        assert sent["container_memory_usage_bytes"].value.value > 0
        assert sent["container_threads"].value.value == 1
        assert sent["container_spec_cpu_period"].value.value == 100_000
    streamed = list(runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest(), timeout=20))
    assert [one.pod_sandbox_id for part in streamed for one in part.pod_sandbox_metrics] == [
        pod.id for pod in life.pods()
    ]
