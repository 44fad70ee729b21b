"""What this host and this daemon can do, found once at start."""

import resource
from pathlib import Path

from holdfast.linux import cgroup
from holdfast.oci.capabilities import CAPABILITIES
from holdfast.oci.request import HostFacts

CAP_SYS_RESOURCE = CAPABILITIES.index("SYS_RESOURCE")


def detect(files: int) -> HostFacts:
    """Missing capabilities are worked around, never fatal. `files` is the soft limit on open files for containers."""
    held = _bounding_set()
    lowest = -1000 if held >> CAP_SYS_RESOURCE & 1 else int(Path("/proc/self/oom_score_adj").read_text())
    return HostFacts(
        cgroup_mode=cgroup.mode(),
        oom_score_adj_min=lowest,
        capabilities=frozenset(name for number, name in enumerate(CAPABILITIES) if held >> number & 1),
        hugetlb=_hugetlb(),
        files=(files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    )


def _hugetlb() -> bool:
    """Whether the OCI runtimes find the controller: on a hybrid host they look at v1 only."""
    found = cgroup.hierarchies()
    if cgroup.mode() != "v2":
        return "hugetlb" in found
    return "hugetlb" in (found[""] / "cgroup.controllers").read_text().split()


def _bounding_set() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))
