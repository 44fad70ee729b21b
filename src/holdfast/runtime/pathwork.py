"""Work on paths that are a user's, in a worker that is killed when it takes too long."""

import asyncio
import contextlib
import errno
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from holdfast.linux import process
from holdfast.linux.patience import patience
from holdfast.model.errors import DeadlineExceeded, InvalidArgument, Unavailable
from holdfast.model.state import ProcessRef
from holdfast.runtime.keeper import Keeper

THE_PATHS_FAULT: Final = frozenset(
    {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)
REPLY_BYTES: Final = 64 * 1024

Mappings = tuple[tuple[int, int, int], ...]  # first id inside, first id outside, how many; () for none


@dataclass(frozen=True, slots=True)
class Wanted:
    """A path that is to be mounted, for the field of that name; `label` is what its files are to be labelled with.

    With `holder` it is told which mount holds it, for which the table of mounts is read.
    """

    path: str
    field: str
    holder: bool = False
    label: str = ""
    uids: Mappings = ()
    gids: Mappings = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What was found: the path without links; if asked for, the mount that holds it, "shared", "slave" or "private"."""

    path: str
    propagation: str
    place: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A path that is to be mounted at `target`, in a way that not every OCI runtime can."""

    path: str
    field: str
    target: str
    recursive_read_only: bool = False
    uids: Mappings = ()
    gids: Mappings = ()


class PathError(OSError):
    """What a filesystem has said of the path of a field, or with `of_ids` of the mapping that was asked for it."""

    def __init__(self, number: int, message: str, path: str, field: str, of_ids: bool) -> None:
        super().__init__(number, message, path)
        self.field = field
        self.of_ids = of_ids


class PathWork:
    """Through the keeper; each piece of work in a process of its own, for at most `seconds`.

    All of it raises DeadlineExceeded that names path and field, and PathError.
    """

    def __init__(self, keeper: Keeper, seconds: float) -> None:
        self._keeper = keeper
        self._seconds = seconds

    async def make_directory(self, path: str, field: str) -> None:
        """Make a directory and its parents, as far as they are not there.

        Raises InvalidArgument instead where it is the path's fault.
        """
        try:
            await self._do("directory", [Wanted(path, field)])
        except PathError as exc:
            if exc.errno in THE_PATHS_FAULT:
                raise InvalidArgument(f"{field}: cannot make {path}: {exc.strerror}") from exc
            raise

    async def find(self, wanted: Sequence[Wanted]) -> list[Source]:
        """What there is at each path; what is missing is made as a directory. An id-mapping is tried."""
        return [Source(**said) for said in await self._do("source", wanted)] if wanted else []

    async def stage(self, wanted: Sequence[Stage]) -> None:
        """Mount each at its target."""
        if wanted:
            await self._do("stage", wanted)

    async def _do(self, op: str, items: Sequence[Wanted | Stage]) -> list[dict[str, Any]]:
        """What the worker says of each."""
        found: list[dict[str, Any]] = []
        async with self._worker(op) as end:
            try:
                async with patience(self._seconds):
                    await _send(end, json.dumps([asdict(item) for item in items]).encode())
                    async for line in _lines(end):
                        found.append(said := json.loads(line))
                        if "errno" in said or len(found) == len(items):
                            break
            except TimeoutError as exc:
                item = items[len(found)]
                why = f"no answer after {self._seconds:g} s"
                raise DeadlineExceeded(f"cannot use {item.field} {item.path}: {why}") from exc
        if found and "errno" in found[-1]:
            item, said = items[len(found) - 1], found[-1]
            raise PathError(said["errno"], said["message"], item.path, item.field, said["of_ids"])
        if len(found) < len(items):
            item = items[len(found)]
            raise Unavailable(f"cannot use {item.field} {item.path}: the process that looked at it has died")
        return found

    @contextlib.asynccontextmanager
    async def _worker(self, op: str) -> AsyncIterator[socket.socket]:
        """Our end of the line to a worker, which is killed at the end, whatever it does."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                name = f"path-{secrets.token_hex(4)}"
                worker = await self._keeper.fork("path", name, {"op": op}, fds=[theirs.fileno()])
            try:
                yield ours
            finally:
                _kill(worker)


async def _send(end: socket.socket, data: bytes) -> None:
    """All of it, and its end."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died; what it said before is there
        await asyncio.get_running_loop().sock_sendall(end, data)
        end.shutdown(socket.SHUT_WR)


async def _lines(end: socket.socket) -> AsyncIterator[bytes]:
    data = b""
    while received := await asyncio.get_running_loop().sock_recv(end, REPLY_BYTES):
        *whole, data = (data + received).split(b"\n")
        for line in whole:
            yield line


def _kill(worker: ProcessRef) -> None:
    """One that hangs in the kernel dies when that lets go of it; the keeper reaps it then."""
    with process.pin(worker.pid, worker.start_time) as pinned:
        if pinned is not None:
            pinned.send(signal.SIGKILL)
