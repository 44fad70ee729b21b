"""Log records: nothing lost, nothing added, however the bytes come; losses counted when writing fails."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.workers.shim import crilog
from holdfast.workers.shim.crilog import LINE_LIMIT, CriLog, Records
from holdfast.workers.shim.gap import Lost, timestamp

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
        assert 0 < seconds <= 1
        self.due.append(callback)

    def fire(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


class Disk:
    """What stands between a log and its file: room for so many bytes, or an error for all that would change it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 40
        self.error = 0
        self.can_truncate = True
        self.tries = 0
        write, truncate = os.write, os.ftruncate

        def limited(fd: int, data: bytes) -> int:
            self.tries += 1
            if self.error or self.room <= 0:
                raise OSError(number := self.error or errno.ENOSPC, os.strerror(number))
            done = write(fd, data[: self.room])
            self.room -= done
            return done

        def cut(fd: int, size: int) -> None:
            if self.error or not self.can_truncate:
                raise OSError(number := self.error or errno.EPERM, os.strerror(number))
            self.room += os.fstat(fd).st_size - size
            truncate(fd, size)

        patch.setattr(crilog.os, "write", limited)
        patch.setattr(crilog.os, "ftruncate", cut)

    def is_full(self) -> None:
        self.room = 0

    def has_room(self) -> None:
        self.room, self.error = 1 << 40, 0


