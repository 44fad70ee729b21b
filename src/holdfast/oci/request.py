"""What a spec is made from."""

from dataclasses import dataclass, field
from typing import Any

from holdfast.model.image import Image
from holdfast.oci.capabilities import CAPABILITIES
from holdfast.oci.users import ResolvedUser
from holdfast.proto import runtime_v1_pb2 as pb

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What this host and this daemon can do; found once at start."""

    cgroup_mode: str = "v2"  # "v1", "hybrid" or "v2"
    oom_score_adj_min: int = -1000  # without CAP_SYS_RESOURCE it cannot be lowered below our own
    capabilities: frozenset[str] = frozenset(CAPABILITIES)  # what we could give away
    devices: tuple[tuple[str, str, int, int], ...] = ()  # (path, "c" or "b", major, minor) of the host's /dev
    hugetlb: bool = True  # whether the OCI runtime finds a hugetlb controller
    files: tuple[int, int] | None = None  # soft and hard limit on open files; runc's own raise the first


@dataclass(frozen=True, slots=True)
class Sources:
    """Of the config's mounts, in their order: paths of the host that were looked at, and exist.

    `recursive_read_only` is whether the OCI runtime makes such mounts itself.
    """

    paths: tuple[str, ...]
    recursive_read_only: bool = False


@dataclass(frozen=True, slots=True)
class SpecRequest:
    """Everything a spec is made from. Paths are the host's; a namespace without a path is made or not as CRI says."""

    pod_id: str
    container_id: str
    pod: pb.PodSandboxConfig
    container: pb.ContainerConfig
    image: Image
    user: ResolvedUser
    cgroups_path: str
    hostname: str
    namespaces: dict[str, str] = field(default_factory=dict)
    facts: HostFacts = HostFacts()
    resolv_conf: str = ""
    hosts: str = ""
    hostname_path: str = ""
    shm: str = ""
    sources: Sources = Sources(())
