"""What goes wrong, as the user is told."""


class CommandError(Exception):
    """An error for the user, on one line; `status` is what the process ends with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
