"""The machine's memory."""

from pathlib import Path

import pytest

from holdfast.linux import memory


def test_no_more_can_be_had_than_there_is() -> None:
    assert 0 < memory.available() <= memory.total()


def test_the_kernels_estimate_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       16 kB\nMemFree:         1 kB\nMemAvailable:    7 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", str(told))
    assert memory.available() == 7 * 1024
    told.write_text("MemTotal: 16 kB\n")
    assert memory.available() == memory.total()
