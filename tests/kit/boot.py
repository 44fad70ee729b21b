"""Another boot, as far as one can be had without one."""

from pathlib import Path

import apsw


def another(root: Path) -> None:
    """Let everything that the store knows be of an earlier boot."""
    store = apsw.Connection(str(root / "holdfast.db"))
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("UPDATE containers SET boot_id = 'before' WHERE boot_id IS NOT NULL")
    store.execute("UPDATE pods SET shim_boot_id = 'before' WHERE shim_boot_id IS NOT NULL")
    store.execute("UPDATE meta SET value = 'before' WHERE key = 'boot_id'")
    store.close()
