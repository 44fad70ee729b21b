"""The doctor, and the report of the last recovery, for a node whose daemon is down.

The command line runs this as a process of its own and shows the JSON that it prints: so it stays a client without a
store, and this may use what the daemon is made of. Nothing is changed but by `doctor --fix`, which first takes the
daemon's lock.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from holdfast import config as configuration
from holdfast.config import Config
from holdfast.launch import take_lock
from holdfast.lifecycle import tools
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.rebuild import rebuild
from holdfast.lifecycle.rows import Rows, of_store
from holdfast.lifecycle.sweep import Sweeper
from holdfast.lifecycle.tasks import in_thread
from holdfast.linux import cgroup, files
from holdfast.model.cgroups import SYSTEMD
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.runtime import handlers as runtime_handlers
from holdfast.runtime import keeper
from holdfast.runtime.keeper import Keeper, WorkerInfo
from holdfast.runtime.shims import Shims
from holdfast.store import pods
from holdfast.store.copies import Copies
from holdfast.store.copy import copied
from holdfast.store.db import Store


def main(argv: list[str] | None = None) -> int:
    """Print what was asked for as JSON. Returns the exit status; an error is one line on stderr."""
    parser = argparse.ArgumentParser(prog="holdfast.offline", description=__doc__)
    parser.add_argument("verb", choices=("doctor", "recovery"))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--fix", action="store_true")
    options = parser.parse_args(argv)
    try:
        config = configuration.load(options.config)
        if options.fix:
            lock = take_lock(config.root)
            found = asyncio.run(doctor(config, fix=True))
            os.close(lock)
        else:
            see_no_daemon(config.root)
            found = asyncio.run(doctor(config) if options.verb == "doctor" else recovery(config))
    except (HoldfastError, OSError) as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(found))  # noqa: T201
    return 0


def see_no_daemon(root: Path) -> None:
    """Raises FailedPrecondition for a daemon that runs and does not answer: it alone knows what it has under way."""
    if (root / "lock").exists():
        try:
            os.close(files.lock(root / "lock"))
        except BlockingIOError as exc:
            raise FailedPrecondition(
                f"cannot look at root {root}: a holdfastd is using it and does not answer"
            ) from exc


async def doctor(config: Config, *, fix: bool = False) -> dict[str, Any]:
    """As Node.Doctor, but that what only the daemon may remove is left to it."""
    layout = Layout(config.root, config.state)

    async def rows() -> Rows:
        found: Rows = await read(config.root, of_store)
        return found

    async def workers() -> list[WorkerInfo] | None:
        return await in_thread(keeper.list_workers, config.state)

    cgroups = Cgroups(config.cgroup_driver, config.cgroup_root)
    shims = Shims(layout.pods, Keeper(config.state / keeper.SOCKET), layout.events)
    found = await Sweeper(layout, cgroups, rows, workers, shims).examine(fix=fix)
    shims.close()
    handlers = runtime_handlers.known(
        config.runtimes, config.state, cgroup.mode(), systemd=config.cgroup_driver == SYSTEMD
    )
    there = {name: one for name, one in handlers.items() if shutil.which(one.binary)}
    gate = Gate(lambda: there, config.known_escapes == "refuse", frozenset(config.fixed_escapes))
    return found.as_data("down") | {
        "runtimes": [one.as_data() for one in await gate.examine()],
        "tools": [one.as_data() for one in await tools.examine(handlers.values(), config.criu_path)],
    }


async def recovery(config: Config) -> dict[str, Any]:
    """The report of the last start that came to its end."""
    text = await read(config.root, pods.last_report)
    found: dict[str, Any] = json.loads(text or "{}")
    return found


async def read(root: Path, query: Any) -> Any:
    """Run a query on a copy of the store. What reading mends, brings back or sets aside changes the copy only."""
    with copied(root / "holdfast.db") as path:
        store = await in_thread(Store.open, path, 0)
        try:
            await rebuild(store, Copies(root / "copies"), root / "snapshots", only_look=True)
            return await store.read(query)
        finally:
            await in_thread(store.close)


if __name__ == "__main__":
    sys.exit(main())
