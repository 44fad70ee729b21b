"""Commands of an OCI runtime that the daemon runs itself, where no shim is to be waited for."""

import asyncio
import logging
from typing import Final

from holdfast.linux import process
from holdfast.linux.patience import patience
from holdfast.model.errors import DeadlineExceeded
from holdfast.runtime.handlers import Handler

log = logging.getLogger(__name__)

SECONDS: Final = 30.0
SAID_LIMIT: Final = 1000


async def run(handler: Handler, *words: str, seconds: float = SECONDS) -> bool:
    """Whether the command says that it is done; why not is logged, and a missing program as well.

    Raises DeadlineExceeded when it takes too long, upon which it is killed.
    """
    return await ask(handler, *words, seconds=seconds) is not None


async def ask(handler: Handler, *words: str, seconds: float = SECONDS) -> bytes | None:
    """The same, and what the command has said; None when it was not done."""
    pipe, what = asyncio.subprocess.PIPE, f"run {handler.name} {' '.join(words)}"
    command = (handler.binary, "--root", handler.root, *words)
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except FileNotFoundError:
        log.warning("cannot %s: there is no program %s", what, handler.binary)
        return None
    try:
        async with patience(seconds):
            said, complaint = await child.communicate()
    except TimeoutError as exc:
        raise DeadlineExceeded(f"cannot {what}: no end after {seconds:g} s") from exc
    finally:
        if child.returncode is None:
            process.kill_group(child.pid)
    if child.returncode:
        log.info("cannot %s: %s", what, complaint[:SAID_LIMIT].decode(errors="replace").strip())
    return None if child.returncode else said
