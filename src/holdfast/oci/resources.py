"""Limits: cpu, memory, huge pages, and whatever else cgroups(7) have.

Three steps: `check` looks at what was asked for, `in_force` is what becomes of it on this host, which is recorded and
told, `to_oci` is the same in the OCI spec's words. In the CRI 0 is "not given", and -1 "without a limit".
"""

import re
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.oci.request import HostFacts, Spec
from holdfast.proto import runtime_v1_pb2 as pb

SHARES: Final = (2, 262144)  # what the kernel takes, sched/core.c; fewer are raised, as it does
PERIOD: Final = (1000, 1000000)  # microseconds, the same
PERIOD_DEFAULT: Final = 100000
QUOTA_LEAST: Final = 1000
SWAP_FILE: Final = "memory.swap.max"
_NUMBERS: Final = ("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes")
_LISTS: Final = ("cpuset_cpus", "cpuset_mems")
_LIST: Final = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*", re.ASCII)
_PAGE_SIZE: Final = re.compile("[1-9][0-9]*[KMG]B")
_CGROUP_FILE: Final = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")
# Files of cgroup v2 for which the CRI has a field, which must not say something else.
_SAME: Final = {
    "cpu.weight": "cpu_shares",
    "cpu.max": "cpu_quota",
    "cpuset.cpus": "cpuset_cpus",
    "cpuset.mems": "cpuset_mems",
    "memory.max": "memory_limit_in_bytes",
    SWAP_FILE: "memory_swap_limit_in_bytes",
}


def check(resources: pb.LinuxContainerResources, field: str, *, partial: bool = False) -> None:
    """Of an update by itself, which is `partial`, what it may lack is not looked at. Raises InvalidArgument."""
    _check_cpu(resources, field)
    for name in ("memory_limit_in_bytes", "memory_swap_limit_in_bytes"):
        if getattr(resources, name) < -1:
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)} is less than -1")
    if not partial:
        _check_swap(resources, field)
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"{field}.oom_score_adj: {resources.oom_score_adj} is not within -1000 and 1000")
    # Both become parts of file names in the cgroup.
    sizes = set()
    for number, limit in enumerate(resources.hugepage_limits):
        where = f"{field}.hugepage_limits[{number}].page_size"
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            raise InvalidArgument(f"{where}: {limit.page_size!r} is not a size")
        if limit.page_size in sizes:
            raise InvalidArgument(f"{where}: {limit.page_size!r} is there twice")
        sizes.add(limit.page_size)
    for key, value in resources.unified.items():
        _check_unified(key, value, resources, f"{field}.unified")


def _check_cpu(resources: pb.LinuxContainerResources, field: str) -> None:
    if not 0 <= resources.cpu_shares <= SHARES[1]:
        raise InvalidArgument(f"{field}.cpu_shares: {resources.cpu_shares} is not within 0 and {SHARES[1]}")
    if resources.cpu_period and not PERIOD[0] <= resources.cpu_period <= PERIOD[1]:
        raise InvalidArgument(
            f"{field}.cpu_period: {resources.cpu_period} is not within {PERIOD[0]} and {PERIOD[1]} microseconds"
        )
    if resources.cpu_quota not in (-1, 0) and resources.cpu_quota < QUOTA_LEAST:
        raise InvalidArgument(
            f"{field}.cpu_quota: {resources.cpu_quota} is neither -1 nor {QUOTA_LEAST} microseconds or more"
        )
    for name in _LISTS:
        if (text := getattr(resources, name)) and not _LIST.fullmatch(text):
            raise InvalidArgument(f"{field}.{name}: {text!r} is not a list of numbers such as '0-3,8'")


def _check_swap(resources: pb.LinuxContainerResources, field: str) -> None:
    """The limit on memory and swap together cannot be below that on memory, which it needs."""
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    if swap > 0 and limit <= 0:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes: it needs memory_limit_in_bytes")
    if 0 < swap < limit:
        raise InvalidArgument(
            f"{field}.memory_swap_limit_in_bytes: {swap} is for memory and swap together, and less than"
            f" memory_limit_in_bytes, {limit}"
        )


def _check_unified(key: str, value: str, resources: pb.LinuxContainerResources, field: str) -> None:
    if not _CGROUP_FILE.fullmatch(key):
        raise InvalidArgument(f"{field}: {key!r} is not a file of a cgroup")
    if key.startswith("cgroup.") and not key.startswith("cgroup.max."):
        raise InvalidArgument(f"{field}: {key!r} is not a limit")  # cgroup.procs would move any process of the host
    if not value.strip():
        raise InvalidArgument(f"{field}: {key!r} has no value")
    named = _SAME.get(key, "")
    pages = any(key == f"hugetlb.{limit.page_size}.max" for limit in resources.hugepage_limits)
    if pages or (named and getattr(resources, named)):
        raise InvalidArgument(f"{field}: {key!r} is limited by {named or 'hugepage_limits'} already")


