"""The log file, read and followed."""

from collections.abc import Callable, Iterator
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
    assert holdfast("logs", "--tail", "2", "web").out == "halves\n\n"
    assert holdfast("logs", "--tail", "0", "web").out == ""
    assert holdfast("logs", "-t", "web").out.startswith("2026-01-01T00:00:00.000000001Z one\n")


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
