"""A pull that several may wait for, and what they are told of its progress."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.images.registry import Credentials
from holdfast.model.image import Image

Progress = Callable[[str, str, int, int], None]  # of an item: its phase, how much is done, of how much


def silent(item: str, phase: str, done: int, total: int) -> None:
    """For whom nobody listens."""


class Pull:
    """A pull under way; it goes on as long as somebody waits for it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Image]
        self._listeners: list[Progress] = []

    def run(self, work: Coroutine[Any, Any, Image], name: str) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name=name)
        # Whoever has left meanwhile does not hear of an error, and that is all right.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def tell(self, item: str, phase: str, done: int, total: int) -> None:
        for listener in self._listeners:
            listener(item, phase, done, total)

    async def wait(self, progress: Progress) -> Image:
        self._listeners.append(progress)
        try:
            return await asyncio.shield(self._task)
        finally:
            self._listeners.remove(progress)
            if not self._listeners and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])

    @property
    def wanted(self) -> bool:
        return bool(self._listeners)


def identity(auth: Credentials | None) -> tuple[str, ...]:
    """Whose pull it is: nobody gets an image by what another one may have."""
    if auth is None:
        return ()
    return auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token
