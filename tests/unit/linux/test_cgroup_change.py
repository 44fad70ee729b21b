"""Files of a cgroup that are changed all or not at all, in directories that look like cgroup v2 and v1."""

from pathlib import Path

import pytest

from holdfast.linux import cgroup

CHANGES = [("cpu", "cpu.weight", "20"), ("memory", "memory.max", "5"), ("", "pids.max", "9")]


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {"": tmp_path})
    return made(tmp_path / "pods" / "one", {"cpu.weight": "100", "memory.max": "max", "pids.max": "max"})


def made(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {one.name: one.read_text().strip() for one in directory.iterdir() if one.is_file()}


def test_all_of_v2_is_in_one_place(v2: Path) -> None:
    cgroup.change("/pods/one", CHANGES)
    assert contents(v2) == {"cpu.weight": "20", "memory.max": "5", "pids.max": "9"}
    assert cgroup.has("/pods/one", "cpu", "cpu.weight")
    assert not cgroup.has("/pods/one", "cpu", "cpu.shares")


def test_what_was_written_is_taken_back(v2: Path) -> None:
    before = contents(v2)
    with pytest.raises(FileNotFoundError) as failure:
        cgroup.change("/pods/one", [*CHANGES, ("hugetlb", "hugetlb.2MB.max", "0")])
    assert failure.value.filename == str(v2 / "hugetlb.2MB.max")
    assert contents(v2) == before


def test_a_cgroup_that_is_gone(v2: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroup.change("/pods/two", CHANGES)


def test_controllers_of_v1_have_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tops = {"cpu": tmp_path / "cpu", "memory": tmp_path / "memory", "": tmp_path / "unified"}
    monkeypatch.setattr(cgroup, "hierarchies", lambda: tops)
    cpu = made(tops["cpu"] / "one", {"cpu.shares": "1024"})
    memory = made(tops["memory"] / "one", {"memory.limit_in_bytes": "9223372036854771712"})
    cgroup.change("one", [("cpu", "cpu.shares", "2"), ("memory", "memory.limit_in_bytes", "5")])
    assert (contents(cpu), contents(memory)) == ({"cpu.shares": "2"}, {"memory.limit_in_bytes": "5"})
