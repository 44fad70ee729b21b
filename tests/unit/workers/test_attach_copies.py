"""Copies of a container's output for those who are attached: at once, for all the same, and never waited for."""

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.linux import files
from holdfast.ttrpc.server import FAILED_PRECONDITION, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, CallError
from holdfast.workers.shim import attach
from holdfast.workers.shim.attach import Attached
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.output import Output
from holdfast.workers.shim.pump import CHUNK, PIPE_BYTES, Pump, enlarge
from holdfast.workers.shim.stdio import Stdio

LOST = re.compile(rb"\r\nholdfast: lost (\d+) bytes of output: the reader was too slow\r\n")
UNSURE = b"\r\nholdfast: output may be lost here: what copied it was killed\r\n"


class Reader:
    """Somebody who is attached, or wants to be."""

    def __init__(self, bundle: Path, name: str, *streams: str) -> None:
        self.directory = bundle / "attach" / name
        self.directory.mkdir(parents=True)
        self.fds = {stream: self.make(stream) for stream in streams or ("stdout", "stderr")}

    def make(self, stream: str) -> int:
        files.fifo(self.directory / stream)
        return os.open(self.directory / stream, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, stream: str = "stdout", size: int = 1 << 30) -> bytes:
        """What is there now; it is at its end with EOFError."""
        found = bytearray()
        with contextlib.suppress(BlockingIOError):
            while len(found) < size:
                if not (data := os.read(self.fds[stream], min(CHUNK, size - len(found)))):
                    if not found:
                        raise EOFError
                    break
                found += data
        return bytes(found)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    return made


@pytest.fixture
def reader(bundle: Path) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(name: str, *streams: str) -> Reader:
        made.append(Reader(bundle, name, *streams))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def attached(loop: Loop, bundle: Path) -> Iterator[Attached]:
    before = descriptors()
    made = Attached(loop, bundle)
    yield made
    made.finish()
    for end in list(made._ends.values()):
        made._drop(end)
    assert not made
    assert descriptors() <= before


def descriptors() -> int:
    gc.collect()  # what earlier tests have left goes now, and not in between
    return len(os.listdir("/proc/self/fd"))


def turn(loop: Loop) -> None:
    loop.timers.add(0, lambda: None)
    loop.turn()


def refused(attached: Attached, directory: Path | str) -> int:
    with pytest.raises(CallError, match="^cannot attach: ") as caught:
        attached.add(str(directory))
    assert not attached
    return caught.value.code


def test_all_get_the_same_at_once(attached: Attached, reader: Callable[..., Reader]) -> None:
    one, two = reader("one"), reader("two", "stdout")
    attached.send("stdout", b"before")
    for each in (one, two, one):  # asked twice, it is done once
        attached.add(str(each.directory))
    attached.send("stdout", b"no newline")
    attached.send("stderr", b"\0\xff\n")
    assert (one.read(), one.read("stderr"), two.read()) == (b"no newline", b"\0\xff\n", b"no newline")
    attached.send("stdout", b" and on\n")
    assert (one.read(), one.read("stderr"), two.read()) == (b" and on\n", b"", b" and on\n")


