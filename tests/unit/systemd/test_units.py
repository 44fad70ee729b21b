"""Units by way of a small systemd that speaks D-Bus on a real socket; no real one runs where the tests do."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.systemd import ERROR, Systemd, systemd

from holdfast.model.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from holdfast.oci.unit_properties import INFINITY, properties
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.systemd import bus, units


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    with systemd(tmp_path / "bus") as one:
        monkeypatch.setenv(bus.ADDRESS, f"unix:path={tmp_path}/nobody,guid=1;{one.address}")
        yield one


def test_a_slice_is_started_once(manager: Systemd) -> None:
    units.start_slice("a-b.slice", "pod x")
    units.start_slice("a-b.slice", "pod x")
    assert manager.units["a-b.slice"]["Description"] == "pod x"
    assert manager.units["a-b.slice"]["MemoryAccounting"] is True
    assert manager.units["a-b.slice"]["DefaultDependencies"] is False
    assert manager.methods() == ["StartTransientUnit"] * 2


def test_a_job_may_end_before_it_is_told(manager: Systemd) -> None:
    manager.early = True
    units.start_slice("a.slice", "")
    assert "a.slice" in manager.units


def test_a_job_that_fails_is_told(manager: Systemd) -> None:
    manager.result = "failed"
    with pytest.raises(FailedPrecondition, match=r"cannot start a\.slice: systemd says: the job ended as 'failed'"):
        units.start_slice("a.slice", "")


def test_a_scope_has_its_process(manager: Systemd) -> None:
    units.start_scope("holdfast-1.scope", "a-b.slice", 4711, "init")
    found = manager.units["holdfast-1.scope"]
    assert (found["Slice"], found["PIDs"], found["Delegate"]) == ("a-b.slice", [4711], True)


def test_a_scope_takes_the_place_of_one_that_has_failed(manager: Systemd) -> None:
    manager.units["holdfast-1.scope"] = {"PIDs": [1]}
    units.start_scope("holdfast-1.scope", "a.slice", 2, "init")
    assert manager.units["holdfast-1.scope"]["PIDs"] == [2]
    assert manager.methods() == ["StartTransientUnit", "StopUnit", "ResetFailedUnit", "StartTransientUnit"]


def test_a_stop_is_done_when_there_is_nothing(manager: Systemd) -> None:
    units.start_slice("a.slice", "")
    units.stop("a.slice")
    assert not manager.units
    units.stop("a.slice")


def test_what_systemd_refuses_is_said_in_its_words(manager: Systemd) -> None:
    manager.refuse = {"StopUnit": ("org.freedesktop.DBus.Error.AccessDenied", "Not you.")}
    with pytest.raises(FailedPrecondition, match=r"cannot stop a\.slice: systemd says: Not you\."):
        units.stop("a.slice")
    with pytest.raises(FailedPrecondition, match=r"cannot change a\.slice: systemd says: Unit a\.slice not loaded"):
        units.set_properties("a.slice", [("CPUWeight", ("t", 5))])
    manager.refuse = {"Subscribe": (f"{ERROR}AlreadySubscribed", "")}
    units.start_slice("a.slice", "")


def test_limits_are_properties(manager: Systemd) -> None:
    units.start_slice("a.slice", "")
    asked = pb.LinuxContainerResources(
        cpu_shares=1024, cpu_quota=25000, cpu_period=50000, memory_limit_in_bytes=1 << 20, cpuset_cpus="0-2,9"
    )
    units.set_properties("a.slice", properties(asked, "v2"))
    found = manager.units["a.slice"]
    assert (found["CPUWeight"], found["CPUQuotaPerSecUSec"], found["MemoryMax"]) == (39, 500000, 1 << 20)
    assert bytes(found["AllowedCPUs"]) == b"\x07\x02"
    units.set_properties("a.slice", properties(pb.LinuxContainerResources(), "v2", asked))
    assert (found["CPUQuotaPerSecUSec"], found["MemoryMax"]) == (INFINITY, INFINITY)
    before = len(manager.calls)
    units.set_properties("a.slice", [])
    assert len(manager.calls) == before


def test_systemd_itself_is_preferred_and_not_greeted(
    manager: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bus.ADDRESS)
    monkeypatch.setattr(bus, "SYSTEM", str(manager.path))
    monkeypatch.setattr(bus, "PRIVATE", str(tmp_path / "private"))
    units.start_slice("a.slice", "")
    assert [name for name, _ in manager.calls[:2]] == ["Hello", "AddMatch"]
    with systemd(tmp_path / "private", bus=False) as private:
        units.start_slice("b.slice", "")
        assert "b.slice" in private.units
        assert [name for name, _ in private.calls] == ["Subscribe", "StartTransientUnit"]


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bus.ADDRESS, f"unix:path={tmp_path}/nobody")
    with pytest.raises(Unavailable, match=f"cannot reach systemd: {tmp_path}/nobody: No such file"):
        units.stop("a.slice")
    monkeypatch.setenv(bus.ADDRESS, "tcp:host=example.org")
    monkeypatch.setattr(bus, "PRIVATE", str(tmp_path / "private"))
    monkeypatch.setattr(bus, "SYSTEM", str(tmp_path / "system"))
    with pytest.raises(Unavailable, match="cannot reach systemd"):
        units.stop("a.slice")


@pytest.mark.parametrize("method", ["Hello", "StartTransientUnit"])
def test_one_that_stands_still_is_given_up(manager: Systemd, method: str) -> None:
    manager.silent = {method}
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="systemd does not answer in time"):
        units.start_slice("a.slice", "", seconds=0.2)
    assert time.monotonic() - began < 5


def test_one_that_hangs_up(manager: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.silent = {"StartTransientUnit"}
    monkeypatch.setattr(Systemd, "_answer", lambda self, message: (_ for _ in ()).throw(OSError))
    with pytest.raises(Unavailable, match="cannot talk to systemd"):
        units.start_slice("a.slice", "")


def test_one_that_talks_nonsense(manager: Systemd) -> None:
    manager.nonsense = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4
    with pytest.raises((Unavailable, DeadlineExceeded)):
        units.start_slice("a.slice", "", seconds=1)
