"""The place where tests may stop or fail a process: nothing when off, exact when armed."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from holdfast.linux import files, inject


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inject, "_WHERE", str(tmp_path))
    monkeypatch.setattr(inject, "_opened", {})
    return tmp_path


def test_off_it_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("trace", "some.point", "fail-rename"):
        (tmp_path / name).write_text("1 5")
    inject.crashpoint("some.point")
    inject.fault("rename")
    assert sorted(os.listdir(tmp_path)) == ["fail-rename", "some.point", "trace"]
    assert (tmp_path / "trace").read_text() == "1 5"


def test_off_it_costs_next_to_nothing() -> None:
    def cost(call: object) -> float:
        began = time.perf_counter()
        for _ in range(10_000):
            call("x")  # type: ignore[operator]
        return (time.perf_counter() - began) / 10_000

    least = {name: min(cost(getattr(inject, name)) for _ in range(5)) for name in ("crashpoint", "fault")}
    assert max(least.values()) < 2e-6, least  # measured: 40 ns


def test_armed_with_nothing_it_passes(armed: Path) -> None:
    inject.fault("rename", "/some/where")
    inject.crashpoint("some.point")
    assert os.listdir(armed) == []


def test_the_trace_has_a_line_for_each_that_passes(armed: Path) -> None:
    (armed / "trace").write_text("")
    inject.fault("rename")
    inject.crashpoint("some.point")
    inject.fault("rename")
    mine = os.getpid()
    assert (armed / "trace").read_text() == f"{mine} fail-rename\n{mine} some.point\n{mine} fail-rename\n"


def test_the_nth_call_fails_and_only_that(armed: Path) -> None:
    (armed / "fail-rename").write_text(f"3 {errno.EIO}")
    inject.fault("rename")
    inject.fault("mkdir")
    inject.fault("rename")
    with pytest.raises(OSError, match="rename") as failed:
        inject.fault("rename", "/some/where")
    assert (failed.value.errno, failed.value.filename) == (errno.EIO, "/some/where")
    assert (armed / "fail-rename.hit").read_text() == str(os.getpid())
    inject.fault("rename")


def test_a_fault_may_last(armed: Path) -> None:
    (armed / "fail-rename").write_text(f"2 {errno.EIO} 3")
    outcomes = []
    for _ in range(6):
        try:
            inject.fault("rename")
            outcomes.append(0)
        except OSError as exc:
            outcomes.append(exc.errno or 0)
    assert outcomes == [0, errno.EIO, errno.EIO, errno.EIO, 0, 0]
    assert os.listdir(armed) == ["fail-rename.hit"]


def test_a_real_call_fails(armed: Path) -> None:
    (armed / "fail-fsync").write_text(f"1 {errno.ENOSPC}")
    with pytest.raises(OSError, match="fsync") as failed:
        files.write_atomic(armed / "file", b"x")
    assert failed.value.errno == errno.ENOSPC
    assert os.listdir(armed) == ["fail-fsync.hit"]
    files.write_atomic(armed / "file", b"x")


def test_of_many_at_once_exactly_one_fails(armed: Path) -> None:
    (armed / "fail-mkdir").write_text(f"50 {errno.EIO}")
    (armed / "trace").write_text("")
    failures: list[OSError] = []

    def pass_it() -> None:
        for _ in range(20):
            try:
                inject.fault("mkdir")
            except OSError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=pass_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.errno for one in failures] == [errno.EIO]
    assert Counter((armed / "trace").read_text().split("\n"))[f"{os.getpid()} fail-mkdir"] == 160


def test_the_nth_to_pass_a_crash_point_stops_there_and_goes_on_when_told(tmp_path: Path) -> None:
    (tmp_path / "some.point").write_text("2")
    program = (
        "from holdfast.linux.inject import crashpoint as c; c('some.point'); c('some.point'); c('some.point'); print(1)"
    )
    environment = {**os.environ, "HOLDFAST_INJECT": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as one:
        _, status = os.waitpid(one.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert (tmp_path / "some.point.hit").read_text() == str(one.pid)
        one.send_signal(signal.SIGCONT)
        assert one.communicate(timeout=20)[0] == b"1\n"


def test_a_directory_that_is_gone_is_as_good_as_off(armed: Path) -> None:
    armed.rmdir()
    inject.fault("rename")
    inject.crashpoint("some.point")
