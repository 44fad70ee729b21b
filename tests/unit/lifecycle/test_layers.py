"""Sizes of writable layers: who waits for a walk, and who does not."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import pytest

from holdfast.lifecycle import stats
from holdfast.lifecycle.stats import Layers
from holdfast.lifecycle.tasks import Background
from holdfast.model.clock import Clock


class Disk:
    """Where a walk takes until it is let go, and finds as many bytes as there have been walks."""

    def __init__(self) -> None:
        self.walks = 0
        self.go = asyncio.Event()
        self.go.set()

    async def walk(self, function: Any, place: Path) -> tuple[int, int]:
        await self.go.wait()
        self.walks += 1
        return self.walks, 1


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    one = Disk()
    monkeypatch.setattr(stats, "in_thread", one.walk)
    return one


@pytest.fixture
async def layers(disk: Disk) -> AsyncIterator[tuple[Layers, list[Any]]]:
    container = Namespace(meta=Namespace(snapshot_key="key"))
    world = Namespace(containers={"one": container}, clock=Clock())
    background = Background()
    yield Layers(world, Namespace(place=Path), background), [container]  # type: ignore[arg-type]
    await background.stop()


async def size(layers: tuple[Layers, list[Any]]) -> int | None:
    (found,) = await layers[0].look(layers[1])
    return None if found is None else found.bytes


async def test_the_first_walk_is_waited_for_and_holds(layers: tuple[Layers, list[Any]], disk: Disk) -> None:
    assert [await size(layers), await size(layers)] == [1, 1]
    assert disk.walks == 1


def age(layers: Layers, seconds: float) -> None:
    """Let what is known have held until so long ago."""
    layers._known = {key: (time.monotonic() - seconds, layer) for key, (_, layer) in layers._known.items()}


async def test_an_old_one_is_shown_while_there_is_no_newer(layers: tuple[Layers, list[Any]], disk: Disk) -> None:
    assert await size(layers) == 1
    age(layers[0], 1)
    disk.go.clear()
    assert await size(layers) == 1
    disk.go.set()
    while await size(layers) == 1:
        await asyncio.sleep(0)
    assert disk.walks == 2


async def test_one_that_is_too_old_is_waited_for(layers: tuple[Layers, list[Any]], disk: Disk) -> None:
    assert await size(layers) == 1
    age(layers[0], stats.WALK_OLDEST + 1)
    assert await size(layers) == 2


async def test_a_walk_that_hangs_is_waited_for_by_nobody_for_long(
    layers: tuple[Layers, list[Any]], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "WALK_PATIENCE", 0.02)
    disk.go.clear()
    assert await size(layers) is None


async def test_those_of_containers_that_are_gone_are_forgotten(layers: tuple[Layers, list[Any]], disk: Disk) -> None:
    one, there = layers
    await size(layers)
    one._world.containers.clear()
    await one.look([Namespace(meta=Namespace(snapshot_key="other"))])  # type: ignore[list-item]
    assert set(one._known) == {"other"}
    assert there
