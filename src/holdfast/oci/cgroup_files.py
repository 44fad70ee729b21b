"""What limits are in the files of a cgroup, for the cgroups that are ours and no OCI runtime's: those of whole pods.

The conversions to v2 are those of runc and crun: cpu.shares from 2 to 262144 become cpu.weight from 1 to 10000, and a
limit on memory and swap together becomes one on swap alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from holdfast.oci.resources import PERIOD_DEFAULT, SHARES
from holdfast.proto import runtime_v1_pb2 as pb

WEIGHTS: Final = (1, 10000)
SHARES_DEFAULT: Final = 1024
WEIGHT_DEFAULT: Final = 100
_FIELDS: Final = {
    "cpu.shares": "cpu_shares",
    "cpu.cfs_period_us": "cpu_period",
    "cpu.cfs_quota_us": "cpu_quota",
    "memory.limit_in_bytes": "memory_limit_in_bytes",
    "memory.memsw.limit_in_bytes": "memory_swap_limit_in_bytes",
}
_LISTS: Final = {"cpuset.cpus": "cpuset_cpus", "cpuset.mems": "cpuset_mems"}
_HUGE: Final = 1 << 62  # and more is how v1 shows that there is no limit
_NONE: Final = pb.LinuxContainerResources()


@dataclass(frozen=True, slots=True)
class Write:
    """A value for one file of a cgroup, in the hierarchy of a controller. `needed`: not given up if it is missing."""

    controller: str
    name: str
    value: str
    needed: bool = True


def weight(shares: int) -> int:
    """cpu.weight for cpu.shares, 0 for none."""
    if not shares:
        return WEIGHT_DEFAULT
    span = WEIGHTS[1] - WEIGHTS[0]
    return WEIGHTS[0] + (max(shares, SHARES[0]) - SHARES[0]) * span // (SHARES[1] - SHARES[0])


def writes(limits: pb.LinuxContainerResources, mode: str, before: pb.LinuxContainerResources = _NONE) -> list[Write]:
    """What is to be written, in order, for limits that are in force in place of those `before`; `mode` as HostFacts.

    What was limited and is no more is set free. What never was is left alone. Files of `unified` stay as they are when
    nothing is said of them any more: nobody knows what they were.
    """
    return _v2(limits, before) if mode == "v2" else _v1(limits, before)


def seen(found: Mapping[str, str], mode: str) -> pb.LinuxContainerResources:
    """What files of a cgroup say, by name, so that it can be written again: on v2 in the words of the files."""
    limits = pb.LinuxContainerResources()
    for name, text in found.items():
        if mode == "v2":
            limits.unified[name] = text or "\n"  # to write nothing at all would be no write
        elif name in _LISTS:
            setattr(limits, _LISTS[name], text)
        elif name in _FIELDS:
            setattr(limits, _FIELDS[name], -1 if (number := int(text)) >= _HUGE else number)
        else:
            limits.hugepage_limits.add(page_size=name.split(".")[1], limit=int(text))
    return limits


def _v1(limits: pb.LinuxContainerResources, before: pb.LinuxContainerResources) -> list[Write]:
    found = []
    if limits.cpu_shares or before.cpu_shares:
        found.append(Write("cpu", "cpu.shares", str(limits.cpu_shares or SHARES_DEFAULT)))
    if limits.cpu_period or before.cpu_period:
        found.append(Write("cpu", "cpu.cfs_period_us", str(limits.cpu_period or PERIOD_DEFAULT)))
    if limits.cpu_quota or before.cpu_quota:
        found.append(Write("cpu", "cpu.cfs_quota_us", str(limits.cpu_quota or -1)))
    found += _cpuset(limits)
    memory = []
    if limits.memory_limit_in_bytes or before.memory_limit_in_bytes:
        memory.append(Write("memory", "memory.limit_in_bytes", str(limits.memory_limit_in_bytes or -1)))
    if limits.memory_swap_limit_in_bytes or before.memory_swap_limit_in_bytes:
        memory.append(Write("memory", "memory.memsw.limit_in_bytes", str(limits.memory_swap_limit_in_bytes or -1)))
    if _more(limits.memory_swap_limit_in_bytes, before.memory_swap_limit_in_bytes):
        memory.reverse()  # that of memory and swap together is never the lower one
    found += memory
    for one in limits.hugepage_limits:
        found.append(Write("hugetlb", f"hugetlb.{one.page_size}.limit_in_bytes", str(one.limit)))
    return found


def _v2(limits: pb.LinuxContainerResources, before: pb.LinuxContainerResources) -> list[Write]:
    found = []
    if limits.cpu_shares or before.cpu_shares:
        found.append(Write("cpu", "cpu.weight", str(weight(limits.cpu_shares))))
    if any((limits.cpu_quota, limits.cpu_period, before.cpu_quota, before.cpu_period)):
        quota = str(limits.cpu_quota) if limits.cpu_quota > 0 else "max"
        found.append(Write("cpu", "cpu.max", f"{quota} {limits.cpu_period or PERIOD_DEFAULT}"))
    found += _cpuset(limits)
    if limits.memory_swap_limit_in_bytes or before.memory_swap_limit_in_bytes:
        found.append(Write("memory", "memory.swap.max", _swap_alone(limits)))
    if limits.memory_limit_in_bytes or before.memory_limit_in_bytes:
        found.append(Write("memory", "memory.max", _or_max(limits.memory_limit_in_bytes)))
    for one in limits.hugepage_limits:
        found.append(Write("hugetlb", f"hugetlb.{one.page_size}.max", str(one.limit)))
        found.append(Write("hugetlb", f"hugetlb.{one.page_size}.rsvd.max", str(one.limit), needed=False))
    found += [Write("", name, value) for name, value in sorted(limits.unified.items())]
    return found


def _cpuset(limits: pb.LinuxContainerResources) -> list[Write]:
    lists = (("cpuset.cpus", limits.cpuset_cpus), ("cpuset.mems", limits.cpuset_mems))
    return [Write("cpuset", name, value) for name, value in lists if value]


def _swap_alone(limits: pb.LinuxContainerResources) -> str:
    together = limits.memory_swap_limit_in_bytes
    return str(together - limits.memory_limit_in_bytes) if together > 0 else "max"


def _or_max(limit: int) -> str:
    return str(limit) if limit > 0 else "max"


def _more(limit: int, before: int) -> bool:
    return before > 0 and (limit <= 0 or limit > before)