def in_force(resources: pb.LinuxContainerResources, facts: HostFacts, field: str) -> pb.LinuxContainerResources:
    """What this host makes of it. Raises InvalidArgument for what only cgroup v2 has.

    As containerd does: without a limit on swap there is none to be had beyond the memory limit; where the kernel does
    not count swap its limit is ignored, and so are those on huge pages, which a kubelet sends for every size there is,
    where the OCI runtime finds no controller for them.
    """
    if resources.unified and facts.cgroup_mode != "v2":
        some = min(resources.unified)
        raise InvalidArgument(f"{field}.unified: {some!r} is of cgroup v2, and this host is {facts.cgroup_mode}")
    found = pb.LinuxContainerResources()
    found.CopyFrom(resources)
    if found.cpu_shares:
        found.cpu_shares = max(found.cpu_shares, SHARES[0])
    if not facts.swap:
        found.memory_swap_limit_in_bytes = 0
    elif not found.memory_swap_limit_in_bytes and SWAP_FILE not in found.unified:
        found.memory_swap_limit_in_bytes = found.memory_limit_in_bytes
    if not facts.hugetlb:
        del found.hugepage_limits[:]
    found.oom_score_adj = max(found.oom_score_adj, facts.oom_score_adj_min)
    return found


def merged(before: pb.LinuxContainerResources, change: pb.LinuxContainerResources) -> pb.LinuxContainerResources:
    """What is in force, with what an update gives; to be checked, and made to be in force, again.

    A new memory limit takes the limit on swap with it, unless that is given as well. The OOM score is given to a
    process once, and is no matter of updates, as with containerd and CRI-O.
    """
    found = pb.LinuxContainerResources()
    found.CopyFrom(before)
    for name in (*_NUMBERS, *_LISTS):
        if value := getattr(change, name):
            setattr(found, name, value)
    if change.memory_limit_in_bytes and not change.memory_swap_limit_in_bytes:
        found.memory_swap_limit_in_bytes = 0
    sizes = {one.page_size: one.limit for one in (*before.hugepage_limits, *change.hugepage_limits)}
    del found.hugepage_limits[:]
    found.hugepage_limits.extend(pb.HugepageLimit(page_size=size, limit=limit) for size, limit in sizes.items())
    found.unified.update(change.unified)
    return found


def total(resources: pb.LinuxContainerResources, overhead: pb.LinuxContainerResources) -> pb.LinuxContainerResources:
    """The limits of a whole pod: those of its containers together, and what running them takes beside.

    Where the containers have no limit the pod has none. Of two periods that of the containers counts.
    """
    found = pb.LinuxContainerResources()
    found.CopyFrom(resources)
    for name in ("memory_limit_in_bytes", "memory_swap_limit_in_bytes"):
        if getattr(resources, name) > 0:
            setattr(found, name, getattr(resources, name) + max(getattr(overhead, name), 0))
    if resources.cpu_quota > 0 and overhead.cpu_quota > 0:
        period = resources.cpu_period or PERIOD_DEFAULT
        found.cpu_quota += overhead.cpu_quota * period // (overhead.cpu_period or PERIOD_DEFAULT)
    if resources.cpu_shares:
        found.cpu_shares = min(resources.cpu_shares + overhead.cpu_shares, SHARES[1])
    if 0 < found.memory_swap_limit_in_bytes < found.memory_limit_in_bytes:  # the overhead has a limit on memory only
        found.memory_swap_limit_in_bytes = found.memory_limit_in_bytes
    return found


def to_update(limits: pb.LinuxContainerResources) -> Spec:
    """linux.resources for a cgroup that is there: what has no limit any more is set free.

    The period goes with it, without which crun says nothing to cgroup v2.
    """
    found = to_oci(limits)
    if limits.cpu_quota == -1:
        found["cpu"] = {"period": PERIOD_DEFAULT, **found.get("cpu", {}), "quota": -1}
    return found


def to_oci(limits: pb.LinuxContainerResources) -> Spec:
    """linux.resources of the OCI spec, of what is in force. A new cgroup has no quota, and crun cannot say so on v1."""
    cpu = {
        "shares": limits.cpu_shares,
        "quota": max(limits.cpu_quota, 0),
        "period": limits.cpu_period,
        "cpus": limits.cpuset_cpus,
        "mems": limits.cpuset_mems,
    }
    memory = {"limit": limits.memory_limit_in_bytes, "swap": limits.memory_swap_limit_in_bytes}
    found: Spec = {}
    if cpu := {key: value for key, value in cpu.items() if value}:
        found["cpu"] = cpu
    if memory := {key: value for key, value in memory.items() if value}:
        found["memory"] = memory
    if limits.hugepage_limits:
        found["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in limits.hugepage_limits]
    if limits.unified:
        found["unified"] = dict(limits.unified)
    return found
