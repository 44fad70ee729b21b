"""The user's terminal: raw while a session has it, as it was afterwards; keys that end a session."""

import contextlib
import os
import termios
import tty
from collections.abc import Iterator
from typing import Final

from holdfast.cli.errors import CommandError

DETACH_KEYS: Final = "ctrl-p,ctrl-q"  # as docker and podman have it


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Each key goes through as it is. A descriptor that is no terminal is left alone."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)  # waits for nothing: nobody may be reading any more


@contextlib.contextmanager
def keys(descriptor: int) -> Iterator[None]:
    """Keys come one by one and are not shown, and ctrl-c still interrupts."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def size() -> tuple[int, int] | None:
    """Columns and rows of the terminal that is looked at, or typed into."""
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            return found.columns, found.lines
    return None


def key_sequence(text: str) -> bytes:
    """ "ctrl-p,ctrl-q" or "a,ctrl-]" as what the keys send; "" for none. Raises CommandError."""
    found = bytearray()
    for key in filter(None, text.split(",")):
        name = key.lower().removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            found += key.encode()
        elif key.lower().startswith("ctrl-") and len(name) == 1 and "@" <= name.upper() <= "_":
            found.append(ord(name.upper()) - ord("@"))
        else:
            hint = "(hint: keys are single letters or ctrl- and one of a-z @ [ \\ ] ^ _, as in ctrl-p,ctrl-q)"
            raise CommandError(f"cannot use --detach-keys {text!r}: {key!r} is no key {hint}")
    return bytes(found)


class DetachKeys:
    """Finds a sequence in what is typed. What may be its beginning is held back until it is clear."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def typed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes through, and whether the sequence is complete. What comes after it is dropped."""
        if not self._sequence:
            return data, False
        data = self._held + data
        before, found, _ = data.partition(self._sequence)
        if found:
            self._held = b""
            return before, True
        longest = min(len(data), len(self._sequence) - 1)
        kept = next((n for n in range(longest, 0, -1) if data.endswith(self._sequence[:n])), 0)
        self._held = data[len(data) - kept :]
        return data[: len(data) - kept], False

    def rest(self) -> bytes:
        """What is still held back when no more will be typed."""
        held, self._held = self._held, b""
        return held
