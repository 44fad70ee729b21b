"""Limits of whole pods on cgroup v2, in directories that look like it, by themselves and with a small systemd."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.systemd import Systemd, systemd

from holdfast.lifecycle.cgroups import Cgroups
from holdfast.linux import cgroup
from holdfast.model.cgroups import parent_path
from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.spec import PodMetadata, new_id
from holdfast.oci.unit_properties import INFINITY
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.systemd import bus

NONE = pb.LinuxContainerResources()
ASKED = pb.LinuxContainerResources(
    cpu_shares=1024,
    cpu_quota=50000,
    memory_limit_in_bytes=64 << 20,
    hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
    unified={"memory.high": "5"},
)
FREE = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "memory.max": "max",
    "memory.high": "max",
    "hugetlb.2MB.max": "max",
}


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {"": tmp_path / "cgroup"})
    return tmp_path / "cgroup"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    with systemd(tmp_path / "bus") as one:
        monkeypatch.setenv(bus.ADDRESS, one.address)
        yield one


def pod(parent: str) -> PodMetadata:
    return PodMetadata(new_id(), "web", "default", "u", 0, "crun", b"", parent, True, 1)


def made(top: Path, parent: str) -> Path:
    directory = top / parent_path(parent).strip("/")
    directory.mkdir(parents=True)
    for name, text in FREE.items():
        (directory / name).write_text(text)
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {one.name: one.read_text() for one in directory.iterdir()}


async def test_limits_and_none_again(top: Path) -> None:
    directory, meta = made(top, "/pods/one"), pod("/pods/one")
    cgroups = Cgroups("cgroupfs", "/pods")
    await cgroups.limit(meta, ASKED, NONE)
    assert contents(directory) == {
        "cpu.weight": "39", "cpu.max": "50000 100000", "memory.max": str(64 << 20), "memory.high": "5",
        "hugetlb.2MB.max": "0",
    }  # fmt: skip
    before = await cgroups.seen("/pods/one", ASKED, NONE)
    assert dict(before.unified) == contents(directory)
    await cgroups.limit(meta, NONE, ASKED)
    assert contents(directory) == FREE | {"memory.high": "5", "hugetlb.2MB.max": "0"}, "nobody knows what these were"
    await cgroups.limit(meta, before, NONE)
    assert contents(directory) == dict(before.unified)


async def test_a_file_that_is_missing_leaves_the_others(top: Path) -> None:
    directory = made(top, "/pods/one")
    (directory / "memory.high").unlink()
    before = contents(directory)
    with pytest.raises(FailedPrecondition, match=r"cannot limit cgroup /pods/one: memory\.high: No such file"):
        await Cgroups("cgroupfs", "/pods").limit(pod("/pods/one"), ASKED, NONE)
    assert contents(directory) == before


async def test_systemd_is_told_as_well(top: Path, manager: Systemd) -> None:
    directory, meta = made(top, "pods-one.slice"), pod("pods-one.slice")
    cgroups = Cgroups("systemd", "pods.slice")
    manager.units["pods-one.slice"] = {}
    await cgroups.limit(meta, ASKED, NONE)
    assert manager.units["pods-one.slice"]["CPUWeight"] == 39
    assert contents(directory)["cpu.weight"] == "39"
    (directory / "memory.max").unlink()
    with pytest.raises(FailedPrecondition, match=r"memory\.max"):
        await cgroups.limit(meta, pb.LinuxContainerResources(cpu_shares=2, memory_limit_in_bytes=5), ASKED)
    found = manager.units["pods-one.slice"]
    assert (found["CPUWeight"], found["MemoryMax"], contents(directory)["cpu.weight"]) == (39, 64 << 20, "39")
    (directory / "memory.max").write_text("max")
    await cgroups.limit(meta, NONE, ASKED)
    assert (found["CPUWeight"], found["MemoryMax"], found["CPUQuotaPerSecUSec"]) == (100, INFINITY, INFINITY)
    del manager.units["pods-one.slice"]
    before = contents(directory)
    with pytest.raises(FailedPrecondition, match=r"cannot change pods-one\.slice: systemd says: Unit"):
        await cgroups.limit(meta, ASKED, NONE)
    assert contents(directory) == before


async def test_parents_of_new_pods(top: Path) -> None:
    id = new_id()
    by_path, by_unit = Cgroups("cgroupfs", "/pods"), Cgroups("systemd", "pods.slice")
    assert (by_path.parent("", id), by_path.root) == (f"/pods/{id}", "/pods")
    assert (by_unit.parent("", id), by_unit.root) == (f"pods-{id}.slice", "/pods.slice")
    assert by_unit.parent("/a.slice/a-b.slice", id) == "a-b.slice"
    with pytest.raises(InvalidArgument, match=r"config\.linux\.cgroup_parent: 'a\.slice' is not a path"):
        by_path.parent("a.slice", id)
    assert await by_unit.owned("a-b.slice", ())
    made(top, "a-b.slice")
    assert not await by_unit.owned("a-b.slice", ())
