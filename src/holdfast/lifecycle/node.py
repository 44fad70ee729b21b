"""What a daemon can tell of itself and its host."""

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.storage import Storage


@dataclass(frozen=True, slots=True)
class Node:
    """`facts` are shown by Status(verbose), as is what `gate` finds; `network_ready` gives (ready, reason, message)."""

    handlers: tuple[str, ...]
    network_ready: Callable[[], tuple[bool, str, str]]
    facts: dict[str, object]
    storage: Storage
    gate: Gate
