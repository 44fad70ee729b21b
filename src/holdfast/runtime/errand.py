"""Work for one worker of the keeper that tells how it went in one message, and is killed when it takes too long."""

import asyncio
import json
import secrets
import signal
import socket
from typing import Any, Final

from holdfast.linux import process
from holdfast.linux.patience import patience
from holdfast.model.errors import DeadlineExceeded, Unavailable
from holdfast.model.state import ProcessRef
from holdfast.runtime.keeper import Keeper

REPLY_BYTES: Final = 16 * 1024


async def run(keeper: Keeper, kind: str, args: dict[str, object], what: str, seconds: float) -> dict[str, Any]:
    """What the worker answers. `what` reads as in "cannot <what>".

    Raises OSError for an answer with "errno" and "message", DeadlineExceeded, and Unavailable when it died over it.
    """
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            worker = await keeper.fork(kind, f"{kind}-{secrets.token_hex(4)}", args, fds=[theirs.fileno()])
        try:
            async with patience(seconds):
                said = await asyncio.get_running_loop().sock_recv(ours, REPLY_BYTES)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"cannot {what}: no answer after {seconds:g} s") from exc
        finally:
            _kill(worker)
    if not said:
        raise Unavailable(f"cannot {what}: the process that was at it has died")
    answer: dict[str, Any] = json.loads(said)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["message"])
    return answer


def _kill(worker: ProcessRef) -> None:
    """One that hangs in the kernel dies when that lets go of it; the keeper reaps it then."""
    with process.pin(worker.pid, worker.start_time) as pinned:
        if pinned is not None:
            pinned.send(signal.SIGKILL)
