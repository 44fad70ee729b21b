"""Work on paths that are a user's, in a worker that is killed when it takes too long."""

import asyncio
import errno
import json
import secrets
import signal
import socket
from typing import Final

from holdfast.linux import process
from holdfast.model.errors import DeadlineExceeded, InvalidArgument, Unavailable
from holdfast.model.state import ProcessRef
from holdfast.runtime.keeper import Keeper

REPLY_BYTES: Final = 4096
THE_PATHS_FAULT: Final = frozenset(
    {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)


class PathWork:
    """Through the keeper; each piece of work in a process of its own, for at most `seconds`."""

    def __init__(self, keeper: Keeper, seconds: float) -> None:
        self._keeper = keeper
        self._seconds = seconds

    async def make_directory(self, path: str, field: str) -> None:
        """Make a directory and its parents, as far as they are not there.

        Raises DeadlineExceeded or InvalidArgument that names path and field, and OSError for what is the host's fault.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                name = f"path-{secrets.token_hex(4)}"
                worker = await self._keeper.fork("path", name, {"path": path}, fds=[theirs.fileno()])
            try:
                async with asyncio.timeout(self._seconds):
                    said = await asyncio.get_running_loop().sock_recv(ours, REPLY_BYTES)
            except TimeoutError as exc:
                raise DeadlineExceeded(f"cannot use {field} {path}: no answer after {self._seconds:g} s") from exc
            finally:
                _kill(worker)
        if not said:
            raise Unavailable(f"cannot use {field} {path}: the process that looked at it has died")
        if problem := json.loads(said):
            if problem["errno"] in THE_PATHS_FAULT:
                raise InvalidArgument(f"{field}: cannot make {path}: {problem['message']}")
            raise OSError(problem["errno"], problem["message"], path)


def _kill(worker: ProcessRef) -> None:
    """One that hangs in the kernel dies when that lets go of it; the keeper reaps it then."""
    with process.pin(worker.pid, worker.start_time) as pinned:
        if pinned is not None:
            pinned.send(signal.SIGKILL)
