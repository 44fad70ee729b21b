"""Pods and containers as they are known, each with what is under way on it; who changes one is the world."""

import asyncio
from dataclasses import dataclass, field

from holdfast.model import cgroups
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata
from holdfast.model.state import ContainerState, ContainerStatus, PodState, PodStatus, container_state, pod_state
from holdfast.model.userns import UserNamespace
from holdfast.oci.namespaces import user_namespace
from holdfast.proto import runtime_v1_pb2 as pb


@dataclass(slots=True, eq=False)
class Pod:
    """A pod sandbox and its containers by id."""

    meta: PodMetadata
    status: PodStatus
    config: pb.PodSandboxConfig
    intents: dict[str, Intent] = field(default_factory=dict)
    containers: dict[str, "Container"] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    shim_lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by whoever replaces its shim
    released: bool = False  # being taken apart: it needs no shim any more
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set once its row is
    stage: str = ""  # what is being done to make it; not durable
    network_trouble: str = ""  # what was found missing of its network after this start
    shown: tuple[PodStatus, bytes] | None = None  # as lists show it, for as long as the status is this one
    attributes: pb.PodSandboxAttributes | None = None  # as statistics show it

    @property
    def state(self) -> PodState:
        return pod_state(self.status)

    @property
    def acknowledged(self) -> bool:
        return "run" not in self.intents

    @property
    def users(self) -> UserNamespace | None:
        """Of its own, if it has any."""
        return user_namespace(self.config.linux.security_context.namespace_options)

    @property
    def owner(self) -> tuple[int, int] | None:
        """What root of the pod is on the host, when that is somebody else than the host's."""
        return self.users.outside(0, 0) if self.users is not None else None


@dataclass(slots=True, eq=False)
class Container:
    """A container; `exited` is set once its exit is known for good, `cleaned` once nothing of its task is left."""

    meta: ContainerMetadata
    status: ContainerStatus
    config: pb.ContainerConfig
    pod: Pod
    intents: dict[str, Intent] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    written: asyncio.Event = field(default_factory=asyncio.Event)
    cleaned: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    stage: str = ""
    shown: tuple[ContainerStatus, bytes] | None = None  # as lists show it, for as long as the status is this one
    attributes: pb.ContainerAttributes | None = None  # as statistics show it

    @property
    def state(self) -> ContainerState:
        return container_state(self.status)

    @property
    def acknowledged(self) -> bool:
        return "create" not in self.intents


def container_cgroup(container: Container) -> str:
    return cgroups.path_of(container.pod.meta.cgroup_parent, container.meta.id)


def pod_cgroup(pod: Pod) -> str:
    return cgroups.parent_path(pod.meta.cgroup_parent)


def init_cgroup(meta: PodMetadata) -> str:
    """Where the init of a shared pid namespace is, so that it can be found and ended without its shim."""
    return cgroups.path_of(meta.cgroup_parent, meta.id)


def network_cgroup(meta: PodMetadata) -> str:
    """Where its network plugins are executed: in none of a container's, which an OCI runtime wants to itself."""
    return f"{init_cgroup(meta)}-cni"
