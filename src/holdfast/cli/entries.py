"""A log in the form of the CRI: "<time> stdout|stderr F|P <text>"; a line that is P goes on in the next entry."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final, NamedTuple

from holdfast.cli.errors import CommandError

_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|ms|s|m|h))+")
_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def moment_of(text: str) -> int:
    """ns since the epoch, of a time as RFC 3339 has it. Raises ValueError."""
    if not (found := _MOMENT.fullmatch(text)):
        raise ValueError(f"{text!r} is no time")
    second, fraction, zone = found.groups()
    whole = datetime.fromisoformat(second.upper() + zone.upper().replace("Z", "+00:00"))
    return int(whole.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0"))


def since_of(text: str, now: Callable[[], int] = time.time_ns) -> int:
    """ns since the epoch, of a time, or of a duration before now: "2026-01-02T03:04:05Z", "90s", "1h30m".

    Raises CommandError.
    """
    try:
        if not _DURATION.fullmatch(text):
            return moment_of(text)
    except ValueError as exc:
        hint = "(hint: as in 90s, 1h30m or 2026-01-02T03:04:05Z)"
        raise CommandError(f"cannot use --since {text!r}: it is neither a duration nor a time {hint}") from exc
    parts = re.findall(r"([\d.]+)([a-z]+)", text)
    return now() - int(sum(float(count) * _UNITS[unit] for count, unit in parts))


class Entry(NamedTuple):
    moment: bytes
    stream: bytes
    whole: bool  # its line ends with it
    text: bytes
    line: int  # which of the log it is, or is a part of
    first: bool  # part of it
    begun: bytes  # the moment of the first part


class Entries:
    """Entries of what is read of a log, bit by bit. Lines of the two streams may be in parts between each other."""

    def __init__(self) -> None:
        self._lines = 0
        self._open: dict[bytes, Entry] = {}

    def read(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """What is no entry is a line of stdout as it is."""
        for raw in lines:
            parts = raw.split(b" ", 3)
            if len(parts) == 4 and parts[1] in (b"stdout", b"stderr"):
                moment, stream, tag, text = parts
            else:
                moment, stream, tag, text = b"", b"stdout", b"F", raw
            before = self._open.pop(stream, None)
            if before is None:
                self._lines += 1
            number, begun = (before.line, before.begun) if before else (self._lines, moment)
            entry = Entry(moment, stream, tag[:1] != b"P", text, number, before is None, begun)
            if not entry.whole:
                self._open[stream] = entry
            yield entry


def last_lines(entries: Iterable[Entry], count: int) -> Iterator[Entry]:
    """The entries of the last lines."""
    kept: deque[Entry] = deque()
    newest = 0
    for entry in entries:
        kept.append(entry)
        newest = max(newest, entry.line)
        while kept and kept[0].line <= newest - count:
            kept.popleft()
    return (entry for entry in kept if entry.line > newest - count)


def not_before(entries: Iterable[Entry], since: int) -> Iterator[Entry]:
    """Those of lines that were begun at `since` or later; what has no time that can be read is among them."""
    for entry in entries:
        try:
            if moment_of(entry.begun.decode("ascii", "replace")) < since:
                continue
        except ValueError:
            pass
        yield entry
