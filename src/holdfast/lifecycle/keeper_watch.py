"""A keeper is there at all times: workers that end unasked are told of, and a keeper that is gone is replaced."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.model.errors import HoldfastError
from holdfast.runtime.keeper import ensure_running
from holdfast.runtime.keepers import Keepers

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0  # between attempts to have one again


async def watch(
    keeper: Keepers, state: Path, files: int, pods: Callable[[], frozenset[str]], background: Background
) -> NoReturn:
    """Runs until it is cancelled. `files` is what `ensure_running` takes; `pods` tells those that live."""
    while True:
        for path in keeper.find_aside():
            background.start(path.name, keeper.attend(path, pods))
        async for event in keeper.events():
            log.info("worker %s %s (pid %d) ended with status %d", event.kind, event.id, event.pid, event.status)
        await _replace(keeper, state, files)


async def _replace(keeper: Keepers, state: Path, files: int) -> None:
    """However often it takes. The shims of the one that is gone live on."""
    log.error("the keeper is gone; starting another one")
    while True:
        try:
            await in_thread(ensure_running, state, files)
            await keeper.reconnect()
            keeper.replaced.add()
            return
        except HoldfastError as exc:
            log.error("%s; trying again", exc)
            await asyncio.sleep(RETRY_SECONDS)
