"""The daemon's side of streamers, one for each session; a streamer outlives the daemon, and knows no daemon at all.

A session's id says what it is and whose: its kind's letter, ten hexadecimal digits, and the id of its container, or of
its pod where ports are forwarded. Of each there is a record in its pod's directory, so that it is found by a daemon
whose keeper is another one by now.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from holdfast.linux import files, process
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model.errors import Damaged, Unavailable
from holdfast.model.spec import is_id
from holdfast.model.state import ProcessRef
from holdfast.model.witness import decode_process, encode
from holdfast.runtime import keeper as keepers
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.shims import wait_gone

log = logging.getLogger(__name__)

KIND: Final = "streamer"
TLS: Final = "tls"
EXEC, ATTACH, FORWARD = "exec", "attach", "forward"
RECORDS: Final = "sessions"  # in a pod's directory
RECORD_LIMIT: Final = 64 * 1024
LETTERS: Final = {"e": EXEC, "a": ATTACH, "f": FORWARD}
DIGITS: Final = 10
LINGER_SECONDS: Final = 1.0  # for a session whose container is over to say so, and for one that was told to end
KILL_SECONDS: Final = 1.0


def new_id(kind: str, owner: str) -> str:
    return f"{kind[0]}{secrets.token_hex(DIGITS // 2)}{owner}"


def kind_of(id: str) -> str:
    """EXEC, ATTACH or FORWARD; "" for what is no session's id."""
    return LETTERS.get(id[:1], "") if len(id) == 1 + DIGITS + 64 and is_id(owner_of(id)) else ""


def owner_of(id: str) -> str:
    """Of a session, the id of its container or, where ports are forwarded, of its pod."""
    return id[1 + DIGITS :]


class Streamers:
    """By pod and session id."""

    def __init__(self, pods: Path, keeper: Keeper) -> None:
        self._pods = pods
        self._keeper = keeper

    async def start(self, pod_id: str, id: str, args: Mapping[str, object], fds: Sequence[int]) -> ProcessRef:
        """Have the keeper fork one, whose the connection `fds[0]` is when this returns. Raises Unavailable."""
        streamer = await self._keeper.fork(KIND, id, dict(args), fds=fds)
        crashpoint("session.forked")
        await in_thread(self.record, pod_id, id, streamer)
        return streamer

    async def terminate_tls(self, connection: int, inner: int, certificate: str, key: str) -> None:
        """Have the keeper fork a worker that speaks TLS on a connection, and what is in it with `inner`.

        Raises Unavailable.
        """
        args: dict[str, object] = {"certificate": certificate, "key": key}
        await self._keeper.fork(TLS, f"{TLS}{secrets.token_hex(8)}", args, fds=[connection, inner])

    def record(self, pod_id: str, id: str, streamer: ProcessRef) -> None:
        """Write down who serves a session; without it the keeper knows. Blocks."""
        directory = self._pods / pod_id / RECORDS
        try:
            files.make_private(directory)
            files.write_atomic(directory / id, encode(streamer), sync=False)
        except OSError as exc:
            log.warning("cannot record who serves session %s: %s", id, exc)

    def recorded(self, pod_id: str) -> dict[str, ProcessRef]:
        """Who serves, or served, the sessions of a pod, by id. Blocks."""
        found, directory = {}, self._pods / pod_id / RECORDS
        with contextlib.suppress(FileNotFoundError):
            for name in filter(kind_of, os.listdir(directory)):
                with contextlib.suppress(FileNotFoundError, Damaged):
                    found[name] = decode_process(files.read_bounded(directory / name, RECORD_LIMIT))
        return found

    def forget(self, pod_id: str, id: str) -> None:
        """A session is over, and nothing of it is left. Blocks."""
        files.unlink(self._pods / pod_id / RECORDS / id)

    async def living(self) -> dict[str, ProcessRef]:
        """Those that any keeper has forked and that it knows to run, by id.

        Raises Unavailable while one of them does not answer.
        """
        workers = await in_thread(keepers.list_workers, self._keeper.path.parent)
        if workers is None:
            raise Unavailable("cannot tell which sessions go on: a keeper does not answer")
        boot_id = process.boot_id()
        return {one.id: ProcessRef(one.pid, one.start_time, boot_id) for one in workers if one.kind == KIND}

    async def end(self, pod_id: str, owners: Iterable[str]) -> None:
        """End the sessions of these containers of a pod, or of the pod itself, which are over; within two seconds.

        Whoever waits for a process gets the time to tell his client how it ended.
        """
        known = await in_thread(self.recorded, pod_id)
        wanted = {id: one for id, one in known.items() if owner_of(id) in frozenset(owners)}
        for id, one in wanted.items():
            if kind_of(id) == FORWARD:
                _send(one, signal.SIGTERM)
        left = await _outlive(wanted.values(), LINGER_SECONDS)
        for one in left:
            _send(one, signal.SIGKILL)
        if left := await _outlive(left, KILL_SECONDS):
            log.warning("streamers of pod %s outlive SIGKILL: %s", pod_id, [one.pid for one in left])


async def _outlive(streamers: Iterable[ProcessRef], seconds: float) -> list[ProcessRef]:
    """Wait for their ends; returns those that are still there."""
    waited = list(streamers)
    gone = await asyncio.gather(*(wait_gone(one, seconds) for one in waited))
    return [one for one, is_gone in zip(waited, gone, strict=True) if not is_gone]


def _send(one: ProcessRef, number: int) -> None:
    if one.boot_id == process.boot_id():
        with process.pin(one.pid, one.start_time) as pinned:
            if pinned is not None:
                pinned.send(number)
