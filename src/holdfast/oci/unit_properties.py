"""What limits are as properties of a systemd unit, systemd.resource-control(5), as runc has them.

systemd writes what it knows of a unit to the cgroup whenever it likes. So it is told, beside what is written to the
files; what it has no property for is in the files alone.
"""

from typing import Any, Final

from holdfast.oci.cgroup_files import SHARES_DEFAULT, weight
from holdfast.oci.resources import PERIOD_DEFAULT
from holdfast.proto import runtime_v1_pb2 as pb

INFINITY: Final = 2**64 - 1
_STEP: Final = 10000  # microseconds: systemd rounds a quota in a second to these, so it is rounded up to them
_NONE: Final = pb.LinuxContainerResources()


def properties(
    limits: pb.LinuxContainerResources, mode: str, before: pb.LinuxContainerResources = _NONE
) -> list[tuple[str, tuple[str, Any]]]:
    """Names with (signature, value), for limits that are in force in place of those `before`; `mode` as HostFacts."""
    v2 = mode == "v2"
    found: list[tuple[str, tuple[str, Any]]] = []
    if limits.cpu_shares or before.cpu_shares:
        share = ("CPUWeight", weight(limits.cpu_shares)) if v2 else ("CPUShares", limits.cpu_shares or SHARES_DEFAULT)
        found.append((share[0], ("t", share[1])))
    if any((limits.cpu_quota, limits.cpu_period, before.cpu_quota, before.cpu_period)):
        found.append(("CPUQuotaPeriodUSec", ("t", limits.cpu_period or PERIOD_DEFAULT)))
        found.append(("CPUQuotaPerSecUSec", ("t", _per_second(limits))))
    if limits.memory_limit_in_bytes or before.memory_limit_in_bytes:
        found.append(("MemoryMax" if v2 else "MemoryLimit", ("t", _or_infinity(limits.memory_limit_in_bytes))))
    if v2 and (limits.memory_swap_limit_in_bytes or before.memory_swap_limit_in_bytes):
        together = limits.memory_swap_limit_in_bytes
        alone = together - limits.memory_limit_in_bytes if together > 0 else -1
        found.append(("MemorySwapMax", ("t", _or_infinity(alone, least=0))))
    for name, text in (("AllowedCPUs", limits.cpuset_cpus), ("AllowedMemoryNodes", limits.cpuset_mems)):
        if v2 and text:
            found.append((name, ("ay", _bits(text))))
    return found


def _per_second(limits: pb.LinuxContainerResources) -> int:
    if limits.cpu_quota <= 0:
        return INFINITY
    exact = limits.cpu_quota * 1000000 // (limits.cpu_period or PERIOD_DEFAULT)
    return -(-exact // _STEP) * _STEP


def _or_infinity(limit: int, least: int = 1) -> int:
    return limit if limit >= least else INFINITY


def _bits(text: str) -> bytes:
    """A list such as "0-2,8" as systemd has sets: the lowest number is the lowest bit of the first byte."""
    found = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            found |= 1 << number
    return found.to_bytes(found.bit_length() // 8 + 1, "little").rstrip(b"\0") or b"\0"
