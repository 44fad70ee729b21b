"""What goes wrong, as the user gets to see it. Imports nothing, so that showing help stays quick."""

from typing import Final

RUN_FAILED: Final = 125  # what container tools end a run with when the failure is theirs, not the command's


class CommandError(Exception):
    """An error for the user, on one line; `status` is what the process ends with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Missing(CommandError):
    """There is no such object: it may be of another kind, or gone by now."""


class Unreachable(CommandError):
    """The daemon did not answer; that says nothing about containers."""
