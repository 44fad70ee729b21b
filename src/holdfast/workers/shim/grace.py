"""Beginning the kernel's grace period before it is needed.

A write to cgroup.procs has to wait for every fork and exit under way on the host: the first such write after a pause
waits for an RCU grace period (rcu_sync in the kernel's percpu_rw_semaphore), later ones within the next period do
not. On an idle host that is a third of the time that a container's creation takes. The OCI runtime's first write
comes some milliseconds after a create was asked for; one made at once, which moves the shim to where it is anyway,
has the period over, or nearly so, by then.
"""

import _thread
import os
from pathlib import Path

from holdfast.linux import cgroup


def begin() -> None:
    """Best effort, and without waiting."""
    _thread.start_new_thread(_move_nowhere, ())


def _move_nowhere() -> None:
    try:
        path = cgroup.of_process(os.getpid())
        top = cgroup.hierarchies().get("memory", cgroup.hierarchies().get("", Path("/nowhere")))
        fd = os.open(top / path.strip("/") / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"0")
    except OSError:
        pass  # it waits all the same, or there was nothing to wait for
    finally:
        os.close(fd)
