"""What pods may have as a whole."""

import pytest
from kit.workers import pod_of

from holdfast.agent.sync.limits import writes

HALF = "{name: a, image: i, resources: {requests: {cpu: 500m}, limits: {cpu: 1, memory: 64Mi}}}"
OTHER = "{name: b, image: i, resources: {limits: {cpu: 500m, memory: 32Mi}}}"
OPEN = "{name: c, image: i}"
SIDECAR = "{name: s, image: i, restartPolicy: Always, resources: {limits: {cpu: 250m, memory: 16Mi}}}"
GREEDY = "{name: g, image: i, resources: {limits: {cpu: 4, memory: 8Mi}}}"


@pytest.mark.parametrize(
    ("containers", "init", "said"),
    [
        (OPEN, "", {"cpu.shares": "2"}),
        (f"{HALF}, {OPEN}", "", {"cpu.shares": "512"}),
        (f"{HALF}, {OTHER}", "",
         {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000",
          "memory.limit_in_bytes": str(96 << 20)}),
        (OTHER, f"{SIDECAR}, {GREEDY}",
         {"cpu.shares": "4352", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "425000",
          "memory.limit_in_bytes": str(48 << 20)}),
    ],
)  # fmt: skip
def test_in_several_hierarchies(containers: str, init: str, said: dict[str, str]) -> None:
    assert {name: value for _, name, value in writes(pod_of(containers, init=init), False)} == said


def test_in_one_hierarchy() -> None:
    found = {name: value for _, name, value in writes(pod_of(f"{HALF}, {OTHER}"), True)}
    assert found == {"cpu.weight": "39", "cpu.max": "150000 100000", "memory.max": str(96 << 20)}
    assert {name: value for _, name, value in writes(pod_of(OPEN), True)} == {"cpu.weight": "1"}
