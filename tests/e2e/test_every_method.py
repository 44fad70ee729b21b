"""Every method of the CRI is served: one pod's life that calls all of them."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from kit.node import Node, node
from kit.registry import push, registry

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub

REFUSED = {"CheckpointContainer": grpc.StatusCode.FAILED_PRECONDITION}  # by crun, see test_checkpoint_container.py
SERVICES = {"RuntimeService": RuntimeServiceStub, "ImageService": ImageServiceStub}


@pytest.fixture
def life() -> Iterator[Node]:
    with node() as one:
        yield one


def calls(pod: str, container: str, config: pb.PodSandboxConfig, image: str) -> list[tuple[str, Any]]:
    """All that takes nothing away: of a pod with a container that runs."""
    of_pod, of_container = {"pod_sandbox_id": pod}, {"container_id": container}
    stdout = {"stdout": True}
    limits = pb.LinuxContainerResources(cpu_shares=512)
    return [
        ("Version", pb.VersionRequest()),
        ("Status", pb.StatusRequest(verbose=True)),
        ("RuntimeConfig", pb.RuntimeConfigRequest()),
        ("UpdateRuntimeConfig", pb.UpdateRuntimeConfigRequest()),
        ("RunPodSandbox", pb.RunPodSandboxRequest(config=config)),
        ("ListPodSandbox", pb.ListPodSandboxRequest()),
        ("StreamPodSandboxes", pb.StreamPodSandboxesRequest()),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(**of_pod)),
        ("UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest(**of_pod, resources=limits)),
        ("ListContainers", pb.ListContainersRequest()),
        ("StreamContainers", pb.StreamContainersRequest()),
        ("ContainerStatus", pb.ContainerStatusRequest(**of_container)),
        ("UpdateContainerResources", pb.UpdateContainerResourcesRequest(**of_container, linux=limits)),
        ("ReopenContainerLog", pb.ReopenContainerLogRequest(**of_container)),
        ("ExecSync", pb.ExecSyncRequest(**of_container, cmd=["true"], timeout=20)),
        ("Exec", pb.ExecRequest(**of_container, cmd=["true"], **stdout)),
        ("Attach", pb.AttachRequest(**of_container, **stdout)),
        ("PortForward", pb.PortForwardRequest(**of_pod, port=[80])),
        ("ContainerStats", pb.ContainerStatsRequest(**of_container)),
        ("ListContainerStats", pb.ListContainerStatsRequest()),
        ("StreamContainerStats", pb.StreamContainerStatsRequest()),
        ("PodSandboxStats", pb.PodSandboxStatsRequest(**of_pod)),
        ("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()),
        ("StreamPodSandboxStats", pb.StreamPodSandboxStatsRequest()),
        ("ListMetricDescriptors", pb.ListMetricDescriptorsRequest()),
        ("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest()),
        ("StreamPodSandboxMetrics", pb.StreamPodSandboxMetricsRequest()),
        ("CheckpointContainer", pb.CheckpointContainerRequest(**of_container, location="/nowhere")),
        ("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=image))),
        ("ListImages", pb.ListImagesRequest()),
        ("StreamImages", pb.StreamImagesRequest()),
        ("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image=image))),
        ("ImageFsInfo", pb.ImageFsInfoRequest()),
        ("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=image))),
    ]


def methods() -> dict[str, tuple[str, Any]]:
    """By name: the service, and what the descriptor says of it."""
    services = pb.DESCRIPTOR.services_by_name
    return {method.name: (name, method) for name in SERVICES for method in services[name].methods}


def ask(life: Node, name: str, request: Any) -> grpc.StatusCode:
    """OK only where something was answered, of lists in parts at least one."""
    service, method = methods()[name]
    answer = getattr(SERVICES[service](life.channel), name)(request, timeout=30)
    return grpc.StatusCode.OK if not method.server_streaming or list(answer) else grpc.StatusCode.UNKNOWN


def code_of(life: Node, name: str, request: Any) -> grpc.StatusCode:
    try:
        return ask(life, name, request)
    except grpc.RpcError as exc:
        return exc.code()


def test_nothing_is_unimplemented(life: Node) -> None:
    events = RuntimeServiceStub(life.channel).GetContainerEvents(pb.GetEventsRequest(), timeout=60)
    pod = life.run_pod()
    config = life.container_config("sleep 1000")
    created = life.create(pod, config)
    with registry() as host:
        push(host, "every/busybox", "one", life.base / "busybox.tar")
        image = f"{host}/every/busybox:one"
        asked = [
            ("StartContainer", pb.StartContainerRequest(container_id=created)),
            ("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id=pod, config=life.container_config("", "b"))),
            *calls(pod, created, life.pod_config(), image),
            ("StopContainer", pb.StopContainerRequest(container_id=created)),
            ("RemoveContainer", pb.RemoveContainerRequest(container_id=created)),
            ("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod)),
            ("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod)),
        ]
        found = {name: code_of(life, name, request) for name, request in asked}
    assert next(events).container_id
    events.cancel()
    found["GetContainerEvents"] = grpc.StatusCode.OK
    expected = {name: REFUSED.get(name, grpc.StatusCode.OK) for name in methods()}
    assert set(found) == set(expected), "a method of the API that this test does not know"
    assert found == expected
