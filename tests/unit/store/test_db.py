"""The store: acknowledged means on disk, one failing change hurts nobody else, and what cannot be used is set aside."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from holdfast.linux import files
from holdfast.model.errors import FailedPrecondition, ResourceExhausted, Unavailable
from holdfast.store import db
from holdfast.store.db import Store
from holdfast.store.migrations import MIGRATIONS

SMALL = 256 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holdfast.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = Store.open(path, SMALL)
    yield opened
    await asyncio.to_thread(opened.close)


def put(key: str, value: str = "x"):  # type: ignore[no-untyped-def]
    return lambda tx: tx.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, value))


def keys(tx: apsw.Connection) -> set[str]:
    return {key for (key,) in tx.execute("SELECT key FROM meta WHERE key NOT IN ('clean', 'generation')")}


def reopened(path: Path) -> set[str]:
    """What a daemon that starts now would read."""
    store = Store.open(path, SMALL)
    store.close()
    connection = apsw.Connection(str(path))
    try:
        return keys(connection)
    finally:
        connection.close()


async def test_pragmas(store: Store) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys", "locking_mode", "user_version")
    found = await store.read(lambda tx: [tx.pragma(name) for name in names])
    assert found == ["wal", 2, 1, "exclusive", len(MIGRATIONS)]


async def test_a_result_is_returned_and_kept(store: Store, path: Path) -> None:
    assert await store.write(lambda tx: tx.execute("SELECT 7").get) == 7
    await store.write(put("a"))
    assert await store.read(keys) == {"a"}
    await asyncio.to_thread(store.close)
    assert reopened(path) == {"a"}


async def test_a_failing_change_takes_back_only_itself(store: Store) -> None:
    def half(tx: apsw.Connection) -> None:
        put("half")(tx)
        raise ValueError("no")

    def twice(tx: apsw.Connection) -> None:
        put("half-too")(tx)
        put("a")(tx)

    results = await asyncio.gather(
        *(store.write(put(key)) for key in "ab"),
        store.write(half),
        store.write(put("c")),
        store.write(twice),
        store.write(put("d")),
        return_exceptions=True,
    )
    assert [type(result) for result in results if isinstance(result, Exception)] == [ValueError, FailedPrecondition]
    assert await store.read(keys) == set("abcd")


async def test_changes_that_wait_share_a_commit(store: Store) -> None:
    commits = 0

    def count() -> int:
        nonlocal commits
        commits += 1
        return 0

    await store.read(lambda tx: tx.set_commit_hook(count))
    await asyncio.gather(*(store.write(put(str(number))) for number in range(100)))
    assert commits <= 3


async def test_reads_see_what_was_acknowledged(store: Store) -> None:
    for number in range(20):
        await store.write(put(str(number)))
        assert str(number) in await store.read(keys)


async def test_an_error_in_a_query_is_its_own(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        await store.read(lambda tx: 1 // 0)
    with pytest.raises(apsw.SQLError):
        await store.write(lambda tx: tx.execute("SELECT nonsense"))
    await store.write(put("a"))


async def test_a_caller_that_gives_up_does_not_matter(store: Store) -> None:
    tasks = [asyncio.ensure_future(store.write(put(str(number)))) for number in range(5)]  # noqa: TID251
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[2].cancelled()
    assert {"0", "1", "3", "4"} <= await store.read(keys)


async def test_a_loop_that_is_gone_does_not_stop_the_writer(store: Store) -> None:
    def elsewhere() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(store.write(put("late")))
        loop.run_until_complete(asyncio.sleep(0))
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()

    await store.read(lambda tx: elsewhere())  # on the writer's own thread: the answer cannot come before the close
    await store.write(put("a"))
    assert await store.read(keys) == {"late", "a"}


async def test_nothing_is_written_after_close(path: Path) -> None:
    store = Store.open(path, SMALL)
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.write(put("a"))


async def test_what_is_queued_at_close_is_finished(path: Path) -> None:
    store = Store.open(path, SMALL)
    waiting = asyncio.gather(*(store.write(put(str(number))) for number in range(50)))
    await asyncio.sleep(0)
    await asyncio.to_thread(store.close)
    await waiting
    assert len(reopened(path)) == 50


async def test_one_at_a_time(store: Store, path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="another process is using it"):
        Store.open(path, SMALL)


def test_a_store_of_a_newer_release_is_set_aside_and_its_rows_are_taken_over(path: Path) -> None:
    Store.open(path, SMALL).close()
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA user_version = 999; CREATE TABLE more (a); INSERT INTO meta VALUES ('a', 'x')")
    connection.close()
    store = Store.open(path, SMALL)
    assert any("newer Holdfast (schema 999, this one knows" in line for line in store.salvaged)
    store.close()
    assert "a" in reopened(path)
    (aside,) = (path.parent / "quarantine").glob("*/holdfast.db")
    connection = apsw.Connection(str(aside))
    assert connection.pragma("user_version") == 999
    connection.close()


def test_steps_are_taken_once_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path, SMALL).close()
    steps = (*MIGRATIONS, "CREATE TABLE more (a)", "INSERT INTO more VALUES (1)")
    monkeypatch.setattr(db, "MIGRATIONS", steps)
    for _ in range(2):
        Store.open(path, SMALL).close()
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM more").get == 1
    connection.close()


def test_a_step_that_fails_leaves_the_schema_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path, SMALL).close()
    monkeypatch.setattr(db, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (a); SELECT nonsense"))
    with pytest.raises(Unavailable):
        Store.open(path, SMALL)
    monkeypatch.undo()
    Store.open(path, SMALL).close()


def _damage(path: Path) -> None:
    """Garbage over the first page of a table, as a bad disk would leave it."""
    with path.open("r+b") as file:
        for page in range(2, 12):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def _unclean(path: Path) -> None:
    Store.open(path, SMALL).close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE meta SET value = '0' WHERE key = 'clean'")
    connection.close()


def test_a_damaged_file_is_set_aside_as_it_was(path: Path) -> None:
    _unclean(path)
    Store.open(path, SMALL).close()
    _unclean(path)
    _damage(path)
    damaged = path.read_bytes()
    store = Store.open(path, SMALL)
    assert any("set aside" in line for line in store.salvaged)
    store.close()
    (aside,) = (path.parent / "quarantine").glob("*/holdfast.db")
    assert aside.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be one" * 200, bytes(8192)])
def test_what_is_no_database_is_set_aside_not_deleted(path: Path, content: bytes) -> None:
    Store.open(path, SMALL).close()
    path.write_bytes(content)
    store = Store.open(path, SMALL)
    assert store.salvaged
    store.close()
    (aside,) = (path.parent / "quarantine").glob("*/holdfast.db")
    assert aside.read_bytes() == content


def test_a_store_that_was_never_there_is_no_loss(path: Path) -> None:
    store = Store.open(path, SMALL)
    assert not store.salvaged
    store.close()
    assert not (path.parent / "quarantine").exists()


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open"):
        Store.open(tmp_path / "none" / "holdfast.db", SMALL)


async def test_the_reserve_is_there_and_stays(path: Path) -> None:
    size = 1024 * 1024
    for _ in range(3):
        store = Store.open(path, size)
        state = await store.reserve_state()
        assert state.free_bytes >= size // 2
        assert state.wal_bytes >= size // 2
        assert state.ballast_bytes == size
        for number in range(300):
            await store.write(lambda tx, n=str(number): tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (n, n)))
        assert (await store.reserve_state()).wal_bytes == state.wal_bytes
        await asyncio.to_thread(store.close)


async def test_a_full_file_is_told_and_the_ballast_given_back_first(store: Store, path: Path) -> None:
    big = lambda tx: tx.execute("INSERT INTO meta VALUES (hex(randomblob(8)), ?)", ("x" * 300_000,))  # noqa: E731
    pages = await store.read(lambda tx: tx.pragma("page_count"))
    await store.read(lambda tx: tx.pragma("max_page_count", pages))
    ballast = path.with_name("holdfast.db-ballast")
    assert ballast.stat().st_size == SMALL
    with pytest.raises(ResourceExhausted, match=f"the filesystem of {path.parent} is full"):
        await store.write(big)
    assert not ballast.exists()
    results = await asyncio.gather(store.write(put("a")), store.write(big), return_exceptions=True)
    assert ResourceExhausted in map(type, results)
    await store.write(put("b"))
    assert await store.read(keys) == {"b"}  # "a" was in the batch that was taken back, and its caller told


WRITER = """
import asyncio, sys
from pathlib import Path
from holdfast.store.db import Store

