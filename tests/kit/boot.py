"""Another boot, as far as one can be had without one."""

import signal
from pathlib import Path

import apsw

from holdfast.linux import cgroup, files, mount, process
from holdfast.runtime import keeper
from kit.node import Node, until


def another(root: Path) -> None:
    """Let everything that the store knows be of an earlier boot."""
    store = apsw.Connection(str(root / "holdfast.db"))
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("UPDATE containers SET boot_id = 'before' WHERE boot_id IS NOT NULL")
    store.execute("UPDATE pods SET shim_boot_id = 'before' WHERE shim_boot_id IS NOT NULL")
    store.execute("UPDATE meta SET value = 'before' WHERE key = 'boot_id'")
    store.close()


def reboot(one: Node) -> None:
    """Every process, mount and volatile file gone; the daemon is not started again."""
    one.kill()
    for pid in cgroup.pids(one.cgroup) | {worker.pid for worker in keeper.workers(one.state)}:
        with process.pin(pid, None) as pinned:
            if pinned is not None:
                pinned.send(signal.SIGKILL)
    until(lambda: not keeper.workers(one.state), "the shims to end")
    keeper.shut_down(one.state)
    until(lambda: not (one.state / "keeper.sock").exists(), "the keeper to end")
    mount.unmount_tree(one.state)
    until(lambda: not cgroup.pids(one.cgroup), "the cgroups to be empty")
    cgroup.remove(one.cgroup)
    files.remove_tree(one.state)
    another(one.root)
