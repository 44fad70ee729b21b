"""Copying between descriptors without ever waiting for either side."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.linux import files
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.pump import CHUNK, Copier, Pump
from holdfast.workers.shim.stdio import Stdio, open_fifo


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    turns = 0
    while not condition():
        loop.timers.add(0.05, lambda: None)
        loop.turn()
        turns += 1
        assert turns < 1000


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as exc:
        return exc.errno == errno.EBADF
    return False


def test_a_pump_takes_what_comes_and_ends_with_its_source(loop: Loop) -> None:
    source, writer = os.pipe()
    seen = bytearray()
    Pump(loop, source, seen.extend)
    os.write(writer, b"one")
    turn_until(loop, lambda: seen == b"one")
    os.write(writer, b"two")
    os.close(writer)
    turn_until(loop, lambda: is_closed(source))
    assert seen == b"onetwo"


def test_draining_takes_all_there_is_and_waits_for_nothing(loop: Loop) -> None:
    source, writer = os.pipe()
    seen = bytearray()
    pump = Pump(loop, source, seen.extend)
    pump.drain()
    os.write(writer, b"x" * 60_000)
    pump.drain()
    assert len(seen) == 60_000
    pump.close()
    pump.close()
    os.close(writer)


def test_a_full_target_stops_the_source_and_loses_nothing(loop: Loop) -> None:
    source, writer = os.pipe()
    reader, target = os.pipe()
    data = os.urandom(300_000)
    os.set_blocking(writer, False)
    Copier(loop, source, target)
    sent, received = 0, bytearray()
    while len(received) < len(data):
        if sent < len(data):
            try:
                sent += os.write(writer, data[sent : sent + CHUNK])
            except BlockingIOError:
                received += os.read(reader, 1000)
        else:
            os.set_blocking(reader, False)
            with contextlib.suppress(BlockingIOError):
                received += os.read(reader, 65536)
        loop.timers.add(0, lambda: None)
        loop.turn()
    assert received == data
    os.close(writer)
    turn_until(loop, lambda: is_closed(source) and is_closed(target))
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_finishing_delivers_what_is_left_and_closes(loop: Loop) -> None:
    source, writer = os.pipe()
    reader, target = os.pipe()
    copier = Copier(loop, source, target)
    os.write(writer, b"rest")
    copier.finish()
    assert is_closed(source)
    assert os.read(reader, 10) == b"rest"
    copier.close()
    for fd in (writer, reader):
        os.close(fd)


def test_a_target_whose_reader_is_gone_ends_the_copy(loop: Loop) -> None:
    source, writer = os.pipe()
    reader, target = os.pipe()
    Copier(loop, source, target)
    os.close(reader)
    os.write(writer, b"x")
    turn_until(loop, lambda: is_closed(target))
    os.close(writer)


def test_streams_of_a_container(loop: Loop, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    stdio = Stdio(loop, bundle)
    stdio.open(str(bundle / "stdin"), f"cri://{tmp_path}/log", "")
    assert sorted(stdio.kept) == ["stdin", "stdout"]
    assert sorted(path.name for path in bundle.iterdir()) == ["log.flight", "stdin", "stdout"]
    own = {number: os.dup(fd) for number, fd in stdio.fds.items()}
    stdio.given()
    os.write(own[1], b"to the log\nrest")
    os.write(own[2], b"nowhere")
    with open(bundle / "stdin", "wb") as writer:
        writer.write(b"input")
    assert os.read(own[0], 100) == b"input"
    stdio.close_stdin()
    assert os.read(own[0], 100) == b""
    stdio.finish()
    stdio.close()
    for fd in own.values():
        os.close(fd)
    assert [line.split(b" ", 2)[2] for line in (tmp_path / "log").read_bytes().splitlines()] == [
        b"F to the log",
        b"P rest",
    ]
    assert list(bundle.iterdir()) == []


def test_a_callers_fifo_is_left_to_him_and_must_be_one(loop: Loop, tmp_path: Path) -> None:
    files.fifo(tmp_path / "out")
    (tmp_path / "file").touch()
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    stdio = Stdio(loop, tmp_path / "bundle")
    stdio.open("", str(tmp_path / "out"), str(tmp_path / "out"))
    os.write(stdio.fds[1], b"direct")
    assert os.read(reader, 100) == b"direct"
    stdio.close()
    os.close(reader)
    assert (tmp_path / "out").exists()
    with pytest.raises(OSError, match="not a FIFO"):
        open_fifo(str(tmp_path / "file"), os.O_RDWR)
    with pytest.raises(OSError, match="Inappropriate"):
        stdio.resize(80, 24)