async def main():
    store = Store.open(Path(sys.argv[1]), 262144)
    async def writer(name):
        for number in range(10**9):
            key = f"{name}-{number}"
            await store.write(lambda tx: tx.execute("INSERT INTO meta (key, value) VALUES (?, 'x')", (key,)))
            print(key, flush=True)
    await asyncio.gather(*(writer(name) for name in range(8)))

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_sigkill(path: Path) -> None:
    acknowledged: set[str] = set()
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            acknowledged |= {writer.stdout.readline().strip() for _ in range(200)}
            writer.send_signal(signal.SIGKILL)
            acknowledged |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        assert acknowledged <= reopened(path)
        path.unlink()
        for name in ("wal", "ballast"):
            path.with_name(f"{path.name}-{name}").unlink(missing_ok=True)
        acknowledged.clear()


@pytest.mark.parametrize("instead", [None, b""], ids=["nothing", "an-empty-file"])
async def test_a_disk_that_is_away_is_waited_for(tmp_path: Path, instead: bytes | None) -> None:
    """As between the unmount of a disk and the mount of the mended one: no store is made in the place of ours."""
    root = tmp_path / "root"
    root.mkdir()
    path = root / "holdfast.db"
    store = Store.open(path)
    await store.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('a', '1')"))
    await store.read(lambda tx: tx.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE))
    await store.read(lambda tx: tx.pragma("query_only", 1))
    shutil.copytree(root, tmp_path / "mended")
    root.rename(tmp_path / "away")
    root.mkdir()
    if instead is not None:
        path.write_bytes(instead)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await store.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('b', '2')"))
    assert instead is not None or not list(root.iterdir())
    files.remove_tree(root)
    (tmp_path / "mended").rename(root)
    await store.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('c', '3')"))
    keys = "SELECT key FROM meta WHERE key IN ('a', 'b', 'c') ORDER BY key"
    assert [key for (key,) in await store.read(lambda tx: tx.execute(keys).fetchall())] == ["a", "c"]
    await asyncio.to_thread(store.close)
