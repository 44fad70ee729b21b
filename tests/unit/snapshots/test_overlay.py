"""Snapshots: rows and directories agree, whatever happens in between. Mounting them is in tests/root/test_pull.py."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.linux import files
from holdfast.linux.tree import measure_at
from holdfast.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from holdfast.snapshots.overlay import Snapshots
from holdfast.store.db import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(tmp_path / "db", reserve_bytes=0)
    yield store
    store.close()


@pytest.fixture
async def snapshots(store: Store, tmp_path: Path) -> Snapshots:
    return await again(store, tmp_path)


async def again(store: Store, tmp_path: Path) -> Snapshots:
    snapshots = Snapshots(store, tmp_path / "snapshots")
    await snapshots.load()
    return snapshots


async def layer(snapshots: Snapshots, name: str, parent: str | None = None) -> None:
    await snapshots.prepare(f"unpack {name}", parent)
    (snapshots.place(f"unpack {name}") / "file").write_text(name)
    await snapshots.commit(name, f"unpack {name}", 10, 2)


async def test_mounts(snapshots: Snapshots, tmp_path: Path) -> None:
    top = tmp_path / "snapshots"
    (mount,) = await snapshots.prepare("alone", None)
    assert (mount.type, mount.source, mount.options) == ("bind", str(top / "1/fs"), ("bind", "rw"))
    await layer(snapshots, "a")
    await layer(snapshots, "b", "a")
    (mount,) = await snapshots.prepare("c", "b")
    lower = f"lowerdir={top}/3/fs:{top}/2/fs"
    assert (mount.type, mount.options) == ("overlay", (lower, f"upperdir={top}/4/fs", f"workdir={top}/4/work"))
    (mount,) = await snapshots.view("v", "b")
    assert (mount.type, mount.options) == ("overlay", (lower,))
    (mount,) = await snapshots.view("w", "a")
    assert (mount.type, mount.source, mount.options) == ("bind", str(top / "2/fs"), ("bind", "ro"))
    assert snapshots.usage() == (20, 4)


async def test_all_of_it_survives_a_restart(snapshots: Snapshots, store: Store, tmp_path: Path) -> None:
    await layer(snapshots, "a")
    mounts = await snapshots.prepare("c", "a")
    reloaded = await again(store, tmp_path)
    assert await reloaded.mounts("c") == mounts
    assert reloaded.is_committed("a")
    assert not reloaded.is_committed("c")
    await layer(reloaded, "b", "a")
    assert set(map(int, os.listdir(tmp_path / "snapshots"))) == reloaded.directories


async def test_what_is_refused(snapshots: Snapshots) -> None:
    await layer(snapshots, "a")
    await snapshots.prepare("c", "a")
    with pytest.raises(AlreadyExists):
        await snapshots.prepare("c", "a")
    with pytest.raises(NotFound):
        await snapshots.prepare("d", "none")
    with pytest.raises(FailedPrecondition, match="not committed"):
        await snapshots.prepare("d", "c")
    with pytest.raises(FailedPrecondition, match="another one stands on it"):
        await snapshots.remove("a")
    with pytest.raises(FailedPrecondition, match="it is committed"):
        await snapshots.commit("x", "a")
    with pytest.raises(AlreadyExists):
        await snapshots.commit("a", "c")
    with pytest.raises(NotFound):
        await snapshots.mounts("none")


async def test_remove(snapshots: Snapshots, tmp_path: Path) -> None:
    await layer(snapshots, "a")
    await snapshots.prepare("c", "a")
    (snapshots.place("c") / "file").write_text("x")
    await snapshots.remove("c")
    await snapshots.remove("c")
    assert snapshots.loose() == ["a"]
    await snapshots.remove("a")
    assert os.listdir(tmp_path / "snapshots") == []


async def test_the_root_directory_is_as_the_image_has_it(snapshots: Snapshots) -> None:
    await layer(snapshots, "a")
    os.chmod(snapshots.place("a"), 0o1750)
    if os.geteuid() == 0:
        os.chown(snapshots.place("a"), 5, 6)
    await snapshots.prepare("c", "a")
    found, like = snapshots.place("c").stat(), snapshots.place("a").stat()
    assert stat.S_IMODE(found.st_mode) == 0o1750
    assert (found.st_uid, found.st_gid) == (like.st_uid, like.st_gid)


async def test_numbers_are_not_used_twice(snapshots: Snapshots, store: Store, tmp_path: Path) -> None:
    """A directory that waits to be swept is never given to somebody else."""
    (tmp_path / "snapshots/41").mkdir()
    reloaded = await again(store, tmp_path)
    await reloaded.prepare("c", None)
    assert reloaded.place("c") == tmp_path / "snapshots/42/fs"


async def test_a_row_whose_directory_a_power_cut_took(snapshots: Snapshots, store: Store, tmp_path: Path) -> None:
    await layer(snapshots, "a")
    await snapshots.prepare("c", "a")
    files.remove_tree(snapshots.place("c").parent)
    reloaded = await again(store, tmp_path)
    assert sorted(os.listdir(reloaded.place("c").parent)) == ["fs", "row", "work"]


async def test_a_lost_layer_does_not_keep_the_daemon_from_starting(
    snapshots: Snapshots, store: Store, tmp_path: Path
) -> None:
    await layer(snapshots, "a")
    await snapshots.prepare("c", "a")
    for key in ("a", "c"):
        files.remove_tree(snapshots.place(key).parent)
    reloaded = await again(store, tmp_path)
    assert reloaded.starting_with("") == ["a", "c"]


async def test_a_failure_leaves_nothing(snapshots: Snapshots, store: Store, tmp_path: Path) -> None:
    store.close()
    with pytest.raises(Exception, match="closed"):
        await snapshots.prepare("c", None)
    assert os.listdir(tmp_path / "snapshots") == []


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_prepare_leaves_nothing(snapshots: Snapshots, store: Store, tmp_path: Path, steps: int) -> None:
    task = asyncio.get_running_loop().create_task(snapshots.prepare("c", None))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    reloaded = await again(store, tmp_path)
    if task.cancelled():
        assert os.listdir(tmp_path / "snapshots") == []
        assert reloaded.starting_with("") == []
        await snapshots.prepare("c", None)


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_commit_loses_nothing(snapshots: Snapshots, store: Store, tmp_path: Path, steps: int) -> None:
    """Its caller then removes the key; a layer that is committed nevertheless must keep its directory."""
    await snapshots.prepare("unpack a", None)
    task = asyncio.get_running_loop().create_task(snapshots.commit("a", "unpack a"))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await snapshots.remove("unpack a")
    reloaded = await again(store, tmp_path)
    assert reloaded.starting_with("unpack") == []
    for key in reloaded.starting_with(""):
        assert reloaded.place(key).is_dir()


async def test_prepare_and_remove_at_once(snapshots: Snapshots) -> None:
    """Whichever comes first, no snapshot stands on nothing."""
    for turn in range(20):
        await layer(snapshots, "a")
        acts = [snapshots.prepare("c", "a"), snapshots.remove("a")]
        done = await asyncio.gather(*(acts if turn % 2 else acts[::-1]), return_exceptions=True)
        assert any(isinstance(one, (NotFound, FailedPrecondition)) for one in done), done
        await snapshots.remove("c")
        await snapshots.remove("a")


async def test_many_at_once(snapshots: Snapshots, tmp_path: Path) -> None:
    await layer(snapshots, "a")
    await asyncio.gather(*(snapshots.prepare(f"c{n}", "a") for n in range(50)))
    assert len({snapshots.place(f"c{n}") for n in range(50)}) == 50
    await asyncio.gather(*(snapshots.remove(f"c{n}") for n in range(50)))
    assert len(os.listdir(tmp_path / "snapshots")) == 1


async def test_signs_that_overlayfs_takes_for_its_own(store: Store, tmp_path: Path) -> None:
    for sign in ":,\\":
        with pytest.raises(InvalidArgument, match="overlayfs"):
            await Snapshots(store, tmp_path / f"a{sign}b").load()


@pytest.mark.parametrize("how", ["missing", "empty"])
async def test_a_lost_layer_is_replaced_when_it_comes_in_again(
    snapshots: Snapshots, store: Store, tmp_path: Path, how: str
) -> None:
    await layer(snapshots, "a")
    await layer(snapshots, "b", "a")
    await snapshots.prepare("c", "b")
    place = snapshots.place("a")
    files.remove_tree(place.parent if how == "missing" else place / "file")
    reloaded = Snapshots(store, tmp_path / "snapshots")
    assert await reloaded.load() == ["the content of layer a is lost"]
    assert not reloaded.is_committed("a")
    assert reloaded.is_committed("b")
    for use in (reloaded.mounts("c"), reloaded.prepare("d", "b"), reloaded.view("v", "a")):
        with pytest.raises(FailedPrecondition, match="layer a is lost; pull the image again"):
            await use
    await layer(reloaded, "a")
    assert reloaded.is_committed("a")
    reloaded = await again(store, tmp_path)
    (mount,) = await reloaded.mounts("c")
    assert str(reloaded.place("a")) in mount.options[0]
    assert (reloaded.place("a") / "file").read_text() == "a"
    assert set(map(int, os.listdir(tmp_path / "snapshots"))) == reloaded.directories


async def sealed(snapshots: Snapshots, name: str, parent: str | None = None) -> None:
    key = f"unpack {name}"
    await snapshots.prepare(key, parent)
    (snapshots.place(key) / "file").write_text(name)
    await snapshots.commit(name, key, 10, 2, measure_at(snapshots.place(key)).shape)


async def test_a_layer_that_differs_from_its_seal_is_lost_and_set_aside_when_it_is_replaced(
    snapshots: Snapshots, store: Store, tmp_path: Path
) -> None:
    await sealed(snapshots, "a")
    await sealed(snapshots, "b", "a")
    assert await snapshots.lost_below("b") is None
    damaged = snapshots.place("a").parent
    os.truncate(damaged / "fs" / "file", 0)
    reloaded = await again(store, tmp_path)
    with pytest.raises(FailedPrecondition, match="layer a is lost"):
        await reloaded.prepare("c", "b")
    assert await asyncio.gather(*(reloaded.lost_below("b") for _ in range(3))) == ["a"] * 3
    assert not reloaded.is_committed("a")
    await sealed(reloaded, "a")
    assert await reloaded.lost_below("b") is None
    assert (reloaded.place("a") / "file").read_text() == "a"
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.name.startswith(f"{damaged.name}-")
    assert not damaged.exists()


@pytest.mark.parametrize("seal", [None, "", "short"])
async def test_a_layer_without_a_seal_is_taken_as_it_is(
    snapshots: Snapshots, store: Store, tmp_path: Path, seal: str | None
) -> None:
    await sealed(snapshots, "a")
    place = snapshots.place("a").parent / "seal"
    if seal is None:
        place.unlink()
    else:
        place.write_text(seal)
    os.truncate(snapshots.place("a") / "file", 0)
    assert await (await again(store, tmp_path)).lost_below("a") is None
