"""Lists on the wire: whole, or in parts for nodes with more than fits into one message. Pure.

The answers of ListX and StreamX have the same elements in a field of the same number: what one element is on the wire
serves both, and a part is the concatenation of some.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

PART: Final = 1 << 20  # bytes; clients of gRPC take messages of 4 MiB unless told otherwise


def parts(entries: Iterable[bytes]) -> Iterator[bytes]:
    """Elements joined to messages of about that size, in their order; none for no elements."""
    waiting: list[bytes] = []
    size = 0
    for entry in entries:
        if waiting and size + len(entry) > PART:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(entry)
        size += len(entry)
    if waiting:
        yield b"".join(waiting)


class Whole:
    """A list of everything, made once for each state of what it shows; a long one is made each time."""

    def __init__(self, make: Callable[[], Iterable[bytes]]) -> None:
        self._make = make
        self._kept = (-1, b"")

    def after(self, changes: int) -> bytes:
        """As it is after so many changes."""
        if self._kept[0] == changes:
            return self._kept[1]
        made = b"".join(self._make())
        self._kept = (changes, made) if len(made) <= PART else (-1, b"")
        return made
