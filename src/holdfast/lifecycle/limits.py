"""Limits that change while there is somebody whom they limit.

The row says what is in force; the cgroup follows it. A change is announced by an intent `update`, made, and recorded
with the end of the intent in one commit. Whatever goes wrong in between, what was there is put back: at once, or as
soon as somebody can, which a daemon that comes after goes on with. The intent says what the cgroup's files said before:
also what no client has ever limited becomes again what it was.
"""

import logging
from dataclasses import replace
from typing import Final

from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.objects import Container, Pod, container_cgroup, pod_cgroup
from holdfast.lifecycle.tasks import Background
from holdfast.lifecycle.world import World
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    NotFound,
    Unavailable,
)
from holdfast.model.state import ContainerState, PodState
from holdfast.oci import resources as rules
from holdfast.oci.request import HostFacts
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.shims import Shims

log = logging.getLogger(__name__)

UPDATE: Final = "update"
SECONDS: Final = 10.0  # that a shim may take for it
UNTOLD: Final = (Unavailable, DeadlineExceeded)  # nobody knows how far it got


class Limits:
    """Of containers and of whole pods."""

    def __init__(
        self, world: World, shims: Shims, bundles: Bundles, cgroups: Cgroups, background: Background, facts: HostFacts
    ) -> None:
        self._world = world
        self._shims = shims
        self._bundles = bundles
        self._cgroups = cgroups
        self._background = background
        self._facts = facts

    def check_pod(self, config: pb.PodSandboxConfig) -> None:
        """Whether a pod's can be had on this host. Raises InvalidArgument."""
        rules.in_force(config.linux.resources, self._facts, "config.linux.resources")
        rules.in_force(config.linux.overhead, self._facts, "config.linux.overhead")

    async def update(self, container: Container, change: pb.LinuxContainerResources) -> None:
        """Change what is given; the container's lock is held. Raises what there is to say, and then nothing is changed.

        Of one that runs at once, of one that was not started for its start.
        """
        rules.check(change, "linux", partial=True)
        after = rules.merged(self._bundles.limits(container), change)
        rules.check(after, "linux")
        after = rules.in_force(after, self._facts, "linux")
        data = after.SerializeToString(deterministic=True)
        if container.state is ContainerState.CREATED:
            await self._bundles.limit(container, after)
            crashpoint("update.bundle")
            await self._world.update_container(container, lambda status: replace(status, resources=data))
        elif container.state is ContainerState.RUNNING:
            await self._change(container, after, data)
        else:
            raise FailedPrecondition(f"cannot update container {container.meta.id}: it is {container.state}")

    async def put_back(self, container: Container) -> None:
        """Have a container that runs limited as it was before an update of which that is not certain."""
        async with container.lock:
            if UPDATE in container.intents and container.meta.id in self._world.containers:
                await self._put_back(container)

    async def _change(self, container: Container, after: pb.LinuxContainerResources, data: bytes) -> None:
        await self._begin(container, container_cgroup(container), after, self._bundles.limits(container))
        crashpoint("update.recorded")
        try:
            await self._apply(container, after)
            crashpoint("update.applied")
            await self._world.update_container(container, lambda status: replace(status, resources=data), end=UPDATE)
        except (HoldfastError, OSError) as exc:
            what = f"cannot update container {container.meta.id}: {exc}"
            kind = type(exc) if isinstance(exc, HoldfastError) else Unavailable
            try:
                if isinstance(exc, UNTOLD):
                    raise Unavailable("how far it got is not known") from exc
                await self._put_back(container)
            except (HoldfastError, OSError) as left:
                self.see_to(container)
                raise kind(f"{what}; the limits that it had are put back as soon as that can be done: {left}") from exc
            raise kind(f"{what}; it has the limits that it had") from exc
        crashpoint("update.done")

    def see_to(self, container: Container) -> None:
        """Put back what it had, as soon as that can be done."""
        self._background.see_through(f"limits of container {container.meta.id}", lambda: self.put_back(container))

    async def _put_back(self, container: Container) -> None:
        if container.state is ContainerState.UNKNOWN:
            raise Unavailable("it is not known whether it runs")
        if container.state is ContainerState.RUNNING:
            try:
                await self._apply(container, _overlaid(self._bundles.limits(container), _seen(container)))
            except (NotFound, FailedPrecondition) as exc:
                if not container.exited.is_set():
                    raise Unavailable(str(exc)) from exc
        await self._world.end(container, UPDATE)

    async def _apply(self, container: Container, limits: pb.LinuxContainerResources) -> None:
        task = await self._shims.task(container.pod.meta.id)
        await task.update(container.meta.id, rules.to_update(limits), seconds=SECONDS)

    async def _begin(
        self, owner: Pod | Container, path: str, after: pb.LinuxContainerResources, before: pb.LinuxContainerResources
    ) -> None:
        """The intent keeps what the files say that are about to change, also those that no row has a word on.

        While an earlier update is not taken back yet, what was there before that one is kept.
        """
        found = _overlaid(await self._cgroups.seen(path, after, before), _seen(owner))
        await self._world.begin(owner, UPDATE, seen=found.SerializeToString(deterministic=True).hex())

    # -- whole pods

    async def begin_pod(self, pod: Pod) -> None:
        """Limit the cgroup of a pod that is being made, if it is ours."""
        if self._ours_alone(pod):
            await self._cgroups.limit(pod.meta, self._total(asked_of(pod)), pb.LinuxContainerResources())

    async def update_pod(
        self, pod: Pod, overhead: pb.LinuxContainerResources | None, resources: pb.LinuxContainerResources | None
    ) -> None:
        """Replace what is given. A cgroup that is ours follows; one that is the client's own it has changed itself.

        Raises what there is to say, and then nothing is changed.
        """
        for given, field in ((overhead, "overhead"), (resources, "resources")):
            if given is not None:
                rules.check(given, field)
                rules.in_force(given, self._facts, field)
        async with pod.lock:
            if pod.state is not PodState.READY:
                raise FailedPrecondition(f"cannot update pod sandbox {pod.meta.id}: it is not ready")
            asked = asked_of(pod)
            before = self._total(asked)
            if overhead is not None:
                asked.overhead.CopyFrom(overhead)
            if resources is not None:
                asked.resources.CopyFrom(resources)
            data = asked.SerializeToString(deterministic=True)
            await self._begin(pod, pod_cgroup(pod), self._total(asked), before)
            crashpoint("updatep.recorded")
            try:
                if self._ours_alone(pod):
                    await self._cgroups.limit(pod.meta, self._total(asked), before)
                crashpoint("updatep.applied")
                await self._world.update_pod(pod, lambda status: replace(status, resources=data), end=UPDATE)
            except (HoldfastError, OSError):
                self.see_to_pod(pod)
                raise
            crashpoint("updatep.done")

    def see_to_pod(self, pod: Pod) -> None:
        """Put back what it had, as soon as that can be done."""
        self._background.see_through(f"limits of pod {pod.meta.id}", lambda: self.put_back_pod(pod))

    async def put_back_pod(self, pod: Pod) -> None:
        """Have the pod's cgroup limited as it was before an update of which that is not certain."""
        async with pod.lock:
            if UPDATE not in pod.intents or pod.meta.id not in self._world.pods:
                return
            if self._ours_alone(pod) and pod.state is PodState.READY:
                had = _overlaid(self._total(asked_of(pod)), _seen(pod))
                now = await self._cgroups.seen(pod_cgroup(pod), had, pb.LinuxContainerResources())
                await self._cgroups.limit(pod.meta, had, now)
            await self._world.end(pod, UPDATE)

    def _ours_alone(self, pod: Pod) -> bool:
        """Whether the pod's cgroup is ours, and no other pod's as well, which its limits are not for."""
        parent = pod.meta.cgroup_parent
        others = (one.meta for one in self._world.pods.values() if one is not pod)
        return bool(pod.meta.owns_cgroup) and all(one.cgroup_parent != parent for one in others)

    def _total(self, asked: pb.UpdatePodSandboxResourcesRequest) -> pb.LinuxContainerResources:
        """Of swap only what is said: what each container may have of it is its own matter."""
        whole = rules.total(asked.resources, asked.overhead)
        found = rules.in_force(whole, self._facts, "config.linux.resources")
        if not whole.memory_swap_limit_in_bytes:
            found.ClearField("memory_swap_limit_in_bytes")
        return found


