"""The line between the two processes of a session: JSON in SOCK_SEQPACKET messages.

    frames -> monitor   {"event": "ready"}                       the client has opened his streams
                        {"event": "input ended"}                 and all of it is in the FIFO, which is closed
                        {"event": "resize", "width", "height"}
                        {"event": "words", "text"}               for the log
    monitor -> frames   {"begun": true}                          stdin can be written, output will come
                        {"code", "error"}                        the outcome: tell the client, and end

The monitor believes frames nothing: whatever it says is a wish of its own client. The end of either is the line's end.
"""

import json
import socket
from dataclasses import dataclass
from typing import Any, Final

from holdfast.streaming.session import Outcome

MESSAGE_BYTES: Final = 64 * 1024
WORDS: Final = 4000
_SIZE: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Said:
    """What frames has said. `width` and `height` are those of a terminal."""

    event: str
    width: int = 0
    height: int = 0
    text: str = ""


def tell(line: socket.socket, event: str, **more: Any) -> None:
    """From frames. Raises OSError when the monitor is gone."""
    line.send(json.dumps({"event": event, **more}).encode())


def hear(line: socket.socket) -> Said | None:
    """For the monitor; None at the end, and for anything that is no message."""
    try:
        message = json.loads(line.recv(MESSAGE_BYTES) or b"null")
        width, height = (int(message.get(name, 0)) & _SIZE for name in ("width", "height"))
        return Said(str(message["event"]), width, height, str(message.get("text", ""))[-WORDS:])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def tell_begun(line: socket.socket) -> None:
    """From the monitor. Raises OSError when frames is gone."""
    line.send(json.dumps({"begun": True}).encode())


def tell_outcome(line: socket.socket, outcome: Outcome) -> None:
    """From the monitor. Raises OSError when frames is gone."""
    line.send(json.dumps({"code": outcome.code, "error": outcome.error[:WORDS]}).encode())


def hear_order(line: socket.socket) -> Outcome | bool:
    """For frames: the outcome, or whether it has begun; if not, the monitor is gone."""
    message = json.loads(line.recv(MESSAGE_BYTES) or b'{"begun": false}')
    return message["begun"] if "begun" in message else Outcome(**message)
