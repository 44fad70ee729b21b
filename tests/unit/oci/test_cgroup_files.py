"""Limits of whole pods as cgroup files and as systemd's properties: golden cases for v1 and v2."""

from typing import Any

import pytest

from holdfast.oci.cgroup_files import Write, seen, weight, writes
from holdfast.oci.unit_properties import INFINITY, properties
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
Limits = pb.LinuxContainerResources
NONE = Limits()
FULL = Limits(
    cpu_shares=512, cpu_period=50000, cpu_quota=25000, cpuset_cpus="0-1", cpuset_mems="0",
    memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB,
    hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4 * MIB)],
)  # fmt: skip


def lines(limits: Limits, mode: str, before: Limits = NONE) -> list[str]:
    return [f"{one.controller}:{one.name}={one.value}" for one in writes(limits, mode, before)]


@pytest.mark.parametrize(("shares", "found"), [(2, 1), (1, 1), (1024, 39), (262144, 10000), (100, 4), (0, 100)])
def test_shares_are_weights(shares: int, found: int) -> None:
    assert weight(shares) == found


@pytest.mark.parametrize("mode", ["v1", "hybrid"])
def test_all_of_v1(mode: str) -> None:
    assert lines(FULL, mode) == [
        "cpu:cpu.shares=512",
        "cpu:cpu.cfs_period_us=50000",
        "cpu:cpu.cfs_quota_us=25000",
        "cpuset:cpuset.cpus=0-1",
        "cpuset:cpuset.mems=0",
        f"memory:memory.limit_in_bytes={64 * MIB}",
        f"memory:memory.memsw.limit_in_bytes={96 * MIB}",
        f"hugetlb:hugetlb.2MB.limit_in_bytes={4 * MIB}",
    ]


def test_all_of_v2() -> None:
    full = Limits()
    full.CopyFrom(FULL)
    full.unified.update({"pids.max": "9", "memory.high": "5"})
    assert lines(full, "v2") == [
        "cpu:cpu.weight=20",
        "cpu:cpu.max=25000 50000",
        "cpuset:cpuset.cpus=0-1",
        "cpuset:cpuset.mems=0",
        f"memory:memory.swap.max={32 * MIB}",
        f"memory:memory.max={64 * MIB}",
        f"hugetlb:hugetlb.2MB.max={4 * MIB}",
        f"hugetlb:hugetlb.2MB.rsvd.max={4 * MIB}",
        ":memory.high=5",
        ":pids.max=9",
    ]
    assert Write("hugetlb", "hugetlb.2MB.rsvd.max", str(4 * MIB), needed=False) in writes(full, "v2")


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_nothing_is_written_for_nothing(mode: str) -> None:
    assert writes(NONE, mode) == []
    assert properties(NONE, mode) == []


def test_what_was_limited_is_set_free() -> None:
    assert lines(NONE, "v1", FULL) == [
        "cpu:cpu.shares=1024",
        "cpu:cpu.cfs_period_us=100000",
        "cpu:cpu.cfs_quota_us=-1",
        "memory:memory.memsw.limit_in_bytes=-1",
        "memory:memory.limit_in_bytes=-1",
    ]
    assert lines(NONE, "v2", FULL) == [
        "cpu:cpu.weight=100",
        "cpu:cpu.max=max 100000",
        "memory:memory.swap.max=max",
        "memory:memory.max=max",
    ]


@pytest.mark.parametrize(
    ("limit", "swap", "first"),
    [(32, 32, "limit"), (128, 128, "memsw"), (32, 128, "memsw"), (64, 96, "limit"), (8, -1, "memsw")],
)
def test_memory_and_swap_together_are_never_limited_below_memory(limit: int, swap: int, first: str) -> None:
    after = Limits(memory_limit_in_bytes=limit * MIB, memory_swap_limit_in_bytes=swap * MIB if swap > 0 else swap)
    names = [one.name.split(".")[1] for one in writes(after, "v1", FULL) if one.controller == "memory"]
    assert names[0].startswith(first)


def test_what_files_say_can_be_written_again() -> None:
    said = {one.name: one.value for one in writes(FULL, "v1")}
    assert seen(said, "v1") == FULL
    free = seen({"memory.limit_in_bytes": "9223372036854771712", "cpu.cfs_quota_us": "-1"}, "hybrid")
    assert free == Limits(memory_limit_in_bytes=-1, cpu_quota=-1)
    said = {one.name: one.value for one in writes(FULL, "v2")}
    assert dict(seen(said, "v2").unified) == said
    assert lines(seen({"cpu.weight": "100", "cpuset.cpus": ""}, "v2"), "v2") == [":cpu.weight=100", ":cpuset.cpus=\n"]


def test_no_limit_on_v2() -> None:
    free = Limits(cpu_quota=-1, memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=-1)
    assert lines(free, "v2") == [
        "cpu:cpu.max=max 100000", "memory:memory.swap.max=max", "memory:memory.max=max",
    ]  # fmt: skip
    assert lines(Limits(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=5), "v2")[0] == "memory:memory.swap.max=0"


PROPERTIES: list[tuple[str, Limits, Limits, list[tuple[str, tuple[str, Any]]]]] = [
    ("v2", FULL, NONE, [
        ("CPUWeight", ("t", 20)),
        ("CPUQuotaPeriodUSec", ("t", 50000)),
        ("CPUQuotaPerSecUSec", ("t", 500000)),
        ("MemoryMax", ("t", 64 * MIB)),
        ("MemorySwapMax", ("t", 32 * MIB)),
        ("AllowedCPUs", ("ay", b"\x03")),
        ("AllowedMemoryNodes", ("ay", b"\x01")),
    ]),
    ("v1", FULL, NONE, [
        ("CPUShares", ("t", 512)),
        ("CPUQuotaPeriodUSec", ("t", 50000)),
        ("CPUQuotaPerSecUSec", ("t", 500000)),
        ("MemoryLimit", ("t", 64 * MIB)),
    ]),
    ("v2", Limits(cpu_quota=33333), NONE, [
        ("CPUQuotaPeriodUSec", ("t", 100000)),
        ("CPUQuotaPerSecUSec", ("t", 340000)),
    ]),
    ("v2", Limits(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=5), NONE, [
        ("MemoryMax", ("t", 5)),
        ("MemorySwapMax", ("t", 0)),
    ]),
    ("v2", NONE, FULL, [
        ("CPUWeight", ("t", 100)),
        ("CPUQuotaPeriodUSec", ("t", 100000)),
        ("CPUQuotaPerSecUSec", ("t", INFINITY)),
        ("MemoryMax", ("t", INFINITY)),
        ("MemorySwapMax", ("t", INFINITY)),
    ]),
    ("v2", Limits(cpuset_cpus="8,0-2"), NONE, [("AllowedCPUs", ("ay", b"\x07\x01"))]),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "limits", "before", "found"), PROPERTIES)
def test_properties_of_units(
    mode: str, limits: Limits, before: Limits, found: list[tuple[str, tuple[str, Any]]]
) -> None:
    assert properties(limits, mode, before) == found
