"""What pods may have as a whole."""

import pytest
from kit.workers import pod_of

from holdfast.agent.sync import limits
from holdfast.oci.cgroup_files import writes
from holdfast.proto import runtime_v1_pb2 as pb

HALF = "{name: a, image: i, resources: {requests: {cpu: 500m}, limits: {cpu: 1, memory: 64Mi}}}"
OTHER = "{name: b, image: i, resources: {limits: {cpu: 500m, memory: 32Mi}}}"
OPEN = "{name: c, image: i}"
SIDECAR = "{name: s, image: i, restartPolicy: Always, resources: {limits: {cpu: 250m, memory: 16Mi}}}"
HUGE = "{name: h, image: i, resources: {limits: {cpu: 1, memory: 1Mi, hugepages-2Mi: 4Mi}}}"
GREEDY = "{name: g, image: i, resources: {limits: {cpu: 4, memory: 8Mi}}}"


@pytest.mark.parametrize(
    ("containers", "init", "said"),
    [
        (OPEN, "", {"cpu.shares": "2"}),
        (f"{HALF}, {OPEN}", "", {"cpu.shares": "512"}),
        (f"{HALF}, {OTHER}", "",
         {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000",
          "memory.limit_in_bytes": str(96 << 20)}),
        (f"{HUGE}, {OPEN}", HUGE.replace("h,", "x,").replace("4Mi", "6Mi"),
         {"cpu.shares": "1024", "hugetlb.2MB.limit_in_bytes": str(6 << 20)}),
        (OTHER, f"{SIDECAR}, {GREEDY}",
         {"cpu.shares": "4352", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "425000",
          "memory.limit_in_bytes": str(48 << 20)}),
    ],
)  # fmt: skip
def test_in_several_hierarchies(containers: str, init: str, said: dict[str, str]) -> None:
    assert files(limits.of_pod(pod_of(containers, init=init)), "v1") == said


def test_in_one_hierarchy() -> None:
    found = files(limits.of_pod(pod_of(f"{HALF}, {OTHER}")), "v2")
    assert found == {"cpu.weight": "39", "cpu.max": "150000 100000", "memory.max": str(96 << 20)}
    assert files(limits.of_pod(pod_of(OPEN)), "v2") == {"cpu.weight": "1"}


def files(found: pb.LinuxContainerResources, mode: str) -> dict[str, str]:
    return {one.name: one.value for one in writes(found, mode)}


def test_classes_weigh_what_their_pods_request() -> None:
    pods = [pod_of(one) for one in (HALF, f"{HALF}, {OPEN}", OTHER, OPEN)]
    weights = {where: one.cpu_shares for where, one in limits.of_classes(pods, "/a-b", "cgroupfs").items()}
    assert weights == {"/a-b/burstable": 1024, "/a-b/besteffort": 2}, "OTHER is guaranteed"
    slices = limits.of_classes([], "/a-b", "systemd")
    assert {where: one.cpu_shares for where, one in slices.items()} == {
        "a_b-burstable.slice": 2,
        "a_b-besteffort.slice": 2,
    }
