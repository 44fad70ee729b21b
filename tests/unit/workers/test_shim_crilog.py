"""Log records: nothing lost, nothing added, however the bytes come; losses counted when writing fails."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.workers.shim import crilog
from holdfast.workers.shim.crilog import LINE_LIMIT, CriLog, Records, timestamp

MOMENT = 1_700_000_000_123_456_789
NOW = b"2023-11-14T22:13:20.123456789Z"


def parse(log: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, line) of each record."""
    records = [tuple(record.split(b" ", 3)[1:]) for record in log.split(b"\n")[:-1]]
    assert log == b"" or log.endswith(b"\n")
    return records  # type: ignore[return-value]


def text(log: bytes) -> bytes:
    return b"".join(line + (b"\n" if tag == b"F" else b"") for _, tag, line in parse(log))


def test_timestamps() -> None:
    assert timestamp(MOMENT) == NOW
    assert timestamp(MOMENT - 123_456_789) == b"2023-11-14T22:13:20.000000000Z"


def test_whole_lines_and_the_rest() -> None:
    records = Records("stderr")
    assert records.feed(b"one\ntw", MOMENT) == NOW + b" stderr F one\n"
    assert records.feed(b"", MOMENT) == b""
    assert records.feed(b"o\n\nthree", MOMENT) == NOW + b" stderr F two\n" + NOW + b" stderr F \n"
    assert records.finish(MOMENT) == NOW + b" stderr P three\n"
    assert records.finish(MOMENT) == b""


pieces = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"\n", b"\n\n", b"a" * (LINE_LIMIT - 1), b"b" * LINE_LIMIT, b"c" * (LINE_LIMIT + 1)]),
        st.integers(0, 70_000).map(b"d".__mul__),
    ),
    max_size=12,
)


@given(pieces)
def test_what_comes_out_is_what_went_in(chunks: list[bytes]) -> None:
    records = Records("stdout")
    log = b"".join(records.feed(chunk, MOMENT) for chunk in chunks) + records.finish(MOMENT)
    assert text(log) == b"".join(chunks)
    assert all(len(line) <= LINE_LIMIT and stream == b"stdout" for stream, _, line in parse(log))


@given(pieces, st.integers(1, 5000))
def test_records_do_not_depend_on_how_the_bytes_were_cut(chunks: list[bytes], size: int) -> None:
    data = b"".join(chunks)
    whole, cut = Records("stdout"), Records("stdout")
    expected = whole.feed(data, MOMENT) + whole.finish(MOMENT)
    found = b"".join(cut.feed(data[at : at + size], MOMENT) for at in range(0, len(data), size)) + cut.finish(MOMENT)
    assert found == expected


class Later:
    """A timer that goes off when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def __call__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def fire(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def record(number: int) -> bytes:
    return NOW + b" stdout F line %d\n" % number


def test_a_rotated_log_is_written_to_until_it_is_reopened(tmp_path: Path) -> None:
    log = CriLog(str(tmp_path / "0.log"), Later())
    log.append(record(1), MOMENT)
    (tmp_path / "0.log").rename(tmp_path / "0.log.1")
    log.append(record(2), MOMENT)
    log.reopen()
    log.append(record(3), MOMENT)
    log.close()
    assert (tmp_path / "0.log.1").read_bytes() == record(1) + record(2)
    assert (tmp_path / "0.log").read_bytes() == record(3)
    assert (tmp_path / "0.log").stat().st_mode & 0o777 == 0o640


def test_a_log_that_cannot_be_reopened_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    log = CriLog(str(directory / "0.log"), Later())
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.append(record(1), MOMENT)
    log.close()
    assert (tmp_path / "moved/0.log").read_bytes() == record(1)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "0.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        CriLog(str(tmp_path / "0.log"), Later())
    assert not (tmp_path / "victim").exists()


def test_losses_are_counted_and_reported_once_it_works_again(tmp_path: Path) -> None:
    later = Later()
    path = tmp_path / "0.log"
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 7))  # /dev/full
    log = CriLog(str(path), later)
    log.append(record(1) + record(2), MOMENT)
    log.append(record(3), MOMENT + 1_000_000_000)
    later.fire()
    path.unlink()
    log.reopen()
    later.fire()
    assert not later.due
    log.append(record(4), MOMENT)
    log.close()
    marker, last, _ = path.read_bytes().split(b"\n")
    assert marker.split(b" ", 1)[1] == (
        b"stderr F holdfast: lost 3 log lines (%d bytes) from %s to 2023-11-14T22:13:21.123456789Z: "
        b"No space left on device" % (len(record(1)) * 3, NOW)
    )
    assert last + b"\n" == record(4)


def test_a_torn_record_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that fills up in the middle of a write."""
    later = Later()
    room = len(record(1)) + 10
    real = os.write

    def until_full(fd: int, data: bytes) -> int:
        left = room - os.fstat(fd).st_size
        if left <= 0:
            raise OSError(28, "No space left on device")
        return real(fd, data[:left])

    log = CriLog(str(tmp_path / "0.log"), later)
    monkeypatch.setattr(crilog.os, "write", until_full)
    log.append(record(1) + record(2) + record(3), MOMENT)
    assert (tmp_path / "0.log").read_bytes() == record(1)
    monkeypatch.undo()
    log.append(record(4), MOMENT)
    log.close()
    first, marker, last = (tmp_path / "0.log").read_bytes().splitlines()
    assert (first + b"\n", last + b"\n") == (record(1), record(4))
    assert b"lost 2 log lines" in marker


def test_throughput(tmp_path: Path) -> None:
    """A hundred thousand lines in well under a second: the log is never what a container waits for."""
    records, log = Records("stdout"), CriLog(str(tmp_path / "0.log"), Later())
    chunk = (b"x" * 79 + b"\n") * 819
    began = time.process_time()
    for _ in range(125):
        log.append(records.feed(chunk, MOMENT), MOMENT)
    assert time.process_time() - began < 1
    log.close()
