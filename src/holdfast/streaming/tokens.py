"""One-use tokens: whoever brings one may begin the session that it was made for, once and soon. No I/O.

A token is part of a path, "/exec/TOKEN", and known by the whole of it: under the path of another kind it is not
there, and not used up. It has 256 bits of `secrets`, so nobody finds one by trying, and how long a look into a dict
takes tells nothing of those that are in it.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

BYTES: Final = 32
SECONDS: Final = 60.0  # until a token that nobody has brought is forgotten
MOST: Final = 1000


@dataclass(slots=True)
class Tokens(Generic[T]):
    """Those that were not used yet, the oldest first. `clock` tells seconds, from whenever, and does not go back.

    When there are too many the oldest gives way: clients come with theirs at once, so of all it is the one that is
    least missed, and a client that asks for ever more of them keeps nobody else from his.
    """

    clock: Callable[[], float] = time.monotonic
    most: int = MOST
    _issued: dict[str, tuple[float, T]] = field(default_factory=dict)

    def issue(self, kind: str, what: T) -> str:
        """A path that leads to `what`."""
        self._expire()
        if len(self._issued) >= self.most:
            del self._issued[next(iter(self._issued))]
        path = f"/{kind}/{secrets.token_urlsafe(BYTES)}"
        self._issued[path] = self.clock() + SECONDS, what
        return path

    def take(self, path: str) -> T | None:
        """What a path leads to, which leads nowhere from then on; None for one that is unknown, used or too old."""
        self._expire()
        _, what = self._issued.pop(path, (0.0, None))
        return what

    def _expire(self) -> None:
        now = self.clock()
        for path in [path for path, (until, _) in self._issued.items() if until <= now]:
            del self._issued[path]
