"""Usage from the files of cgroups, as kernels write them, and of networks."""

import os
from pathlib import Path

import pytest

from holdfast.linux import cgroup, usage
from holdfast.linux.usage import Interface, Pressure, Usage

DEV = """Inter-|   Receive              |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0    100      1    0    0    0     0       0          0
  eth0: 1234567 8901    2    0    0     0          0         0 7654321   109    3    0    0     0       0          0
net1:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0
"""
PRESSURE = """some avg10=1.50 avg60=0.25 avg300=0.00 total=123456
full avg10=0.50 avg60=0.10 avg300=0.00 total=3456
"""


def write(top: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


def test_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {"": tmp_path})
    write(
        tmp_path / "a/b",
        {
            "cpu.stat": "usage_usec 12\nuser_usec 9\n",
            "memory.current": "1000\n",
            "memory.max": "max\n",
            "memory.stat": "anon 300\nfile 600\ninactive_file 400\npgfault 7\npgmajfault 2\n",
            "memory.swap.current": "5\n",
            "memory.swap.max": "50\n",
            "pids.current": "3\n",
            "memory.pressure": PRESSURE,
        },
    )
    some, full = Pressure(123456, (1.5, 0.25, 0.0)), Pressure(3456, (0.5, 0.1, 0.0))
    assert usage.of_cgroup("/a/b") == Usage(
        12000, 1000, 600, 300, 7, 2, None, 5, 50, 3, pressure={"memory": (some, full)}
    )
    write(tmp_path / "a/b", {"memory.max": "4096\n", "memory.current": "100\n"})
    found = usage.of_cgroup("a/b")
    assert found is not None
    assert (found.memory_limit, found.working_set) == (4096, 0), "never less than nothing"
    assert usage.of_cgroup("/a/gone") is None


def test_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {one: tmp_path / one for one in ("memory", "cpuacct", "pids")})
    stat = "cache 5\ntotal_rss 300\ntotal_inactive_file 400\ntotal_pgfault 7\ntotal_pgmajfault 2\n"
    write(
        tmp_path,
        {
            "cpuacct/a/cpuacct.usage": "12000\n",
            "memory/a/memory.stat": stat,
            "memory/a/memory.usage_in_bytes": "1000\n",
            "memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            "pids/a/pids.current": "3\n",
        },
    )
    assert usage.of_cgroup("/a") == Usage(12000, 1000, 600, 300, 7, 2, processes=3)
    swap = {"memory.memsw.usage_in_bytes": "1010", "memory.memsw.limit_in_bytes": "3000"}
    write(tmp_path / "memory/a", {"memory.limit_in_bytes": "2000", **swap})
    assert usage.of_cgroup("/a") == Usage(12000, 1000, 600, 300, 7, 2, 2000, 10, 1000, processes=3)
    assert usage.of_cgroup("/gone") is None


def test_our_own_cgroup_has_numbers() -> None:
    found = usage.of_cgroup(cgroup.of_process(os.getpid())) or usage.of_cgroup("/.")
    assert found is not None
    assert found.memory or found.cpu


def test_networks() -> None:
    assert usage.interfaces(DEV) == [
        Interface("eth0", 1234567, 8901, 2, 0, 7654321, 109, 3, 0),
        Interface("net1", 5, 1, 0, 0, 6, 1, 0, 0),
    ]
    assert usage.interfaces("") == []
    assert usage.of_networks([Path("/nowhere")]) == {}


def test_pressures() -> None:
    nothing = Pressure(0, (0.0, 0.0, 0.0))
    assert usage.pressures("some avg10=1.50 avg60=0.25 avg300=0.00 total=9\n") == (
        Pressure(9, (1.5, 0.25, 0.0)),
        nothing,
    )


@pytest.mark.parametrize(
    "text", ["anon 300\nrss 5\nfile_anon 9\n", "file_anon 9\nrss 5\nanon 300", "rss x\nanon 300\n"]
)
def test_what_is_picked_is_what_the_whole_table_has(text: str, tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text(text)
    whole = usage.table(str(tmp_path / "memory.stat")) or {}
    names = ("anon", "rss", "none")
    assert usage.picked(text, names) == {name: whole[name] for name in names if name in whole}
