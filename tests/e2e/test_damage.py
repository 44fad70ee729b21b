"""F23: a store that is damaged or lost is set aside by renaming, never wiped, and nothing that runs is harmed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from kit.node import Node, node, until

from holdfast.linux import cgroup


def _missing(store: Path) -> None:
    for part in ("", "-wal"):
        store.with_name(f"{store.name}{part}").unlink()


def _empty(store: Path) -> None:
    os.truncate(store, 0)


def _truncated(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 3)


def _overwritten(store: Path) -> None:
    with store.open("r+b") as file:
        file.write(os.urandom(8192))


def problems(one: Node) -> list[str]:
    found: list[str] = json.loads(one.cli("recovery", "--output", "json").stdout)["problems"]
    return found


@pytest.mark.parametrize("damage", [_missing, _empty, _truncated, _overwritten])
def test_f23_a_damaged_store_harms_nothing(damage: Callable[[Path], None]) -> None:
    with node() as one:
        pod_id = one.run_pod()
        pid = one.pid(one.run(pod_id, "sleep 1000"))
        started = Path(f"/proc/{pid}/stat").read_text().split()[21]
        one.kill()
        snapshots, blobs = (sorted(os.listdir(one.root / name)) for name in ("snapshots", "content/sha256"))
        damage(one.root / "holdfast.db")
        one.start()
        until(lambda: any("the store was damaged" in line for line in problems(one)), "the report")
        until(lambda: "recovered" in one.log().rpartition(" serving ")[2], "the end of recovery")
        assert Path(f"/proc/{pid}/stat").read_text().split()[21] == started
        assert sorted(os.listdir(one.root / "snapshots")) == snapshots
        assert sorted(os.listdir(one.root / "content" / "sha256")) == blobs
        assert (one.root / "quarantine").exists() == (damage is not _missing)
        one.restart()  # the loss is not forgotten, so nothing is swept by the next start either
        until(lambda: "recovered" in one.log().rpartition(" serving ")[2], "the end of recovery")
        assert Path(f"/proc/{pid}/stat").read_text().split()[21] == started
        for pod in one.pods():
            one.remove_pod(pod.id)
        one.cli("doctor", "--fix", check=False)
        until(lambda: not Path(f"/proc/{pid}").exists(), "what nobody owns to be ended when that is asked for")
        until(lambda: not one.leftovers(), "nothing to be left")
        cgroup.remove_if_empty(one.cgroup)


def test_a_newer_schema_is_refused_and_left_as_it_is() -> None:
    with node() as one:
        one.kill()
        store = apsw.Connection(str(one.root / "holdfast.db"))
        version = store.pragma("user_version")
        store.pragma("user_version", 99)
        store.close()
        with pytest.raises(AssertionError, match="newer Holdfast"):
            one.start()
        store = apsw.Connection(str(one.root / "holdfast.db"))
        assert store.pragma("user_version") == 99
        store.pragma("user_version", version)
        store.close()
        assert not (one.root / "quarantine").exists()
