"""The log file, read and followed."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from holdfast.cli.logs import Log, follow_log
from holdfast.proto import runtime_v1_pb2 as pb

Run = Callable[..., tuple[int, str, str]]


def entry(text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-01-01T00:00:00.000000001Z {stream} {tag} {text}\n".encode()


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
    answered = threading.Event()
    plain = fake.ContainerStatus

    def status(request: pb.ContainerStatusRequest, context: grpc.ServicerContext) -> pb.ContainerStatusResponse:
        if len([one for one in fake.asked if isinstance(one, pb.ContainerStatusRequest)]) == 3:
            log.write_bytes(log.read_bytes() + entry("last"))
            fake.containers[request.container_id].state = pb.CONTAINER_EXITED
            answered.set()
        return plain(request, context)

    fake.ContainerStatus = status
    assert holdfast("logs", "-f", "web").out == "first\nlast\n"


def test_following_goes_on_while_the_daemon_is_down(fake, log: Path, holdfast: Run) -> None:
    log.write_bytes(entry("here"))
    plain = fake.ContainerStatus

    def status(request: pb.ContainerStatusRequest, context: grpc.ServicerContext) -> pb.ContainerStatusResponse:
        times = len([one for one in fake.asked if isinstance(one, pb.ContainerStatusRequest)])
        fake.fail = {"ContainerStatus": (grpc.StatusCode.UNAVAILABLE, "Socket closed")} if times in (1, 2) else {}
        if times == 4:
            fake.containers.clear()  # removed: that ends it too
        return plain(request, context)

    fake.ContainerStatus = status
    assert holdfast("logs", "-f", "web") == (0, "here\n", "")


def test_no_line_is_lost_or_doubled_by_rotation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(entry("1"))
    log, steps = Log(path), iter(range(9))

    def step() -> bool:
        number = next(steps)
        if number == 1:
            path.write_bytes(path.read_bytes() + entry("2"))
            path.rename(tmp_path / "0.log.1")
            (tmp_path / "0.log.1").open("ab").write(entry("3"))  # until it is told to reopen, the shim writes here
        if number == 2:
            (tmp_path / "0.log.1").open("ab").write(entry("4"))
            path.write_bytes(entry("5"))
        if number == 3:
            path.write_bytes(b"")
        if number == 4:
            path.write_bytes(entry("6")[:-4])
        if number == 5:
            path.open("ab").write(entry("6")[-4:])
        return number == 5

    follow_log(log, step)
    log.close()
    assert capfd.readouterr().out == "1\n2\n3\n4\n5\n6\n"
