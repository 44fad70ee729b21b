"""runtime.v1.RuntimeService: a few lines per call; the rules are in `lifecycle`.

Errors are raised plainly and mapped by the boundary; what is not overridden here answers UNIMPLEMENTED.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from holdfast import __version__
from holdfast.cri import convert, filters, metrics, stats
from holdfast.cri.streams import Whole, parts
from holdfast.images.service import Images
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.events import CRI_KINDS, Events, Gap, Notice
from holdfast.lifecycle.execute import Executor
from holdfast.lifecycle.node import Node
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.pods import Pods
from holdfast.lifecycle.sessions import Sessions
from holdfast.lifecycle.stats import Stats
from holdfast.lifecycle.tasks import in_thread
from holdfast.lifecycle.world import World
from holdfast.model.cgroups import SYSTEMD
from holdfast.model.errors import HoldfastError, InvalidArgument, NotFound, ResourceExhausted
from holdfast.model.image import Image
from holdfast.model.spec import volume_key
from holdfast.oci.mounts import image_volumes
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceServicer

API_VERSION: Final = "v1"
KUBELET_API_VERSION: Final = "0.1.0"


class RuntimeService(RuntimeServiceServicer):
    """Pods and containers over the CRI."""

    def __init__(
        self,
        world: World,
        events: Events,
        pods: Pods,
        containers: Containers,
        executor: Executor,
        bundles: Bundles,
        images: Images,
        node: Node,
        statistics: Stats,
        sessions: Sessions,
    ) -> None:
        self._world = world
        self._events = events
        self._pods = pods
        self._containers = containers
        self._executor = executor
        self._bundles = bundles
        self._images = images
        self._node = node
        self._stats = statistics
        self._sessions = sessions
        self._all_pods = Whole(lambda: self._pod_entries(pb.PodSandboxFilter()))
        self._all_containers = Whole(lambda: self._container_entries(pb.ContainerFilter()))

    async def Version(self, request: pb.VersionRequest, context: Any) -> pb.VersionResponse:
        return pb.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name="holdfast",
            runtime_version=__version__,
            runtime_api_version=API_VERSION,
        )

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        ready, reason, message = await self._node.network_ready()
        healthy, trouble, details = await self._node.storage.condition(self._world.unwritten)
        conditions = [
            pb.RuntimeCondition(type="RuntimeReady", status=True),  # on a full disk, too: what runs is served
            pb.RuntimeCondition(type="NetworkReady", status=ready, reason=reason, message=message),
            pb.RuntimeCondition(type="StorageHealthy", status=healthy, reason=trouble, message=details),
        ]
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=conditions),
            info=await self._info() if request.verbose else {},
            runtime_handlers=await self._node.runtime_handlers(),
            features=pb.RuntimeFeatures(supplemental_groups_policy=True, user_namespaces_host_network=True),
        )

    async def _info(self) -> dict[str, str]:
        runtimes = [found.as_data() for found in await self._node.gate.examine()]
        return {"config": json.dumps(self._node.facts), "runtimes": json.dumps(runtimes)}

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Any) -> pb.RuntimeConfigResponse:
        driver = pb.SYSTEMD if self._node.facts["cgroup_driver"] == SYSTEMD else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Any
    ) -> pb.UpdateRuntimeConfigResponse:
        await self._node.configure_network(request.runtime_config.network_config.pod_cidr)
        return pb.UpdateRuntimeConfigResponse()

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Any) -> pb.RunPodSandboxResponse:
        pod = await self._pods.run(request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod.meta.id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: Any) -> pb.StopPodSandboxResponse:
        await self._pods.stop(_needed(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest, context: Any) -> pb.RemovePodSandboxResponse:
        await self._pods.remove(_needed(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest, context: Any) -> pb.PodSandboxStatusResponse:
        pod = self._world.pod(_needed(request.pod_sandbox_id, "pod_sandbox_id"))
        if not pod.acknowledged:
            raise NotFound(f"cannot find pod sandbox {request.pod_sandbox_id!r}: it is being made")
        containers = [self._status(container) for container in pod.containers.values() if container.acknowledged]
        return pb.PodSandboxStatusResponse(
            status=convert.pod_status(pod),
            info=convert.pod_info(pod) if request.verbose else {},
            containers_statuses=containers,
            timestamp=self._world.clock.now(),
        )

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: Any
    ) -> pb.UpdatePodSandboxResourcesResponse:
        overhead = request.overhead if request.HasField("overhead") else None
        resources = request.resources if request.HasField("resources") else None
        await self._pods.update_resources(_needed(request.pod_sandbox_id, "pod_sandbox_id"), overhead, resources)
        return pb.UpdatePodSandboxResourcesResponse()

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: Any) -> bytes:
        """A ListPodSandboxResponse, already serialized."""
        if request.filter.ByteSize():
            return b"".join(self._pod_entries(request.filter))
        return self._all_pods.after(self._world.changes)

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest, context: Any) -> AsyncIterator[bytes]:
        """StreamPodSandboxesResponses, already serialized."""
        for part in parts(self._pod_entries(request.filter)):
            yield part

    def _pod_entries(self, wanted: pb.PodSandboxFilter) -> list[bytes]:
        return [convert.pod_entry(pod) for pod in filters.pods(self._world.pods.values(), wanted)]

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: Any) -> pb.CreateContainerResponse:
        pod_id = _needed(request.pod_sandbox_id, "pod_sandbox_id")
        container = await self._containers.create(pod_id, request.config)
        return pb.CreateContainerResponse(container_id=container.meta.id)

    async def StartContainer(self, request: pb.StartContainerRequest, context: Any) -> pb.StartContainerResponse:
        await self._containers.start(_needed(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: Any) -> pb.StopContainerResponse:
        if request.timeout < 0:
            raise InvalidArgument(f"timeout: {request.timeout} is negative")
        await self._containers.stop(_needed(request.container_id, "container_id"), request.timeout)
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, context: Any) -> pb.RemoveContainerResponse:
        await self._containers.remove(_needed(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def ListContainers(self, request: pb.ListContainersRequest, context: Any) -> bytes:
        """A ListContainersResponse, already serialized."""
        if request.filter.ByteSize():
            return b"".join(self._container_entries(request.filter))
        return self._all_containers.after(self._world.changes)

    async def StreamContainers(self, request: pb.StreamContainersRequest, context: Any) -> AsyncIterator[bytes]:
        """StreamContainersResponses, already serialized."""
        for part in parts(self._container_entries(request.filter)):
            yield part

    def _container_entries(self, wanted: pb.ContainerFilter) -> list[bytes]:
        return [convert.container_entry(one) for one in filters.containers(self._world.containers.values(), wanted)]

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, context: Any) -> pb.ContainerStatusResponse:
        container = self._world.container(_needed(request.container_id, "container_id"))
        if not container.acknowledged:
            raise NotFound(f"cannot find container {request.container_id!r}: it is being created")
        info = {}
        if request.verbose:
            info = convert.container_info(container, await in_thread(self._spec, container))
        status = self._status(container)
        status.message = status.message or await self._containers.held_up(container)
        return pb.ContainerStatusResponse(status=status, info=info)

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Any
    ) -> pb.UpdateContainerResourcesResponse:
        await self._containers.update_resources(_needed(request.container_id, "container_id"), request.linux)
        return pb.UpdateContainerResourcesResponse()

    async def CheckpointContainer(
        self, request: pb.CheckpointContainerRequest, context: Any
    ) -> pb.CheckpointContainerResponse:
        container_id, location = _needed(request.container_id, "container_id"), _needed(request.location, "location")
        await self._containers.checkpoint(container_id, location, request.timeout)
        return pb.CheckpointContainerResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: Any
    ) -> pb.ReopenContainerLogResponse:
        await self._containers.reopen_log(_needed(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Any) -> pb.ExecSyncResponse:
        container_id = _needed(request.container_id, "container_id")
        out, err, code = await self._executor.exec_sync(container_id, list(request.cmd), request.timeout)
        return pb.ExecSyncResponse(stdout=out, stderr=err, exit_code=code)

    async def Exec(self, request: pb.ExecRequest, context: Any) -> pb.ExecResponse:
        return pb.ExecResponse(url=await self._sessions.exec(request))

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachResponse:
        return pb.AttachResponse(url=await self._sessions.attach(request))

    async def PortForward(self, request: pb.PortForwardRequest, context: Any) -> pb.PortForwardResponse:
        return pb.PortForwardResponse(url=await self._sessions.forward(request))

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: Any) -> pb.ContainerStatsResponse:
        container = self._world.container(_needed(request.container_id, "container_id"))
        (found,) = await self._stats.containers([container])
        return pb.ContainerStatsResponse(stats=stats.container_stats(found))

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest, context: Any) -> bytes:
        """A ListContainerStatsResponse, already serialized."""
        return b"".join(await self._container_stats(request.filter))

    async def StreamContainerStats(self, request: pb.StreamContainerStatsRequest, context: Any) -> AsyncIterator[bytes]:
        """StreamContainerStatsResponses, already serialized."""
        for part in parts(await self._container_stats(request.filter)):
            yield part

    async def _container_stats(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        found = filters.running_containers(self._world.containers.values(), wanted)
        samples = map(stats.container_stats, await self._stats.containers(found))
        return [pb.ListContainerStatsResponse(stats=[one]).SerializeToString() for one in samples]

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, context: Any) -> pb.PodSandboxStatsResponse:
        (found,) = await self._stats.pods([self._world.pod(_needed(request.pod_sandbox_id, "pod_sandbox_id"))])
        return pb.PodSandboxStatsResponse(stats=stats.pod_stats(found))

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest, context: Any) -> bytes:
        """A ListPodSandboxStatsResponse, already serialized."""
        return b"".join(await self._pod_stats(request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """StreamPodSandboxStatsResponses, already serialized."""
        for part in parts(await self._pod_stats(request.filter)):
            yield part

    async def _pod_stats(self, wanted: pb.PodSandboxStatsFilter) -> list[bytes]:
        found = filters.ready_pods(self._world.pods.values(), wanted)
        samples = map(stats.pod_stats, await self._stats.pods(found))
        return [pb.ListPodSandboxStatsResponse(stats=[one]).SerializeToString() for one in samples]

    async def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest, context: Any
    ) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def ListPodSandboxMetrics(self, request: pb.ListPodSandboxMetricsRequest, context: Any) -> bytes:
        """A ListPodSandboxMetricsResponse, already serialized."""
        return b"".join(await self._pod_metrics())

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """StreamPodSandboxMetricsResponses, already serialized."""
        for part in parts(await self._pod_metrics()):
            yield part

    async def _pod_metrics(self) -> list[bytes]:
        found = filters.ready_pods(self._world.pods.values(), pb.PodSandboxStatsFilter())
        samples = await self._stats.pods(found)
        counters = await self._stats.counters(one.container for pod in samples for one in pod.containers)
        made = [metrics.pod_metrics(sample, counters) for sample in samples]
        return [pb.ListPodSandboxMetricsResponse(pod_metrics=[one]).SerializeToString() for one in made]

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest, context: Any
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """From now on. A reader that is too slow is cut off, and has to list before it comes back."""
        async for one in self._events.follow(self._events.last):
            if isinstance(one, Gap):
                self._events.cut_off.add()
                raise ResourceExhausted(f"cannot go on with events: {one.until - one.seen} were not read in time; list")
            if isinstance(one, Notice) or one.kind not in CRI_KINDS:
                continue
            yield pb.ContainerEventResponse(
                container_id=one.id,
                container_event_type=pb.ContainerEventType.Name(one.kind),
                created_at=one.at,
                pod_sandbox_status=convert.pod_status(one.pod),
                containers_statuses=[self._status(container) for container in one.containers],
            )

    def _status(self, container: Container) -> pb.ContainerStatus:
        try:
            ref = _reference(self._images.find(container.meta.image_id))
        except HoldfastError:  # the image was removed under a container that goes on without it
            ref = container.meta.image_id
        status = convert.container_status(container, ref, self._bundles.limits(container))
        for number in image_volumes(container.config):  # what a tag meant when the container was created
            key, mount = volume_key(container.meta.id, number), status.mounts[number]
            if (shown := self._images.shown_by(key, mount.image.image)) is not None:
                mount.image.image_ref = _reference(shown)
        return status

    def _spec(self, container: Container) -> dict[str, object] | None:
        try:
            return self._bundles.load(container)
        except FileNotFoundError:
            return None


def _reference(image: Image) -> str:
    return image.digests[0] if image.digests else image.id


def _needed(value: str, field: str) -> str:
    if not value:
        raise InvalidArgument(f"{field}: must not be empty")
    return value