class Kit:
    """A log, the disk it is on, and the timer it is given."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = directory / "0.log"
        self.later = Later()
        self.disk = Disk(patch)
        self.accounts: list[Lost] = []
        self.log = CriLog(str(self.path), self.later, self.accounts.append)
        self.moment = MOMENT

    def say(self, *lines: bytes, stream: str = "stdout", tag: str = "F") -> None:
        now = timestamp(self.moment)
        records = b"".join(now + f" {stream} {tag} ".encode() + line + b"\n" for line in lines)
        self.log.append(stream, records, self.moment)
        self.moment += 1_000_000_000

    def records(self, path: Path | None = None) -> list[str]:
        """As "stream tag line", markers without their times; the file ends with a whole record."""
        found = [b" ".join(record).decode() for record in parse((path or self.path).read_bytes())]
        return [re.sub(r" from \S+Z to \S+Z:", "", record) for record in found]


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    one = Kit(tmp_path, monkeypatch)
    yield one
    one.log.close()
    one.log.give_up()
    assert not crilog._lingering


def test_a_rotated_log_is_written_to_until_it_is_reopened(kit: Kit) -> None:
    kit.say(b"1")
    rotated = kit.path.rename(kit.path.with_suffix(".old"))
    kit.say(b"2")
    kit.log.reopen()
    kit.say(b"3")
    assert kit.records(rotated) == ["stdout F 1", "stdout F 2"]
    assert kit.records() == ["stdout F 3"]
    assert kit.path.stat().st_mode & 0o777 == 0o640
    assert not kit.later.due


def test_a_log_that_cannot_be_reopened_goes_on_and_tries_again(tmp_path: Path) -> None:
    directory, later = tmp_path / "logs", Later()
    directory.mkdir()
    log = CriLog(str(directory / "0.log"), later)
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.append("stdout", NOW + b" stdout F 1\n", MOMENT)
    later.fire()
    assert (tmp_path / "moved/0.log").read_bytes() == NOW + b" stdout F 1\n"
    directory.mkdir()
    later.fire()
    assert not later.due
    log.append("stdout", NOW + b" stdout F 2\n", MOMENT)
    log.close()
    assert (tmp_path / "logs/0.log").read_bytes() == NOW + b" stdout F 2\n"


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "0.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        CriLog(str(tmp_path / "0.log"), Later())
    assert not (tmp_path / "victim").exists()


def test_f18_losses_are_counted_and_said_once_it_works_again(kit: Kit) -> None:
    kit.disk.is_full()
    kit.say(b"one", b"two")
    kit.say(b"three")
    kit.later.fire()
    kit.disk.has_room()
    kit.later.fire()
    assert not kit.later.due
    kit.say(b"four")
    marker, last = kit.path.read_bytes().splitlines()
    assert marker.split(b" ", 1)[1] == (
        b"stdout F holdfast: lost 3 log lines (14 bytes) of stdout from %s to 2023-11-14T22:13:21.123456789Z: "
        b"No space left on device" % NOW
    )
    assert last.endswith(b" stdout F four")
    assert kit.accounts == [(2, 8, 0, 0), (3, 14, 0, 0), (0, 0, 0, 0)]


def test_f18_nothing_but_the_timer_tries_a_disk_that_is_full(kit: Kit) -> None:
    kit.disk.is_full()
    for _ in range(100):
        kit.say(b"lost")
    assert (kit.disk.tries, len(kit.later.due)) == (1, 1)
    kit.later.fire()
    assert (kit.disk.tries, len(kit.later.due)) == (2, 1)


def test_f18_streams_are_counted_apart_and_said_together(kit: Kit) -> None:
    kit.disk.is_full()
    kit.say(b"out")
    kit.say(b"e", b"r", stream="stderr")
    kit.disk.room, kit.disk.error = 1 << 40, errno.EIO
    kit.later.fire()
    kit.disk.has_room()
    kit.later.fire()
    assert kit.records() == [
        "stderr F holdfast: lost 1 log lines (4 bytes) of stdout and 2 log lines (4 bytes) of stderr "
        "No space left on device, Input/output error"
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EPERM, errno.EFBIG])
def test_f18_whatever_the_reason_it_is_named(kit: Kit, number: int) -> None:
    kit.disk.error = number
    kit.say(b"lost")
    kit.disk.has_room()
    kit.later.fire()
    assert kit.records() == [f"stdout F holdfast: lost 1 log lines (5 bytes) of stdout {os.strerror(number)}"]


def test_f18_a_torn_record_is_taken_back(kit: Kit) -> None:
    kit.say(b"1")
    kit.disk.room = kit.path.stat().st_size + 10
    kit.say(b"2", b"3", b"4")
    assert kit.records() == ["stdout F 1", "stdout F 2"]
    kit.disk.has_room()
    kit.later.fire()
    kit.say(b"5")
    assert kit.records() == [
        "stdout F 1",
        "stdout F 2",
        "stdout F holdfast: lost 2 log lines (4 bytes) of stdout No space left on device",
        "stdout F 5",
    ]


def test_f18_a_marker_that_is_torn_is_taken_back_too(kit: Kit) -> None:
    kit.disk.is_full()
    kit.say(b"1")
    kit.disk.room = 60
    kit.later.fire()
    assert kit.path.read_bytes() == b""
    kit.disk.has_room()
    kit.later.fire()
    assert len(kit.records()) == 1


def test_f18_a_torn_record_that_cannot_be_taken_back_at_once_is_taken_back_later(kit: Kit) -> None:
    kit.disk.room, kit.disk.can_truncate = 60, False
    kit.say(b"1", b"2")
    assert not kit.path.read_bytes().endswith(b"\n")
    kit.disk.can_truncate = True
    kit.disk.has_room()
    kit.later.fire()
    assert [record[:15] for record in kit.records()] == ["stdout F 1", "stdout F holdfa"]


def test_f18_a_torn_record_of_a_file_that_only_grows_is_completed(kit: Kit) -> None:
    """chattr +a"""
    kit.disk.room, kit.disk.can_truncate = 82, False
    kit.say(b"1", b"2345")
    kit.disk.has_room()
    kit.later.fire()
    kit.say(b"6")
    first, torn, marker, last = kit.records()
    assert (first, torn, last) == ("stdout F 1", "stdout F ", "stdout F 6")
    assert "lost 1 log lines (5 bytes)" in marker


def test_f18_a_torn_record_in_a_file_that_somebody_has_changed_is_left_alone(kit: Kit) -> None:
    kit.disk.room, kit.disk.can_truncate = 60, False
    kit.say(b"1", b"2")
    with kit.path.open("wb") as file:
        file.write(b"truncated by somebody else, longer than what was there before; not our business\n")
    before = kit.path.read_bytes()
    kit.disk.can_truncate = True
    kit.disk.has_room()
    kit.later.fire()
    assert kit.path.read_bytes().startswith(before)


def test_f18_a_line_whose_end_is_lost_is_ended(kit: Kit) -> None:
    """What has begun with P needs an F before anything else of its stream, or it swallows the marker."""
    kit.say(b"begun ", tag="P")
    kit.disk.is_full()
    kit.say(b"going on ", tag="P")
    kit.say(b"end")
    kit.say(b"next")
    kit.disk.has_room()
    kit.later.fire()
    assert kit.records() == [
        "stdout P begun ",
        "stdout F ",
        "stdout F holdfast: lost 2 log lines (18 bytes) of stdout No space left on device",
    ]


def test_f18_a_line_whose_beginning_is_lost_is_lost(kit: Kit) -> None:
    """It counts once, although what of it comes after the gap has a marker of its own."""
    kit.disk.is_full()
    kit.say(b"begun ", tag="P")
    kit.disk.has_room()
    kit.later.fire()
    kit.say(b"going on ", tag="P")
    kit.say(b"other", stream="stderr")
    kit.say(b"end", b"next")
    kit.say(b"last")
    assert kit.records() == [
        "stdout F holdfast: lost 1 log lines (6 bytes) of stdout No space left on device",
        "stderr F other",
        "stdout F holdfast: lost 0 log lines (13 bytes) of stdout the rest of a line",
        "stdout F next",
        "stdout F last",
    ]
    assert not kit.later.due


def test_f18_a_marker_is_never_within_a_line_of_another_stream(kit: Kit) -> None:
    kit.say(b"begun ", stream="stderr", tag="P")
    kit.disk.is_full()
    kit.say(b"lost")
    kit.disk.has_room()
    kit.later.fire()
    kit.say(b"end", stream="stderr")
    assert [record[:12] for record in kit.records()] == ["stderr P beg", "stdout F hol", "stderr F end"]


def test_f18_an_end_of_line_is_written_once(kit: Kit) -> None:
    kit.say(b"begun ", tag="P")
    kit.disk.is_full()
    kit.say(b"end")
    kit.disk.room = 60  # enough for it, but not for the marker
    kit.later.fire()
    kit.disk.has_room()
    kit.later.fire()
    assert [record[:12] for record in kit.records()] == ["stdout P beg", "stdout F ", "stdout F hol"]


def test_f18_no_end_of_line_no_marker(kit: Kit) -> None:
    kit.say(b"begun ", tag="P")
    kit.disk.is_full()
    kit.say(b"end")
    kit.later.fire()
    assert kit.records() == ["stdout P begun "]
    kit.disk.has_room()
    kit.later.fire()
    assert len(kit.records()) == 3


@given(st.data())
def test_f18_every_line_is_in_the_log_or_counted(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Lines of all lengths, a disk that fails at any byte for any time: said is what the log has and counts."""
    with pytest.MonkeyPatch.context() as patch:
        kit = Kit(tmp_path_factory.mktemp("log"), patch)
        streams = {name: Records(name) for name in ("stdout", "stderr")}
        said: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        size = dict.fromkeys(said, 0)
        for number in range(data.draw(st.integers(1, 12))):
            stream = data.draw(st.sampled_from(sorted(said)))
            line = b"%d:" % number + b"x" * data.draw(st.sampled_from([0, 1, 100, 16_382, 40_000]))
            said[stream].append(line)
            size[stream] += len(line) + 1
            kit.disk.room = data.draw(st.sampled_from([0, 30, 60, 17_000, 1 << 40]))
            if data.draw(st.booleans()):
                kit.later.fire()
            cut = data.draw(st.integers(0, len(line)))
            for piece in (line[:cut], line[cut:] + b"\n"):
                kit.log.append(stream, streams[stream].feed(piece, MOMENT), MOMENT)
                if data.draw(st.booleans()):
                    kit.disk.has_room()
        kit.disk.has_room()
        kit.log.close()
        assert not crilog._lingering
        log = kit.path.read_bytes()
    for stream, lines in said.items():
        counts = re.findall(rb"(\d+) log lines \((\d+) bytes\) of " + stream.encode(), log)
        own = [record for record in parse(log) if record[0] == stream.encode()]
        whole = b"".join(
            line + (b"\n" if tag == b"F" else b"") for _, tag, line in own if not line.startswith(b"holdfast: lost")
        )
        kept = [line for line in whole.split(b"\n") if line in lines]
        assert len(kept) == len(set(kept))
        assert kept == [line for line in lines if line in kept]
        assert len(kept) + sum(int(count) for count, _ in counts) == len(lines)
        assert len(b"".join(line + b"\n" for line in kept)) + sum(int(lost) for _, lost in counts) <= size[stream]


