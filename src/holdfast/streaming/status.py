"""How a session's end is told on its error stream or channel, and how a terminal's size is read. No I/O.

Since version 4 of the protocol the end is a metav1.Status in JSON, also a good one; before, it is a text, and nothing
for a good end.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from holdfast.streaming.session import Outcome, ProtocolError, Resize

FIRST_WITH_RESIZE: Final = 3
FIRST_WITH_STATUS: Final = 4
LONGEST_SIZE: Final = 256  # bytes of {"Width":80,"Height":24}, with room


def told(outcome: Outcome, version: int) -> bytes:
    """What an error stream of this version of the protocol carries."""
    if version >= FIRST_WITH_STATUS:
        return json.dumps({"metadata": {}, **_status(outcome)}, separators=(",", ":")).encode()
    if outcome.error:
        return outcome.error.encode(errors="backslashreplace")
    return f"command terminated with exit code {outcome.code}".encode() if outcome.code else b""


def _status(outcome: Outcome) -> dict[str, Any]:
    if outcome.error:
        return {
            "status": "Failure",
            "message": f"Internal error occurred: {outcome.error}",
            "reason": "InternalError",
            "details": {"causes": [{"message": outcome.error}]},
            "code": 500,
        }
    if outcome.code:
        return {
            "status": "Failure",
            "message": f"command terminated with non-zero exit code {outcome.code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(outcome.code)}]},
        }
    return {"status": "Success"}


class Sizes:
    """JSON objects with Width and Height, one after the other, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> Iterator[Resize]:
        """Raises ProtocolError for what is not such an object."""
        *whole, self._rest = (self._rest + data).split(b"}")
        if len(self._rest) > LONGEST_SIZE:
            raise ProtocolError(f"a size of the terminal of more than {LONGEST_SIZE} bytes")
        for one in whole:
            yield from _size(one + b"}")


def _size(text: bytes) -> Iterator[Resize]:
    try:
        found = json.loads(text if len(text) <= LONGEST_SIZE else b"")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProtocolError(f"not a size of the terminal: {text[:40]!r}")
    # Names as Go reads them: in whatever case. A size that is nought or no number is no size to set.
    given = {name.lower(): value for name, value in found.items()}
    width, height = given.get("width"), given.get("height")
    if type(width) is int and type(height) is int and 0 < width <= 0xFFFF and 0 < height <= 0xFFFF:
        yield Resize(width, height)
