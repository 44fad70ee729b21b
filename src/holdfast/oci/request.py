"""What a spec is made from."""

from dataclasses import dataclass, field
from typing import Any

from holdfast.model.image import Image
from holdfast.model.spec import DeviceNode
from holdfast.oci.capabilities import CAPABILITIES
from holdfast.oci.cdi import Edits
from holdfast.oci.users import ResolvedUser
from holdfast.proto import runtime_v1_pb2 as pb

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What this host and this daemon can do; found once at start."""

    cgroup_mode: str = "v2"  # "v1", "hybrid" or "v2"
    oom_score_adj_min: int = -1000  # without CAP_SYS_RESOURCE it cannot be lowered below our own
    capabilities: frozenset[str] = frozenset(CAPABILITIES)  # what we could give away
    hugetlb: bool = True  # whether the OCI runtime finds a hugetlb controller
    swap: bool = True  # whether the kernel counts swap, so that it can be limited
    files: tuple[int, int] | None = None  # soft and hard limit on open files; runc's own raise the first
    machine: str = "x86_64"  # as uname(2) names it
    kernel: tuple[int, int] = (6, 1)
    seccomp: bool = True  # whether the kernel has filters
    apparmor: bool = False
    selinux: tuple[str, str] | None = None  # labels of a container's processes and files, where it is enabled


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
    unset_seccomp: str = ""  # the profile of who names none, see oci.profiles.parse; "" is unconfined
    seccomp_profile: bytes | None = None  # the file of a Localhost profile
    apparmor_default: str = ""  # the profile that RuntimeDefault is, if it is loaded
    apparmor_loaded: frozenset[str] = frozenset()  # profiles that the kernel has
    devices: tuple[tuple[DeviceNode, ...], ...] = ()  # for each of the config's, with the paths they have inside
    host_devices: tuple[DeviceNode, ...] = ()  # all of them, for a privileged container
    bind_devices: bool = False  # whether the OCI runtime cannot make nodes where there is a user namespace
    all_devices: bool = True  # whether a privileged container may use and make any device
    cdi: Edits = field(default_factory=Edits)
    sources: Sources = Sources(())
    limits: pb.LinuxContainerResources | None = None  # in force, after updates; None for those of the config