def test_f18_a_log_that_was_removed_is_made_again(kit: Kit) -> None:
    kit.say(b"1")
    kit.path.unlink()
    kit.say(b"2")
    kit.say(b"3")
    assert kit.records() == ["stdout F 2", "stdout F 3"]
    assert not kit.later.due


def test_f18_a_log_whose_path_is_a_directory_is_counted(kit: Kit) -> None:
    kit.path.unlink()
    kit.path.mkdir()
    kit.say(b"1")
    kit.say(b"2")
    kit.later.fire()
    with pytest.raises(IsADirectoryError):
        kit.log.reopen()
    kit.path.rmdir()
    kit.later.fire()
    kit.say(b"3")
    marker, last = kit.records()
    assert marker == "stdout F holdfast: lost 2 log lines (4 bytes) of stdout its file was removed, Is a directory"
    assert last == "stdout F 3"
    assert not kit.later.due


def test_f18_a_reopened_log_says_at_once_what_the_old_one_could_not_take(kit: Kit) -> None:
    kit.disk.is_full()
    kit.say(b"1")
    kit.path.rename(kit.path.with_suffix(".old"))
    kit.disk.has_room()
    kit.log.reopen()
    assert len(kit.records()) == 1
    kit.later.fire()
    assert not kit.later.due
    assert len(kit.records()) == 1


