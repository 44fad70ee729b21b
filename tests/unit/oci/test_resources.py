"""Limits: what is refused, what is in force on which host, what an update leaves, and what the OCI spec says of it."""

from dataclasses import replace
from typing import Any

import pytest

from holdfast.model.errors import InvalidArgument
from holdfast.oci.request import HostFacts
from holdfast.oci.resources import check, in_force, merged, to_oci, to_update, total
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
V2 = HostFacts(cgroup_mode="v2")
V1 = HostFacts(cgroup_mode="v1")


def limits(**fields: Any) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(**fields)


def pages(**sizes: int) -> list[pb.HugepageLimit]:
    return [pb.HugepageLimit(page_size=size.lstrip("_"), limit=limit) for size, limit in sizes.items()]


BAD: list[tuple[pb.LinuxContainerResources, str]] = [
    (limits(cpu_period=-1), "linux.cpu_period: -1 is not within 1000 and 1000000 microseconds"),
    (limits(cpu_period=999), "linux.cpu_period: 999 is not within"),
    (limits(cpu_period=1000001), "linux.cpu_period: 1000001 is not within"),
    (limits(cpu_quota=-2), "linux.cpu_quota: -2 is neither -1 nor 1000 microseconds or more"),
    (limits(cpu_quota=999), "linux.cpu_quota: 999 is neither"),
    (limits(cpu_shares=-1), "linux.cpu_shares: -1 is not within 0 and 262144"),
    (limits(cpu_shares=262145), "linux.cpu_shares: 262145 is not within"),
    (limits(memory_limit_in_bytes=-2), "linux.memory_limit_in_bytes: -2 is less than -1"),
    (limits(memory_swap_limit_in_bytes=-2), "linux.memory_swap_limit_in_bytes: -2 is less"),
    (limits(memory_swap_limit_in_bytes=5), "linux.memory_swap_limit_in_bytes: it needs memory_limit_in_bytes"),
    (limits(memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=5), "swap_limit_in_bytes: it needs memory_limit"),
    (limits(memory_limit_in_bytes=6, memory_swap_limit_in_bytes=5), "swap_limit_in_bytes: 5 is for memory and swap"),
    (limits(oom_score_adj=1001), "linux.oom_score_adj: 1001 is not within"),
    (limits(oom_score_adj=-1001), "linux.oom_score_adj: -1001 is not within"),
    (limits(cpuset_cpus="0;1"), "linux.cpuset_cpus: '0;1' is not a list"),
    (limits(cpuset_cpus="0-"), "linux.cpuset_cpus: '0-' is not a list"),
    (limits(cpuset_cpus=",1"), "linux.cpuset_cpus: ',1' is not a list"),
    (limits(cpuset_mems="0\n"), r"linux.cpuset_mems: '0\\n' is not a list"),
    (limits(hugepage_limits=pages(**{"../2MB": 1})), r"hugepage_limits\[0\]"),
    (limits(hugepage_limits=pages(_=1)), "page_size: '' is not a size"),
    (limits(hugepage_limits=[*pages(_2MB=1), *pages(_2MB=2)]), r"hugepage_limits\[1\].page_size: '2MB' is there twice"),
    (limits(unified={"../memory.max": "1"}), "linux.unified: '../memory.max' is not a file"),
    (limits(unified={"memory": "1"}), "linux.unified: 'memory' is not a file"),
    (limits(unified={"memory.high": " "}), "linux.unified: 'memory.high' has no value"),
    (limits(unified={"cgroup.procs": "1"}), "linux.unified: 'cgroup.procs' is not a limit"),
    (limits(unified={"cgroup.kill": "1"}), "linux.unified: 'cgroup.kill' is not a limit"),
    (
        limits(unified={"memory.max": "5"}, memory_limit_in_bytes=5),
        "linux.unified: 'memory.max' is limited by memory_limit_in_bytes already",
    ),
    (limits(unified={"cpu.max": "max"}, cpu_quota=-1), "'cpu.max' is limited by cpu_quota already"),
    (
        limits(unified={"hugetlb.2MB.max": "0"}, hugepage_limits=pages(_2MB=0)),
        "'hugetlb.2MB.max' is limited by hugepage_limits already",
    ),
]