def asked_of(pod: Pod) -> pb.UpdatePodSandboxResourcesRequest:
    """What is asked for, by the last update or the config: `resources` of the containers together, and `overhead`."""
    if pod.status.resources:
        return pb.UpdatePodSandboxResourcesRequest.FromString(pod.status.resources)
    linux = pod.config.linux
    return pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod.meta.id, resources=linux.resources, overhead=linux.overhead
    )


def _seen(owner: Pod | Container) -> pb.LinuxContainerResources:
    """What the files said before an update that is under way."""
    intent = owner.intents.get(UPDATE)
    return pb.LinuxContainerResources.FromString(bytes.fromhex(str(intent.data.get("seen", ""))) if intent else b"")


def _overlaid(lower: pb.LinuxContainerResources, upper: pb.LinuxContainerResources) -> pb.LinuxContainerResources:
    """All that the upper one says, and of the lower one what that says nothing of."""
    found = pb.LinuxContainerResources()
    found.CopyFrom(lower)
    found.MergeFrom(upper)
    sizes = {one.page_size: one.limit for one in (*lower.hugepage_limits, *upper.hugepage_limits)}
    del found.hugepage_limits[:]
    found.hugepage_limits.extend(pb.HugepageLimit(page_size=size, limit=limit) for size, limit in sizes.items())
    return found
