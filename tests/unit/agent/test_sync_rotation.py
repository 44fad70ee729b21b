"""Rotation of logs: what is kept, packed and removed, and that no line is lost whoever fails in between."""

import asyncio
import contextlib
import gzip
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from kit.cri import Scripted
from kit.workers import SECONDS, pod_of

from holdfast.agent.plan.observed import Run, State
from holdfast.agent.sync import convert, rotation
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.rotation import Found, Limits, Rotation, excess, look, next_suffix, put_back, remove, sort
from holdfast.agent.sync.runtime import Runtime
from holdfast.linux import files
from holdfast.model.tally import Counter
from holdfast.proto import runtime_v1_pb2 as pb

OLD = (".20260101-000000.gz", ".20260101-000001.gz", ".20260101-000002")
POD = pod_of("{name: a, image: 'i:1'}")


def test_what_files_are() -> None:
    names = {*OLD, ".20260101-000001", ".20260101-000002.gz.tmp", ".mine", ".20260101"}
    assert sort(names, (), 7) == Found(7, OLD, (".20260101-000001", ".20260101-000002.gz.tmp"))
    assert sort(OLD, (OLD[2],), 7) == Found(7, OLD[:2], (OLD[2],)), "the log itself by another name"
    assert Found(None, OLD).newest == OLD[2]
    assert Found(None, OLD[:2]).newest == "", "what is packed nobody writes to"


@pytest.mark.parametrize(("most", "gone"), [(2, 3), (3, 2), (4, 1), (5, 0), (9, 0)])
def test_what_is_too_much(most: int, gone: int) -> None:
    assert excess(OLD, Limits(files=most)) == OLD[:gone]


def test_a_name_is_later_than_all_there_are() -> None:
    assert next_suffix((), 1767225600.9) == ".20260101-000000"
    assert next_suffix(OLD, 1767225602.0) == ".20260101-000003", "within a second"
    assert next_suffix(OLD[:1], 0.0) == ".20260101-000001", "a clock that was set back"


def test_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    assert look(path) == Found()
    path.write_bytes(b"12345")
    (tmp_path / "0.log.20260101-000000").write_bytes(b"")
    (tmp_path / "1.log.20260101-000000").write_bytes(b"")
    os.link(path, tmp_path / "0.log.20260101-000001")
    assert look(path) == Found(5, (".20260101-000000",), (".20260101-000001",))
    remove(path)
    assert [one.name for one in tmp_path.iterdir()] == ["1.log.20260101-000000"]
    remove(path)


def test_a_log_that_is_back_is_not_replaced(tmp_path: Path) -> None:
    path, old = tmp_path / "0.log", tmp_path / "0.log.20260101-000000"
    old.write_bytes(b"old")
    path.write_bytes(b"new")
    put_back(path, ".20260101-000000")
    assert (path.read_bytes(), old.read_bytes()) == (b"new", b"old")
    path.unlink()
    put_back(path, ".20260101-000000")
    assert (path.read_bytes(), old.exists()) == (b"old", False)