def test_whoever_does_not_read_loses_it_and_is_told(
    loop: Loop, attached: Attached, reader: Callable[..., Reader]
) -> None:
    idle, busy = reader("idle"), reader("busy")
    for one in (idle, busy):
        attached.add(str(one.directory))
    sent, seen = 0, 0
    while sent < 4 * PIPE_BYTES:
        attached.send("stdout", b"x" * CHUNK)
        attached.send("stderr", b"y")
        seen += len(busy.read())
        sent += CHUNK
    assert seen == sent
    assert idle.read("stderr") == b"y" * (sent // CHUNK)
    kept = idle.read()
    assert len(kept) == PIPE_BYTES
    attached.send("stdout", b"lost, as nothing was told yet")
    turn(loop)
    attached.send("stdout", b"after")
    said = idle.read()
    assert (marker := LOST.match(said)) is not None
    assert said[marker.end() :] == b"after"
    assert kept == b"x" * len(kept)
    assert len(kept) + int(marker[1]) == sent + len(b"lost, as nothing was told yet")
    turn(loop)
    assert idle.read() == b""


def test_every_byte_is_there_or_counted(loop: Loop, attached: Attached, reader: Callable[..., Reader]) -> None:
    slow = reader("slow", "stdout")
    attached.add(str(slow.directory))
    sent, received = 0, bytearray()
    for number in range(1000):
        attached.send("stdout", data := b"%d" % (number % 10) * 5000)
        sent += len(data)
        received += slow.read(size=3000)
        turn(loop)
    attached.finish()
    while True:
        try:
            received += slow.read()
        except EOFError:
            break
        turn(loop)
    lost = sum(int(found[1]) for found in LOST.finditer(received))
    assert lost > 0
    assert len(LOST.sub(b"", received)) + lost == sent


def test_whoever_goes_is_forgotten_at_once(loop: Loop, attached: Attached, reader: Callable[..., Reader]) -> None:
    stays, goes = reader("stays"), reader("goes")
    before = descriptors()
    attached.add(str(stays.directory))
    among = descriptors()
    attached.add(str(goes.directory))
    os.close(goes.fds.pop("stderr"))
    attached.send("stderr", b"x")
    attached.send("stdout", b"x")
    turn(loop)
    assert goes.read() == b"x"
    goes.close()
    turn(loop)
    assert descriptors() == among - 2  # both of his own are gone, too
    attached.send("stdout", b"more")
    assert stays.read() == b"xmore"
    stays.close()
    turn(loop)
    assert not attached
    assert descriptors() == before - 4
    attached.send("stdout", b"nobody")


def test_there_is_a_limit(loop: Loop, attached: Attached, reader: Callable[..., Reader]) -> None:
    readers = [reader(f"r{number}", "stdout") for number in range(attach.LIMIT + 1)]
    for one in readers[:-1]:
        attached.add(str(one.directory))
    with pytest.raises(CallError, match="64 are attached already") as caught:
        attached.add(str(readers[-1].directory))
    assert caught.value.code == RESOURCE_EXHAUSTED
    readers[0].close()
    turn(loop)
    attached.add(str(readers[-1].directory))
    attached.send("stdout", b"x")
    assert all(one.read() == b"x" for one in readers[1:])


def test_only_fifos_that_somebody_reads(attached: Attached, bundle: Path, reader: Callable[..., Reader]) -> None:
    one = reader("one")
    for wrong in (
        one.directory.parent,
        f"{one.directory}/",
        f"{one.directory}/.",
        f"{one.directory.parent}/../attach/one",
        f"{one.directory.parent}/..",
        "attach/one",
        "",
        bundle / "elsewhere" / "one",
    ):
        assert refused(attached, wrong) == INVALID_ARGUMENT, wrong
    assert refused(attached, bundle / "attach" / "none") == FAILED_PRECONDITION
    (bundle / "attach" / "link").symlink_to(one.directory)
    assert refused(attached, bundle / "attach" / "link") == FAILED_PRECONDITION
    linked = reader("linked", "stderr")
    (linked.directory / "stdout").symlink_to(one.directory / "stdout")
    assert refused(attached, linked.directory) == FAILED_PRECONDITION
    mixed = reader("mixed", "stdout")
    (mixed.directory / "stderr").touch()
    before = descriptors()
    assert refused(attached, mixed.directory) == FAILED_PRECONDITION
    assert descriptors() == before
    one.close()
    assert refused(attached, one.directory) == FAILED_PRECONDITION


def test_the_end_comes_behind_everything(loop: Loop, attached: Attached, reader: Callable[..., Reader]) -> None:
    prompt, late = reader("prompt", "stdout"), reader("late", "stdout")
    attached.add(str(late.directory))
    attached.send("stdout", b"x" * (PIPE_BYTES + 7))
    attached.add(str(prompt.directory))
    attached.send("stdout", b"last")
    attached.finish()
    assert prompt.read() == b"last"
    with pytest.raises(EOFError):
        prompt.read()
    with pytest.raises(CallError, match="its output has ended"):
        attached.add(str(prompt.directory))
    assert len(late.read()) == PIPE_BYTES
    turn(loop)
    assert late.read() == b"\r\nholdfast: lost 11 bytes of output: the reader was too slow\r\n"
    with pytest.raises(EOFError):
        late.read()
    assert not attached


def test_a_successor_goes_on_and_says_so(loop: Loop, attached: Attached, reader: Callable[..., Reader]) -> None:
    one, gone, full = reader("one"), reader("gone"), reader("full", "stdout")
    gone.close()
    with open(full.directory / "stdout", "wb", buffering=0) as writer:
        enlarge(writer.fileno())
        os.set_blocking(writer.fileno(), False)
        while writer.write(b"z" * CHUNK):
            pass
    attached.find()
    attached.send("stdout", b"more")
    attached.send("stderr", b"more")
    assert one.read() == one.read("stderr") == UNSURE + b"more"
    assert set(full.read()) == set(b"z")
    turn(loop)
    attached.send("stdout", b"after")
    said = full.read()
    assert said == UNSURE + b"\r\nholdfast: lost 4 bytes of output: the reader was too slow\r\nafter"


def test_output_that_has_no_log_can_be_seen(loop: Loop, bundle: Path, reader: Callable[..., Reader]) -> None:
    stdio = Stdio(loop, bundle)
    stdio.open("", "cri://", "cri://")
    one = reader("one")
    stdio.output.attach(str(one.directory))
    own = {number: os.dup(fd) for number, fd in stdio.fds.items()}
    stdio.given()
    os.write(own[1], b"out")
    os.write(own[2], b"err")
    turn(loop)
    assert (one.read(), one.read("stderr")) == (b"out", b"err")
    os.write(own[1], b"last")
    stdio.finish()
    assert one.read() == b"last"
    stdio.close()
    for fd in own.values():
        os.close(fd)
    assert [path.name for path in bundle.iterdir()] == ["attach"]


def test_output_that_goes_past_the_shim_cannot(loop: Loop, bundle: Path, reader: Callable[..., Reader]) -> None:
    one, files_ = reader("one"), bundle.parent / "out"
    for target in ("", f"file://{files_}"):
        stdio = Stdio(loop, bundle, {})
        stdio.open("", target, target)
        with pytest.raises(CallError, match="does not pass through its shim") as caught:
            stdio.output.attach(str(one.directory))
        assert caught.value.code == FAILED_PRECONDITION
        stdio.close()


def test_what_a_terminal_says_comes_as_it_is(loop: Loop, bundle: Path, reader: Callable[..., Reader]) -> None:
    output = Output(loop, bundle)
    master, slave = os.openpty()
    sink, announce = output.take("stdout", str(bundle.parent / "log"))
    pump = Pump(loop, master, sink, announce)
    one = reader("one", "stdout")
    output.attach(str(one.directory))
    for text in (b"$ ", b"a line\n"):
        os.write(slave, text)
        seen = b""
        while seen != text.replace(b"\n", b"\r\n"):
            loop.turn()
            seen += one.read()
    one.close()
    turn(loop)
    os.write(slave, b"still here")  # who detaches does not hang up
    loop.turn()
    pump.close()
    output.finish()
    output.close()
    os.close(slave)
    assert (bundle.parent / "log").read_bytes().endswith(b" stdout P still here\n")