@pytest.mark.parametrize(("resources", "message"), BAD)
def test_bad_limits_are_refused_with_their_field(resources: pb.LinuxContainerResources, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check(resources, "linux")


@pytest.mark.parametrize(
    "resources",
    [
        limits(),
        limits(cpu_shares=2, cpu_quota=1000, cpu_period=1000, cpuset_cpus="0-3,8,10-11", cpuset_mems="0"),
        limits(cpu_quota=-1, memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=-1, oom_score_adj=-1000),
        limits(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=5),
        limits(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=-1),
        limits(hugepage_limits=pages(_2MB=0, _1GB=1 << 63), unified={"hugetlb.64KB.max": "0"}),
        limits(unified={"pids.max": "max", "memory.min": "1", "memory.oom.group": "1", "cgroup.max.depth": "3"}),
    ],
)
def test_good_limits_pass(resources: pb.LinuxContainerResources) -> None:
    check(resources, "linux")


IN_FORCE: list[tuple[str, HostFacts, pb.LinuxContainerResources, pb.LinuxContainerResources]] = [
    ("nothing", V2, limits(), limits()),
    ("one share is two", V1, limits(cpu_shares=1), limits(cpu_shares=2)),
    (
        "no swap unless it is asked for", V2,
        limits(memory_limit_in_bytes=64 * MIB),
        limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB),
    ),
    (
        "swap that is asked for", V2,
        limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB),
        limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB),
    ),
    (
        "swap that is not counted", replace(V1, swap=False),
        limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB),
        limits(memory_limit_in_bytes=64 * MIB),
    ),
    (
        "swap by the name of its file", V2,
        limits(memory_limit_in_bytes=64 * MIB, unified={"memory.swap.max": "5"}),
        limits(memory_limit_in_bytes=64 * MIB, unified={"memory.swap.max": "5"}),
    ),
    ("huge pages", V2, limits(hugepage_limits=pages(_2MB=0)), limits(hugepage_limits=pages(_2MB=0))),
    ("huge pages that are not counted", replace(V2, hugetlb=False), limits(hugepage_limits=pages(_2MB=0)), limits()),
    ("a score that may be set", V2, limits(oom_score_adj=-997), limits(oom_score_adj=-997)),
    ("a score that may not", replace(V2, oom_score_adj_min=5), limits(oom_score_adj=-997), limits(oom_score_adj=5)),
    ("what only v2 has", V2, limits(unified={"memory.high": "5"}), limits(unified={"memory.high": "5"})),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "asked", "found"), [one[1:] for one in IN_FORCE], ids=[one[0] for one in IN_FORCE])
def test_what_is_in_force(
    facts: HostFacts, asked: pb.LinuxContainerResources, found: pb.LinuxContainerResources
) -> None:
    assert in_force(asked, facts, "linux") == found
    assert in_force(found, facts, "linux") == found


@pytest.mark.parametrize("mode", ["v1", "hybrid"])
def test_files_of_v2_are_refused_elsewhere(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=f"linux.unified: 'memory.high' is of cgroup v2, and this host is {mode}"):
        in_force(limits(unified={"memory.high": "5"}), replace(V1, cgroup_mode=mode), "linux")


