"""Slices and scopes: started for our cgroups, limited, and ended. Every call blocks, is idempotent, and has a deadline.

Raises Unavailable, DeadlineExceeded and, with what systemd says, FailedPrecondition.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from holdfast.model.errors import FailedPrecondition
from holdfast.systemd.bus import SECONDS, Bus, Refused

Property = tuple[str, tuple[str, Any]]  # name, and value with its D-Bus signature

_ERROR: Final = "org.freedesktop.systemd1."
UNIT_EXISTS: Final = f"{_ERROR}UnitExists"
NO_SUCH_UNIT: Final = f"{_ERROR}NoSuchUnit"
_COMMON: Final[tuple[Property, ...]] = (
    ("DefaultDependencies", ("b", False)),
    ("CPUAccounting", ("b", True)),
    ("MemoryAccounting", ("b", True)),
    ("TasksAccounting", ("b", True)),
)


def start_slice(name: str, description: str, seconds: float = SECONDS) -> None:
    """Start a slice, and with it those above. One that is there is started."""
    with _said(f"start {name}"), Bus(seconds) as bus:
        _start(bus, name, [("Description", ("s", description)), *_COMMON])


def start_scope(name: str, slice: str, pid: int, description: str, seconds: float = SECONDS) -> None:
    """Start a scope with a process in it, which is moved there. It ends by itself when nobody is left in it."""
    properties: list[Property] = [
        ("Description", ("s", description)),
        ("Slice", ("s", slice)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        *_COMMON,
    ]
    with _said(f"start {name}"), Bus(seconds) as bus:
        if not _start(bus, name, properties):  # one of that name has failed, or is about to end
            with contextlib.suppress(Refused):
                bus.run("StopUnit", "ss", name, "replace")
            with contextlib.suppress(Refused):
                bus.call("ResetFailedUnit", "s", name)
            if not _start(bus, name, properties):
                raise FailedPrecondition(f"cannot start {name}: it is there already")


def set_properties(name: str, properties: Iterable[Property], seconds: float = SECONDS) -> None:
    """Change a unit for as long as it is there."""
    found = list(properties)
    if found:
        with _said(f"change {name}"), Bus(seconds) as bus:
            bus.call("SetUnitProperties", "sba(sv)", name, True, found)


def stop(name: str, seconds: float = SECONDS) -> None:
    """End a unit and whatever is left in it. One that is not there has ended."""
    with _said(f"stop {name}"), Bus(seconds) as bus:
        try:
            bus.run("StopUnit", "ss", name, "replace")
        except Refused as exc:
            if exc.name != NO_SUCH_UNIT:
                raise
        with contextlib.suppress(Refused):
            bus.call("ResetFailedUnit", "s", name)


def _start(bus: Bus, name: str, properties: list[Property]) -> bool:
    """Returns False where there is one of that name."""
    try:
        bus.run("StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", properties, [])
    except Refused as exc:
        if exc.name == UNIT_EXISTS:
            return False
        raise
    return True


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except Refused as exc:
        raise FailedPrecondition(f"cannot {what}: systemd says: {exc}") from exc
