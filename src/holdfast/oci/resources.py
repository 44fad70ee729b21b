"""Limits: cpu, memory, huge pages, and whatever else cgroups(7) have."""

import re
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.oci.request import HostFacts, Spec
from holdfast.proto import runtime_v1_pb2 as pb

_PAGE_SIZE: Final = re.compile("[1-9][0-9]*[KMG]B")
_CGROUP_FILE: Final = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")


def check(resources: pb.LinuxContainerResources, field: str) -> None:
    """Raises InvalidArgument."""
    for name in ("cpu_period", "cpu_shares", "memory_limit_in_bytes"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)} is negative")
    for name in ("cpu_quota", "memory_swap_limit_in_bytes"):
        if getattr(resources, name) < -1:
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)} is less than -1")
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"{field}.oom_score_adj: {resources.oom_score_adj} is not within -1000 and 1000")
    for name in ("cpuset_cpus", "cpuset_mems"):
        if not re.fullmatch("[0-9,-]*", getattr(resources, name)):
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)!r} is not a list of numbers")
    # Both become parts of file names in the cgroup.
    for number, limit in enumerate(resources.hugepage_limits):
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            raise InvalidArgument(f"{field}.hugepage_limits[{number}].page_size: {limit.page_size!r} is not a size")
    for key in resources.unified:
        if not _CGROUP_FILE.fullmatch(key):
            raise InvalidArgument(f"{field}.unified: {key!r} is not a file of a cgroup")


def resources_to_oci(resources: pb.LinuxContainerResources, facts: HostFacts) -> Spec:
    """Limits, as far as they were given and this host can set them; 0 is "not given" in the CRI.

    A kubelet sends a limit for every size of huge page, whether or not this host has the controller.
    """
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    memory = {"limit": resources.memory_limit_in_bytes, "swap": resources.memory_swap_limit_in_bytes}
    found: Spec = {}
    if cpu := {key: value for key, value in cpu.items() if value}:
        found["cpu"] = cpu
    if memory := {key: value for key, value in memory.items() if value}:
        found["memory"] = memory
    if resources.hugepage_limits and facts.hugetlb:
        found["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in resources.hugepage_limits]
    if resources.unified and facts.cgroup_mode == "v2":
        found["unified"] = dict(resources.unified)
    return found
