"""The log file, read and followed."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from holdfast.cli.logs import Log, follow_log
from holdfast.proto import runtime_v1_pb2 as pb

Run = Callable[..., tuple[int, str, str]]


def entry(text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-01-01T00:00:00.000000001Z {stream} {tag} {text}\n".encode()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def log(fake, tmp_path: Path) -> Iterator[Path]:
    fake.add("1", "web")
    yield tmp_path / "web.log"


def test_streams_partial_lines_tail_and_times(log: Path, holdfast: Run) -> None:
    log.write_bytes(entry("one") + entry("oops", "stderr") + entry("two ", tag="P") + entry("halves") + entry(""))
    assert holdfast("logs", "web") == (0, "one\ntwo halves\n\n", "oops\n")
    assert holdfast("logs", "--tail", "2", "web") == (0, "two halves\n\n", "")
    assert holdfast("logs", "--tail", "3", "web") == (0, "two halves\n\n", "oops\n")
    assert holdfast("logs", "--tail", "0", "web").out == ""
    assert holdfast("logs", "--tail", "-1", "web") == holdfast("logs", "web")
    moment = "2026-01-01T00:00:00.000000001Z"
    assert holdfast("logs", "-t", "web").out == f"{moment} one\n{moment} two halves\n{moment} \n"


def at(moment: str, text: str, tag: str = "F", stream: str = "stdout") -> bytes:
    return f"{moment} {stream} {tag} {text}\n".encode()


def test_since_a_time(log: Path, holdfast: Run) -> None:
    log.write_bytes(
        at("2026-01-01T00:00:01.5Z", "early ", "P")
        + at("2026-01-01T00:00:02Z", "one", stream="stderr")
        + at("2026-01-01T00:00:03.000000001Z", "and late")
        + at("2026-01-01T01:00:02.000000001+01:00", "two")
        + b"no entry at all\n"
    )
    assert holdfast("logs", "--since", "2026-01-01T00:00:02Z", "web") == (0, "two\nno entry at all\n", "one\n")
    assert holdfast("logs", "--since", "2026-01-01T00:00:02.000000001Z", "web").out == "two\nno entry at all\n"
    assert holdfast("logs", "--since", "2026-01-01T00:00:01.5Z", "--tail", "3", "web").out == "two\nno entry at all\n"
    assert holdfast("logs", "--since", "2026-01-01T01:00:01.5+01:00", "web").out.startswith("early and late\n")


def test_since_so_long_ago(log: Path, holdfast: Run) -> None:
    ago = [datetime.fromtimestamp(time.time() - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for seconds in (500, 100)]
    log.write_bytes(at(ago[0], "old") + at(ago[1], "new"))
    assert holdfast("logs", "--since", "5m", "web").out == "new\n"
    assert holdfast("logs", "--since", "0h8.5m2s", "web").out == "old\nnew\n"
    assert holdfast("logs", "--since", "1s", "web").out == ""


@pytest.mark.parametrize("text", ["yesterday", "5", "5 m", "1d", "2026-01-01", "2026-13-01T00:00:00Z", "-5m"])
def test_since_nonsense(holdfast: Run, log: Path, text: str) -> None:
    status, _, err = holdfast("logs", f"--since={text}", "web")
    assert (status, err.count("\n"), "neither a duration nor a time (hint: " in err) == (1, 1, True)


def test_the_last_of_many_lines(log: Path, holdfast: Run) -> None:
    log.write_bytes(b"".join(entry(str(number)) for number in range(5000)))
    assert holdfast("logs", "--tail", "3", "web").out == "4997\n4998\n4999\n"


def test_a_log_that_is_not_there_yet_is_empty(log: Path, holdfast: Run) -> None:
    assert holdfast("logs", "web") == (0, "", "")


def test_following_ends_with_the_container(fake, log: Path, holdfast: Run) -> None:
    log.write_bytes(entry("first"))

    def end(times: int) -> None:
        if times == 3:
            append(log, entry("last"))
            next(iter(fake.containers.values())).state = pb.CONTAINER_EXITED

    fake.before_status = end
    assert holdfast("logs", "-f", "web").out == "first\nlast\n"


def test_following_goes_on_while_the_daemon_is_down(fake, log: Path, holdfast: Run) -> None:
    log.write_bytes(entry("here"))

    def fail(times: int) -> None:
        fake.fail = {"ContainerStatus": (grpc.StatusCode.UNAVAILABLE, "Socket closed")} if times in (1, 2) else {}
        if times == 4:
            fake.containers.clear()  # removed: that ends it too

    fake.before_status = fail
    assert holdfast("logs", "-f", "web") == (0, "here\n", "")


def test_no_line_is_lost_or_doubled_by_rotation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(entry("1"))
    log, steps = Log(path), iter(range(9))

    def step() -> bool:
        number = next(steps)
        if number == 1:
            append(path, entry("2"))
            path.rename(tmp_path / "0.log.1")
            append(tmp_path / "0.log.1", entry("3"))  # until it is told to reopen, the shim writes here
        if number == 2:
            append(tmp_path / "0.log.1", entry("4"))
            path.write_bytes(entry("5"))
        if number == 3:
            path.write_bytes(b"")
        if number == 4:
            path.write_bytes(entry("6")[:-4])
        if number == 5:
            append(path, entry("6")[-4:])
        return number == 5

    with log:
        follow_log(log, step)
    assert capfd.readouterr().out == "1\n2\n3\n4\n5\n6\n"