GOLDEN: list[tuple[pb.LinuxContainerResources, dict[str, Any]]] = [
    (limits(oom_score_adj=3), {}),
    (
        limits(
            cpu_period=100000, cpu_quota=50000, cpu_shares=2, cpuset_cpus="0-1", cpuset_mems="0",
            memory_limit_in_bytes=1 << 30, memory_swap_limit_in_bytes=2 << 30, hugepage_limits=pages(_2MB=0),
            unified={"memory.high": "5"},
        ),
        {
            "cpu": {"shares": 2, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"},
            "memory": {"limit": 1 << 30, "swap": 2 << 30},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "5"},
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("resources", "spec"), GOLDEN)
def test_the_oci_spec_of_limits(resources: pb.LinuxContainerResources, spec: dict[str, Any]) -> None:
    assert to_oci(resources) == spec
    assert to_update(resources) == spec


def test_no_quota_is_said_only_where_there_may_be_one() -> None:
    assert to_oci(limits(cpu_quota=-1, cpu_shares=5)) == {"cpu": {"shares": 5}}
    assert to_update(limits(cpu_quota=-1)) == {"cpu": {"quota": -1, "period": 100000}}
    assert to_update(limits(cpu_quota=-1, cpu_period=5000)) == {"cpu": {"quota": -1, "period": 5000}}


def test_an_update_may_give_the_limit_on_swap_alone() -> None:
    change = limits(memory_swap_limit_in_bytes=96 * MIB)
    check(change, "linux", partial=True)
    check(merged(limits(memory_limit_in_bytes=64 * MIB), change), "linux")
    with pytest.raises(InvalidArgument, match="linux.memory_swap_limit_in_bytes: it needs memory_limit_in_bytes"):
        check(merged(limits(), change), "linux")


def test_an_update_changes_what_it_gives() -> None:
    before = limits(
        cpu_shares=100, cpuset_cpus="0", memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB,
        oom_score_adj=7, hugepage_limits=pages(_2MB=0, _1GB=0), unified={"pids.max": "5"},
    )  # fmt: skip
    assert merged(before, limits()) == before
    change = limits(cpu_quota=20000, cpuset_cpus="0-1", oom_score_adj=9, unified={"memory.high": "9", "pids.max": "6"})
    change.hugepage_limits.extend(pages(_1GB=1 << 30))
    after = merged(before, change)
    assert (after.cpu_shares, after.cpu_quota, after.cpuset_cpus, after.oom_score_adj) == (100, 20000, "0-1", 7)
    assert after.unified == {"memory.high": "9", "pids.max": "6"}
    assert [(one.page_size, one.limit) for one in after.hugepage_limits] == [("2MB", 0), ("1GB", 1 << 30)]
    assert (after.memory_limit_in_bytes, after.memory_swap_limit_in_bytes) == (64 * MIB, 96 * MIB)


def test_a_new_memory_limit_takes_the_one_on_swap_with_it() -> None:
    before = in_force(limits(memory_limit_in_bytes=64 * MIB), V2, "linux")
    after = in_force(merged(before, limits(memory_limit_in_bytes=32 * MIB)), V2, "linux")
    assert (after.memory_limit_in_bytes, after.memory_swap_limit_in_bytes) == (32 * MIB, 32 * MIB)
    check(after, "linux")
    with pytest.raises(InvalidArgument, match="memory_swap_limit_in_bytes: 5 is for memory and swap together"):
        check(merged(before, limits(memory_swap_limit_in_bytes=5)), "linux")


TOTALS: list[tuple[pb.LinuxContainerResources, pb.LinuxContainerResources, pb.LinuxContainerResources]] = [
    (limits(), limits(), limits()),
    (limits(), limits(cpu_shares=10, memory_limit_in_bytes=MIB, cpu_quota=5000), limits()),
    (
        limits(cpu_shares=100, cpu_quota=50000, cpu_period=100000, memory_limit_in_bytes=64 * MIB),
        limits(cpu_shares=10, cpu_quota=5000, cpu_period=50000, memory_limit_in_bytes=MIB),
        limits(cpu_shares=110, cpu_quota=60000, cpu_period=100000, memory_limit_in_bytes=65 * MIB),
    ),
    (
        limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB),
        limits(memory_limit_in_bytes=MIB),
        limits(memory_limit_in_bytes=65 * MIB, memory_swap_limit_in_bytes=65 * MIB),
    ),
    (limits(cpu_quota=-1, memory_limit_in_bytes=-1), limits(cpu_quota=5000, memory_limit_in_bytes=MIB),
     limits(cpu_quota=-1, memory_limit_in_bytes=-1)),
]  # fmt: skip


@pytest.mark.parametrize(("resources", "overhead", "found"), TOTALS)
def test_the_limits_of_a_pod(
    resources: pb.LinuxContainerResources, overhead: pb.LinuxContainerResources, found: pb.LinuxContainerResources
) -> None:
    assert total(resources, overhead) == found
