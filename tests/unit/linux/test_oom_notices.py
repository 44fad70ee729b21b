"""The v2 side of OOM notices, which are notices of files; the kernel's own on v1 are in tests/root."""

import os
import select
from pathlib import Path

import pytest

from holdfast.linux import oom


def readable(notices: oom.Notices) -> bool:
    return bool(select.select([notices], [], [], 0)[0])


def test_files_that_are_modified_are_told_once(tmp_path: Path) -> None:
    notices = oom.FileNotices(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.events").write_text("oom_kill 0\n")
        notices.add(f"/{name}")
        notices.add(f"/{name}")
    assert not readable(notices)
    assert notices.read() == []
    for kills in range(3):
        (tmp_path / "a" / "memory.events").write_text(f"oom_kill {kills}\n")
    assert readable(notices)
    assert notices.read() == ["/a"]
    notices.remove("/a")
    (tmp_path / "a" / "memory.events").write_text("oom_kill 9\n")
    assert "/a" not in notices.read()
    (tmp_path / "b" / "memory.events").unlink()
    assert notices.read() == ["/b"], "it is gone, which is worth a look"
    assert notices.read() == []
    notices.close()


def test_when_notices_were_lost_all_are_looked_at(tmp_path: Path) -> None:
    notices = oom.FileNotices(tmp_path)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.events").write_text("oom_kill 0\n")
        notices.add(f"/{name}")
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = [os.open(tmp_path / name / "memory.events", os.O_WRONLY) for name in "ab"]
    for number in range(room + 1):  # in turns: two of the same in a row are one
        os.pwrite(files[number % 2], b"o", 0)
    found: set[str] = set()
    while readable(notices):
        found.update(notices.read())
    assert found == {"/a", "/b", "/c"}
    for file in files:
        os.close(file)
    notices.close()


def test_a_cgroup_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    notices = oom.FileNotices(tmp_path)
    with pytest.raises(FileNotFoundError):
        notices.add("/nowhere")
    notices.remove("/nowhere")
    notices.close()
