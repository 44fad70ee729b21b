"""Lists in parts, for nodes with more than fits into one message. Pure.

The answers of ListX and StreamX have the same elements in a field of the same number: what one element is on the wire
serves both, and a part is the concatenation of some.
"""

from collections.abc import Iterable, Iterator
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
