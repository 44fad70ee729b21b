"""What a log could not take and has not been told of yet: how much of which stream, from when to when, and why."""

import time
from typing import Final

STREAMS: Final = ("stdout", "stderr")
REASONS: Final = 4
Lost = tuple[int, int, int, int]


class Gap:
    """Counts lines and bytes as the container has written them. A line that is not whole in the log is a lost one."""

    def __init__(self) -> None:
        self._counts = {stream: [0, 0] for stream in STREAMS}
        self._since = 0
        self._until = 0
        self._reasons: list[str] = []

    def __bool__(self) -> bool:
        return any(size or lines for lines, size in self._counts.values())

    def __contains__(self, stream: str) -> bool:
        return any(self._counts[stream])

    @property
    def lost(self) -> Lost:
        """Lines and bytes of stdout, lines and bytes of stderr."""
        (lines, size), (error_lines, error_size) = self._counts.values()
        return lines, size, error_lines, error_size

    def add(self, stream: str, lines: int, size: int, moment: int) -> None:
        if not self:
            self._since = moment
        self._until = max(moment, self._since)
        self._counts[stream][0] += lines
        self._counts[stream][1] += size

    def because(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons = [*self._reasons, reason][-REASONS:]

    def clear(self) -> None:
        self._reasons.clear()
        for count in self._counts.values():
            count[:] = 0, 0

    @property
    def stream(self) -> str:
        """Where the marker belongs: into a stream that has a gap, as it may be in the middle of a line of another."""
        return "stderr" if "stderr" in self else "stdout"

    def marker(self, moment: int) -> bytes:
        """The record that says it all."""
        parts = [
            f"{lines} log lines ({size} bytes) of {stream}"
            for stream, (lines, size) in self._counts.items()
            if lines or size
        ]
        since, until = timestamp(self._since).decode(), timestamp(self._until).decode()
        text = f"holdfast: lost {' and '.join(parts)} from {since} to {until}: {', '.join(self._reasons)}"
        return timestamp(moment) + f" {self.stream} F {text}\n".encode()


def timestamp(moment: int) -> bytes:
    """RFC 3339 in UTC with nine digits, from ns since the epoch."""
    seconds, rest = divmod(moment, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest
