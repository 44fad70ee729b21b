"""What witnesses say about a container's init: the files a shim leaves in the bundle, as pure data.

Both files are written atomically in `<state>/pods/<pod>/<container>/`:

    init.json   once the OCI runtime has created the init, before Create answers
    exit.json   when the init has ended, before anybody is told and before it is reaped
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Final, TypeVar

from holdfast.model.errors import Damaged
from holdfast.model.state import ProcessRef

INIT_FILE: Final = "init.json"
EXIT_FILE: Final = "exit.json"
LOGGER_FILE: Final = "logger.json"  # who writes the log of a foreign shim's container, for as long as it does
SHIM_LOCK: Final = "shim.lock"  # in `<state>/pods/<pod>/`, open in the pod's shim for as long as it lives
WITNESS_NOBODY: Final = "nobody"  # of an exit that was found out about, but not how


@dataclass(frozen=True, slots=True)
class InitRecord:
    """The init of a container as the shim created it; `oom_kills` is the cgroup's counter at that time."""

    pid: int
    start_time: int
    boot_id: str
    cgroup: str  # the init's cgroup path, as in /proc/PID/cgroup (memory hierarchy on v1)
    oom_kills: int
    started: bool = False  # rewritten with True before the OCI runtime's start is run


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How an init ended. `code` is the exit status, or 128+signal.

    `witness` is "shim", "keeper", "kernel", or "nobody" when only the end itself is known.
    """

    pid: int
    start_time: int
    code: int
    signal: int
    oom_killed: bool  # the init died by SIGKILL and the OOM counter had moved
    oom_kills: int
    finished_at: int  # ns since the epoch
    witness: str


def encode(record: InitRecord | ExitRecord | ProcessRef) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode()


def decode_init(data: bytes) -> InitRecord:
    return _decode(InitRecord, data)


def decode_exit(data: bytes) -> ExitRecord:
    return _decode(ExitRecord, data)


def decode_process(data: bytes) -> ProcessRef:
    return _decode(ProcessRef, data)


_T = TypeVar("_T", InitRecord, ExitRecord, ProcessRef)


def _decode(kind: type[_T], data: bytes) -> _T:
    """Raises Damaged for anything but a record of exactly this kind; a field of another type is damage too."""
    try:
        raw = json.loads(data)
        record = kind(**raw)
    except (ValueError, TypeError) as exc:
        raise Damaged(f"cannot read {kind.__name__}: {exc}") from exc
    for field in fields(kind):
        if type(getattr(record, field.name)) is not field.type:
            raise Damaged(f"cannot read {kind.__name__}: {field.name} is not of type {field.type}")
    return record
