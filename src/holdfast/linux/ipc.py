"""What System V's interprocess communication has in a namespace (sysvipc(7))."""

from pathlib import Path
from typing import Final

from holdfast.linux import namespace

_KINDS: Final = {"shm": "shared memory", "sem": "semaphores", "msg": "message queues"}


def in_use(where: Path) -> list[str]:
    """Which of shared memory, semaphores and message queues there are. The calling thread never comes back from there.

    Each file of /proc/sysvipc has a line of heads, then one for each object.
    """
    namespace.enter(where)
    return [what for kind, what in _KINDS.items() if len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()) > 1]
