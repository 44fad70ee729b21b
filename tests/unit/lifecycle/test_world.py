"""What is known and cannot be written: shown at once, written when it can be, and nothing older is shown after it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import apsw
import pytest

from holdfast.lifecycle import world as worlds
from holdfast.lifecycle.events import Events
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.world import World
from holdfast.model.clock import Clock
from holdfast.model.errors import ResourceExhausted, Unavailable
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata, new_id
from holdfast.model.state import ContainerState, ContainerStatus, PodState, PodStatus, ProcessRef
from holdfast.store import pods as rows
from holdfast.store.copies import Copies
from holdfast.store.db import Store

PROCESS = ProcessRef(1234, 1, "boot")
LONG = "m" * 100_000  # a message that needs pages of its own


@dataclass
class Place:
    """A world with a pod of two running containers, on a store without a reserve."""

    store: Store
    world: World
    pod: Pod
    one: Container
    two: Container

    async def full(self) -> None:
        """SQLite itself refuses new pages from here on."""
        await self.store.read(lambda tx: tx.pragma("max_page_count", 1))

    async def read_only(self) -> None:
        await self.store.read(lambda tx: tx.pragma("query_only", 1))

    async def writable(self) -> None:
        def mend(tx: apsw.Connection) -> None:
            tx.pragma("max_page_count", 1 << 20)
            tx.pragma("query_only", 0)

        await self.store.read(mend)

    async def stored(self) -> dict[str, ContainerStatus]:
        return {meta.id: status for meta, status in await self.store.read(rows.load_containers)}

    async def intents(self) -> set[tuple[str, str]]:
        return {(one.object_id, one.op) for one in await self.store.read(rows.load_intents)}


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(worlds, "WRITE_FIRST", 0.01)
    monkeypatch.setattr(worlds, "WRITE_LONGEST", 0.02)
    store = Store.open(tmp_path / "holdfast.db", 0)
    (tmp_path / "copies").mkdir()
    clock = Clock()
    world = World(store, Copies(tmp_path / "copies"), clock, Events(clock))
    meta = PodMetadata(new_id(), "pod", "ns", "uid", 0, "crun", b"", "/pods", True, 1)
    pod = await world.insert_pod(meta, PodStatus(ready=True), Intent(meta.id, "run", 1, {}))
    await world.end(pod, "run")
    made = []
    for name in ("one", "two"):
        about = ContainerMetadata(new_id(), meta.id, name, 0, b"", "image", "sha256:1", "key", "/log", "", 2)
        container = await world.insert_container(about, ContainerStatus(), Intent(about.id, "create", 2, {}))
        await world.end(container, "create")
        await world.update_container(container, lambda now: replace(now, started_at=3, process=PROCESS))
        made.append(container)
    yield Place(store, world, pod, *made)
    await asyncio.to_thread(store.close)


def exited(code: int, message: str = LONG) -> Callable[[ContainerStatus], ContainerStatus]:
    return lambda now: replace(now, exit_code=code, finished_at=4, message=message, process=None)


@contextlib.asynccontextmanager
async def catching_up(world: World) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(world.catch_up())
        try:
            yield
        finally:
            task.cancel()


@pytest.mark.parametrize("how", [Place.full, Place.read_only], ids=["full", "read-only"])
async def test_an_exit_is_shown_at_once_and_written_when_it_can_be(
    place: Place, how: Callable[[Place], Awaitable[None]]
) -> None:
    world, one = place.world, place.one
    await world.begin(one, "start")
    await how(place)
    await world.learn(one, exited(42), end="start")
    assert (one.state, one.status.exit_code) == (ContainerState.EXITED, 42)
    assert one.exited.is_set() and not one.written.is_set()
    assert "start" not in one.intents
    assert world.unwritten == 1
    assert (await place.stored())[one.meta.id].finished_at == 0
    assert (one.meta.id, "start") in await place.intents()
    with pytest.raises((ResourceExhausted, Unavailable)):
        await world.write_known(one)
    async with catching_up(world):
        await place.writable()
        await asyncio.wait_for(one.written.wait(), 10)
    assert world.unwritten == 0
    assert (await place.stored())[one.meta.id] == one.status
    assert (one.meta.id, "start") not in await place.intents()


@pytest.mark.parametrize("how", [Place.full, Place.read_only], ids=["full", "read-only"])
async def test_a_pod_that_ended(place: Place, how: Callable[[Place], Awaitable[None]]) -> None:
    await how(place)
    await place.world.learn_pod(place.pod, lambda now: replace(now, ready=False, reason=LONG))
    assert place.pod.state is PodState.NOTREADY
    await place.writable()
    await place.world.write_known(place.pod)
    ((_, status),) = await place.store.read(lambda tx: rows.load_pods(tx))
    assert status == place.pod.status
    assert place.world.unwritten == 0


async def test_a_stop_goes_on_though_it_cannot_be_recorded(place: Place) -> None:
    await place.read_only()
    with pytest.raises(Unavailable):
        await place.world.begin(place.one, "stop")
    assert not place.one.intents
    await place.world.intend(place.one, "stop", grace=3)
    assert place.one.intents["stop"].data == {"grace": 3}
    await place.world.amend(place.one, "stop", sent=15)
    assert place.one.intents["stop"].data == {"grace": 3, "sent": 15}


async def test_one_that_cannot_be_written_holds_up_no_other(place: Place) -> None:
    """The row of the first is gone; what is known of the second is written all the same."""
    await place.read_only()
    await place.world.learn(place.one, exited(1))
    await place.world.learn(place.two, exited(2))
    await place.writable()
    await place.store.write(lambda tx: rows.delete_container(tx, place.one.meta.id))
    async with catching_up(place.world):
        await asyncio.wait_for(place.two.written.wait(), 10)
    assert (await place.stored())[place.two.meta.id].exit_code == 2
    assert not place.one.written.is_set()
    assert place.world.unwritten == 1


async def test_what_is_learned_while_others_are_written_is_written_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.full()
    await place.world.learn(place.one, exited(1, LONG))
    write = place.world._write

    async def and_meanwhile(object_id: str) -> None:
        monkeypatch.setattr(place.world, "_write", write)
        await place.full()
        await place.world.learn(place.two, exited(2, LONG))
        await place.writable()
        await write(object_id)
        done.set()

    done = asyncio.Event()
    monkeypatch.setattr(place.world, "_write", and_meanwhile)
    async with catching_up(place.world):
        await asyncio.wait_for(done.wait(), 10)
        await asyncio.wait_for(place.two.written.wait(), 10)
    assert {status.exit_code for status in (await place.stored()).values()} == {1, 2}


async def test_a_change_under_way_takes_nothing_back_that_was_learned_meanwhile(place: Place) -> None:
    """A small change fits on the full disk; the exit does not, that was on its way before."""
    world, one = place.world, place.one
    begun, go = threading.Event(), threading.Event()

    def slowly(now: ContainerStatus) -> ContainerStatus:
        begun.set()
        assert go.wait(10)
        return exited(42)(now)

    await place.full()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.learn(one, slowly))
        assert await asyncio.to_thread(begun.wait, 10)
        tasks.create_task(world.update_container(one, lambda now: replace(now, resources=b"r")))
        await asyncio.sleep(0)  # it is handed to the store, which is at work on the other
        go.set()
    assert (await place.stored())[one.meta.id].resources == b"r"
    assert (one.state, one.status.exit_code) == (ContainerState.EXITED, 42)
    assert not one.written.is_set()
    await place.writable()
    await world.write_known(one)
    assert one.written.is_set()
    assert (await place.stored())[one.meta.id].exit_code == 42


@pytest.mark.parametrize("full", [False, True], ids=["written", "not written"])
async def test_whatever_changes_what_lists_show_is_counted(place: Place, full: bool) -> None:
    """Else a list that was kept would be shown once more."""
    world = place.world

    def shown() -> list[tuple[str, str, bool]]:
        everything = [*world.pods.values(), *world.containers.values()]
        return [(one.meta.id, str(one.state), one.acknowledged) for one in everything]

    counted = {world.changes: shown()}

    async def after(change: Awaitable[object]) -> None:
        await change
        assert counted.setdefault(world.changes, shown()) == shown()

    pod = PodMetadata(new_id(), "next", "ns", "uid", 0, "crun", b"", "/pods", True, 4)
    about = ContainerMetadata(new_id(), pod.id, "main", 0, b"", "image", "sha256:1", "key", "/log", "", 5)
    await after(world.insert_pod(pod, PodStatus(), Intent(pod.id, "run", 4, {})))
    await after(world.update_pod(world.pods[pod.id], lambda now: replace(now, ready=True), end="run"))
    await after(world.insert_container(about, ContainerStatus(), Intent(about.id, "create", 5, {})))
    container = world.containers[about.id]
    await after(world.update_container(container, lambda now: now, end="create"))
    await after(world.update_container(container, lambda now: replace(now, started_at=6, process=PROCESS)))
    if full:
        await place.full()
    long = LONG if full else ""
    await after(world.learn(container, lambda now: replace(now, finished_at=7, message=long)))
    await after(world.learn_pod(world.pods[pod.id], lambda now: replace(now, ready=False, reason=long)))
    await place.writable()
    await after(world.delete_container(container))
    await after(world.delete_pod(world.pods[pod.id]))
    assert len(counted) >= 9
    assert len({tuple(one) for one in counted.values()}) == 9
