"""What a killed shim leaves of a log, and how its successor goes on with it."""

import os
from pathlib import Path

import pytest

from holdfast.linux import files
from holdfast.workers.shim.flight import Flight
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.stdio import Stdio


def adopted(loop: Loop, bundle: Path, said: bytes) -> list[str]:
    """The log after a shim has adopted a container that had written `said` and has ended."""
    log = bundle.parent / "log"
    files.fifo(bundle / "stdout")
    writer = os.open(bundle / "stdout", os.O_RDWR)
    os.write(writer, said)
    stdio = Stdio(loop, bundle)
    stdio.adopt(("", f"cri://{log}", ""), False, {})
    stdio.finish()
    stdio.close()
    os.close(writer)
    assert not list(bundle.iterdir())
    return [line.split(" ", 2)[2] for line in log.read_text().splitlines()]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def test_f09_what_was_not_on_its_way_is_not_marked(loop: Loop, bundle: Path) -> None:
    flight = Flight(bundle)
    flight.announce("stdout", 100)
    flight.landed("stdout", b"")
    flight.close()
    assert adopted(loop, bundle, b"next\n") == ["F next"]


def test_f09_a_line_that_had_begun_is_completed(loop: Loop, bundle: Path) -> None:
    flight = Flight(bundle)
    flight.announce("stdout", 6)
    flight.landed("stdout", b"begun ")
    flight.close()
    assert adopted(loop, bundle, b"and ended\n") == ["F begun and ended"]


def test_f09_what_was_on_its_way_is_counted(loop: Loop, bundle: Path) -> None:
    flight = Flight(bundle)
    flight.landed("stdout", b"begun")
    flight.announce("stdout", 100)
    flight.close()
    marker, rest = adopted(loop, bundle, b"next\n")
    assert marker.startswith("F holdfast: lost 1 log lines (105 bytes)")
    assert marker.endswith("its shim was killed; at most so much of stdout was on its way")
    assert rest == "F next"


def test_f09_a_loss_that_was_not_said_yet_is_said(loop: Loop, bundle: Path) -> None:
    flight = Flight(bundle)
    flight.account((7, 700, 0, 0))
    flight.close()
    marker, rest = adopted(loop, bundle, b"next\n")
    assert marker.startswith("F holdfast: lost 7 log lines (700 bytes)")
    assert rest == "F next"


def test_f09_a_torn_record_is_cut_off(loop: Loop, bundle: Path) -> None:
    (bundle.parent / "log").write_text("1970-01-01T00:00:00.000000000Z stdout F whole\n1970-01-01T00:00")
    assert adopted(loop, bundle, b"next\n") == ["F whole", "F next"]
