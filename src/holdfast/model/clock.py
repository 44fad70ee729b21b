"""Wall-clock times that never go backwards, whatever the clock does."""

import time
from collections.abc import Callable


class Clock:
    """Hands out ns since the epoch, each later than the one before: max(last + 1, now).

    `source` is injectable so that a test can turn the clock back.
    """

    def __init__(self, source: Callable[[], int] = time.time_ns) -> None:
        self._source = source
        self._last = 0

    @property
    def last(self) -> int:
        """The newest time that was handed out or found."""
        return self._last

    def now(self) -> int:
        self._last = max(self._last + 1, self._source())
        return self._last

    def not_before(self, moment: int) -> None:
        """Later answers of now() will be after `moment`, e.g. the newest time found in the store."""
        self._last = max(self._last, moment)
