"""The whole terminal, for what is shown again and again; it is as it was afterwards, however that came."""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, Self

from holdfast.cli.terminal import keys, size

# ECMA-48, and the private modes of xterm: another page (1049), and no cursor (25).
BEGIN: Final = "\x1b[?1049h\x1b[?25l"
END: Final = "\x1b[?25h\x1b[?1049l"
HOME: Final = "\x1b[H"
REST_OF_LINE: Final = "\x1b[K"  # cleared
BELOW: Final = "\x1b[J"  # cleared
ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Screen:
    """A page of its own. Signals that end the process end it by SystemExit, so that nothing is left as it is here."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._woken = -1

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            for number in ENDING:
                undo.callback(signal.signal, number, signal.signal(number, _end))
            self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            for descriptor in (self._woken, wake):
                undo.callback(os.close, descriptor)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wake, warn_on_full_buffer=False))
            undo.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, lambda *_: None))
            undo.enter_context(keys(0))
            undo.callback(_print, END)
            _print(BEGIN)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def draw(self, lines: Sequence[str]) -> None:
        """Show as much of it as there is room for."""
        columns, rows = size() or (80, 24)
        shown = [line[:columns] + REST_OF_LINE for line in lines[:rows]]
        _print(HOME + "\n".join(shown) + BELOW)

    def key(self, seconds: float) -> str:
        """The key that is pressed; "" when none is for so long, or the size has changed."""
        typed = [0] if os.isatty(0) else []
        ready, _, _ = select.select([*typed, self._woken], [], [], seconds)
        if self._woken in ready:
            os.read(self._woken, 4096)
        return os.read(0, 1).decode("latin-1") if 0 in ready else ""


def _end(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