def test_f18_what_cannot_be_said_at_the_end_is_said_later(kit: Kit) -> None:
    kit.disk.is_full()
    kit.say(b"1")
    kit.log.close()
    kit.later.fire()
    assert kit.records() == []
    kit.disk.has_room()
    kit.later.fire()
    assert kit.records() == ["stdout F holdfast: lost 1 log lines (2 bytes) of stdout No space left on device"]
    assert not kit.later.due
    assert not crilog._lingering


def test_f18_a_log_that_is_removed_after_the_end_is_let_go_of(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    """Or it would keep the very space that is wanted."""
    kit.disk.is_full()
    kit.say(b"1")
    kit.log.close()
    kit.path.unlink()
    kit.later.fire()
    assert not crilog._lingering
    assert not kit.later.due
    assert "lost 1 log lines" in capsys.readouterr().err
    assert not kit.path.exists()


def test_f18_so_many_wait_and_not_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(monkeypatch)
    disk.is_full()
    later = Later()
    for number in range(crilog.LINGERING + 1):
        log = CriLog(str(tmp_path / str(number)), later)
        log.append("stdout", NOW + b" stdout F lost\n", MOMENT)
        log.close()
    assert len(crilog._lingering) == crilog.LINGERING
    assert f"{tmp_path}/0: " in capsys.readouterr().err
    later.fire()
    assert len(later.due) == crilog.LINGERING
    crilog.last_words()
    assert not crilog._lingering
    assert capsys.readouterr().err.count("holdfast: lost") == crilog.LINGERING
    later.fire()
    assert not later.due


def test_f18_a_log_that_cannot_be_had_when_its_pod_is_adopted_is_had_later(tmp_path: Path) -> None:
    later = Later()
    log = CriLog(str(tmp_path / "missing/0.log"), later, adopted=True)
    log.append("stdout", NOW + b" stdout F 1\n", MOMENT)
    (tmp_path / "missing").mkdir()
    later.fire()
    log.close()
    assert b"lost 1 log lines" in (tmp_path / "missing/0.log").read_bytes()


def test_f09_an_adopted_log_knows_what_is_torn_and_what_has_begun(tmp_path: Path) -> None:
    path, later = tmp_path / "0.log", Later()
    path.write_bytes(NOW + b" stdout P begun\n" + NOW + b" stderr F whole\n" + NOW[:7])
    log = CriLog(str(path), later, adopted=True)
    log.lose("stdout", 1, 10, "its shim was killed")
    log.append("stderr", NOW + b" stderr F next\n", MOMENT)
    log.close()
    found = [(stream, tag, line[:12]) for stream, tag, line in parse(path.read_bytes())]
    assert found == [
        (b"stdout", b"P", b"begun"),
        (b"stderr", b"F", b"whole"),
        (b"stdout", b"F", b""),
        (b"stdout", b"F", b"holdfast: lo"),
        (b"stderr", b"F", b"next"),
    ]


def test_f09_an_adopted_log_that_is_nothing_but_torn_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_bytes(NOW[:20])
    log = CriLog(str(tmp_path / "0.log"), Later(), adopted=True)
    log.append("stdout", NOW + b" stdout F 1\n", MOMENT)
    log.close()
    assert (tmp_path / "0.log").read_bytes() == NOW + b" stdout F 1\n"


def test_throughput(tmp_path: Path) -> None:
    """A hundred thousand lines in well under a second: the log is never what a container waits for."""
    records, log = Records("stdout"), CriLog(str(tmp_path / "0.log"), Later())
    chunk = (b"x" * 79 + b"\n") * 819
    began = time.process_time()
    for _ in range(125):
        log.append("stdout", records.feed(chunk, MOMENT), MOMENT)
    assert time.process_time() - began < 1
    log.close()
