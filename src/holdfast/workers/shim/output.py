"""What the shim reads of a container's output: it goes to the container's log, and to whoever is attached to it."""

import time
from pathlib import Path

from holdfast.ttrpc.server import FAILED_PRECONDITION, CallError
from holdfast.workers.shim.attach import Attached
from holdfast.workers.shim.crilog import CriLog, Records
from holdfast.workers.shim.flight import FLIGHT, Flight
from holdfast.workers.shim.gap import STREAMS
from holdfast.workers.shim.loop import Loop, void
from holdfast.workers.shim.pump import Announce, Sink


class Output:
    """Both streams of one container. `log` is there once a stream has one."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self._loop = loop
        self._directory = directory
        self._streams: set[str] = set()
        self._records: dict[str, Records] = {}
        self._flight: Flight | None = None
        self.attached = Attached(loop, directory)
        self.log: CriLog | None = None

    def take(self, stream: str, path: str, rest: bytes = b"") -> tuple[Sink, Announce]:
        """What takes the bytes of a stream, and what is to be told before they are read; "" for no log. Raises OSError.

        A copy goes out before the record, so that what was not announced any more has reached everybody.
        """
        self._streams.add(stream)
        send = self.attached.send
        if not path:
            return lambda data: send(stream, data), void
        flight = self._open_flight()
        if self.log is None:
            self.log = CriLog(path, self._loop.timers.add, flight.account)
        log, records = self.log, Records(stream, rest)
        self._records[stream] = records

        def take(data: bytes) -> None:
            send(stream, data)
            now = time.time_ns()
            log.append(stream, records.feed(data, now), now)
            flight.landed(stream, records.rest)

        return take, lambda size: flight.announce(stream, size)

    def resume(self, stream: str, path: str) -> tuple[Sink, Announce]:
        """Go on with the log; what the dead shim may have taken with it is counted there."""
        if not path:
            return self.take(stream, path)
        flight = self._open_flight()
        if self.log is None:
            self.log = CriLog(path, self._loop.timers.add, flight.account, adopted=True)
            lines, size, error_lines, error_size = flight.left_lost()
            for name, lost in zip(STREAMS, ((lines, size), (error_lines, error_size)), strict=True):
                if any(lost):
                    self.log.lose(name, *lost, "its shim was killed before it could say so")
        announced, rest = flight.left(stream)
        if announced:  # the rest may or may not have been completed by what was announced
            why = f"its shim was killed; at most so much of {stream} was on its way"
            self.log.lose(stream, 1, announced + len(rest), why)
            rest = b""
        flight.landed(stream, rest)
        return self.take(stream, path, rest)

    def attach(self, directory: str) -> None:
        """Send copies to the FIFOs there from now on. Raises CallError."""
        if not self._streams:
            raise CallError(FAILED_PRECONDITION, "cannot attach: its output does not pass through its shim")
        self.attached.add(directory)

    def finish(self) -> None:
        """There is no more: complete the log, and let those who are attached see the end."""
        if self.log is not None:
            now = time.time_ns()
            for name, records in self._records.items():
                if rest := records.finish(now):
                    self.log.append(name, rest, now)
                    self._open_flight().landed(name, b"")
            self.log.flush()
        self.attached.finish()

    def close(self) -> None:
        self.attached.finish()
        if self.log is not None:
            self.log.close()
        if self._flight is not None:
            self._flight.close()
            (self._directory / FLIGHT).unlink(missing_ok=True)

    def _open_flight(self) -> Flight:
        if self._flight is None:
            self._flight = Flight(self._directory)
        return self._flight