class Writer:
    """The runtime's side of one log: it writes lines that count, to what it has open."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        path.parent.mkdir(parents=True)
        self._file = path.open("ab", buffering=0)

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self._file.write(b"%d\n" % self.count)
            self.count += 1

    def reopen(self, _: str = "") -> None:
        self._file.close()
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def read(self) -> list[int]:
        """Of all that there is, in order."""
        older = sorted(one for one in self.path.parent.iterdir() if one != self.path)
        data = b"".join(gzip.decompress(one.read_bytes()) if one.suffix == ".gz" else one.read_bytes() for one in older)
        return list(map(int, (data + (self.path.read_bytes() if self.path.exists() else b"")).split()))


class There:
    def __init__(self, base: Path) -> None:
        self.node = Node("here", log_root=str(base / "logs"))
        self.cri = Scripted(base / "cri.sock")
        self.writer = Writer(Path(convert.log_path(POD, self.node, "a", 0)))
        self.cri.at_reopen = self.writer.reopen
        self.state = State.RUNNING
        self.runtime: Runtime | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, **limits: Any) -> None:
        self.runtime = Runtime(str(self.cri.socket), "/a")
        own = Limits(**{"size": 100, "files": 99, "seconds": 0.01, **limits})
        one = Rotation(self.runtime, self.node, own, Counter("rotations_total", "", ("result",)))
        run = Run("a", "c", "s", 0, self.state)
        self._task = asyncio.get_running_loop().create_task(one.run(lambda: [(POD, (run,))]))

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.runtime is not None:
            await self.runtime.close()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                assert self._task is not None
                assert not self._task.done(), self._task.result()
                await asyncio.sleep(0.005)

    def is_small(self) -> bool:
        """The log was rotated, and has its name again."""
        with contextlib.suppress(FileNotFoundError):
            return self.writer.path.stat().st_size < 100
        return False

    def older(self) -> list[str]:
        """Names without what the clock says of them."""
        names = sorted(one.name for one in self.writer.path.parent.iterdir() if one != self.writer.path)
        return [".gz" if name.endswith(".gz") else "plain" for name in names]


@pytest_asyncio.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    one = There(tmp_path)
    meta = pb.ContainerMetadata(name="a")
    one.cri.containers["c"] = pb.ContainerStatus(id="c", metadata=meta, state=pb.CONTAINER_RUNNING)
    await one.cri.up()
    try:
        yield one
    finally:
        await one.end()
        await one.cri.down()
        one.writer.close()


async def test_a_log_that_grows(there: There) -> None:
    there.begin()
    for _ in range(3):
        there.writer.write(50)
        await there.until(there.is_small)
    assert there.older() == [".gz", ".gz", "plain"]
    assert there.writer.read() == list(range(150))
    calls = len(there.cri.calls)
    await asyncio.sleep(0.1)
    assert len(there.cri.calls) == calls, "what is small is left alone"


async def test_only_so_many_files(there: There) -> None:
    there.begin(files=3)
    for _ in range(4):
        there.writer.write(50)
        await there.until(there.is_small)
    assert there.older() == [".gz", "plain"]
    assert there.writer.read() == list(range(100, 200)), "the last ones"


@pytest.mark.parametrize("done", [False, True])
async def test_a_runtime_that_fails_to_reopen(there: There, done: bool) -> None:
    """Whether it has reopened all the same or not: what it writes then, and to which file, is there."""
    there.cri.fail("ReopenContainerLog", grpc.StatusCode.UNAVAILABLE, done=done)
    there.writer.write(50)
    there.begin(size=10**6)
    await there.end()
    there.begin()
    await there.until(lambda: there.cri.asked("ReopenContainerLog") >= 1 and there.writer.path.exists())
    there.writer.write(50)
    await there.until(lambda: there.cri.asked("ReopenContainerLog") >= 2 and there.is_small())
    assert there.writer.read() == list(range(100))


@pytest.mark.parametrize("point", ["agent.log.room", "agent.log.renamed", "agent.log.reopened", "agent.log.packed"])
async def test_an_agent_that_dies_between_two_steps(there: There, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    hit = False

    def die(name: str) -> None:
        nonlocal hit
        if name == point:
            hit = True
            raise InterruptedError("killed")

    there.begin()
    there.writer.write(50)
    await there.until(there.is_small)
    monkeypatch.setattr(rotation, "crashpoint", die)
    there.writer.write(50)
    await there.until(lambda: hit)
    await there.end()
    there.writer.write(50)
    monkeypatch.setattr(rotation, "crashpoint", lambda name: None)
    there.begin()
    there.writer.write(50)
    await there.until(there.is_small)
    assert there.writer.read() == list(range(200))


async def test_a_container_that_has_ended_in_between_has_its_log(there: There) -> None:
    there.writer.write(50)
    there.writer.path.rename(f"{there.writer.path}.20260101-000000")
    there.state = State.EXITED
    there.begin()
    await there.until(lambda: there.writer.path.exists() and not there.older())
    assert there.writer.read() == list(range(50))


async def test_a_link_and_no_more(there: There) -> None:
    """The log was given its name back, and the agent died before the other one was taken from it."""
    there.writer.write(50)
    os.link(there.writer.path, f"{there.writer.path}.20260101-000000")
    there.begin()
    await there.until(lambda: there.cri.asked("ReopenContainerLog") and there.writer.path.exists())
    there.writer.write(5)
    assert there.writer.read() == list(range(55))


async def test_a_disk_that_does_not_take_it_is_said_once(
    there: There, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", full)
        there.writer.write(50)
        there.begin()
        await there.until(lambda: "No space left" in caplog.text)
        await asyncio.sleep(0.1)
        assert caplog.text.count("cannot rotate") == 1
    await there.until(there.is_small)
    assert there.writer.read() == list(range(50))
