"""Executing a CNI plugin (SPEC.md, section 2): parameters by environment, configuration on stdin, an answer on stdout.

A plugin has a deadline, and a cgroup of its own: what it started is ended with it, also by the daemon that comes after
the one which began it.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, process
from holdfast.linux.patience import patience
from holdfast.linux.threads import in_thread
from holdfast.model import trace
from holdfast.model.errors import DeadlineExceeded, Unavailable
from holdfast.model.tally import Timed

log = logging.getLogger(__name__)

ANSWER_LIMIT: Final = 1024 * 1024
WORDS: Final = 500  # of what a plugin writes to stderr
TRY_LATER: Final = 11
_ENTER: Final = 'echo 0 > "$0" && exec "$@"'


class Plugins:
    """Finds and executes plugins. `directories` are searched in order; each has `seconds`."""

    def __init__(self, directories: Sequence[Path], seconds: float) -> None:
        self._directories = directories
        self._seconds = seconds
        self.calls = Timed("holdfast_cni_operation", "calls of network plugins", ("plugin", "command"))
        self._versions: dict[tuple[Path, int, int], tuple[str, ...]] = {}  # by program as it was: place, time, size

    def find(self, kind: str) -> Path:
        """Raises Unavailable where no directory has an executable of that name."""
        for directory in self._directories:
            if os.access(directory / kind, os.X_OK):
                return directory / kind
        places = ", ".join(map(str, self._directories))
        raise Unavailable(f"cannot use network plugin {kind}: there is no such program in {places}")

    async def versions(self, kind: str, version: str, path: str) -> tuple[str, ...]:
        """Those of the specification that it knows, asked once for a program; () when it does not tell.

        `version` is that of the question. Raises Unavailable where there is no such program.
        """
        program = await in_thread(self.find, kind)
        status = await in_thread(program.stat)
        key = (program, status.st_mtime_ns, status.st_size)
        if key not in self._versions:
            try:
                answer = await self.call(kind, "VERSION", {"cniVersion": version}, {}, path)
            except (Unavailable, DeadlineExceeded) as exc:
                log.info("plugin %s does not tell its versions: %s", kind, exc)
                return ()
            said = answer.get("supportedVersions")
            self._versions[key] = tuple(map(str, said)) if isinstance(said, list) else ()
        return self._versions[key]

    async def call(
        self, kind: str, verb: str, config: Mapping[str, Any], environment: Mapping[str, str], path: str
    ) -> dict[str, Any]:
        """Its answer, {} when it has none. `path` is the cgroup to execute it in.

        Raises Unavailable with what the plugin says, DeadlineExceeded.
        """
        with trace.span("network plugin", plugin=kind, command=verb), self.calls.one(kind, verb):
            return await self._call(kind, verb, config, environment, path)

    async def _call(
        self, kind: str, verb: str, config: Mapping[str, Any], environment: Mapping[str, str], path: str
    ) -> dict[str, Any]:
        program = self.find(kind)
        what = f"{verb} of network {config.get('name')}, plugin {kind}"
        variables = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CNI_COMMAND": verb,
            "CNI_PATH": ":".join(map(str, self._directories)),
            **environment,
        }
        await in_thread(cgroup.create, path)
        command = ("/bin/sh", "-c", _ENTER, cgroup.entrance(path), str(program))
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, env=variables, start_new_session=True, cwd="/"
            )
        except OSError as exc:
            raise Unavailable(f"cannot execute {what}: {exc.strerror}") from exc
        try:
            async with patience(self._seconds):
                said, complaint = await _talk(child, json.dumps(config).encode())
        except TimeoutError as exc:
            raise DeadlineExceeded(f"cannot finish {what}: no end after {self._seconds:g} s") from exc
        finally:
            if child.returncode is None:
                process.kill_group(child.pid)
        return _answer(what, child.returncode, said, complaint)


async def _talk(child: asyncio.subprocess.Process, config: bytes) -> tuple[bytes, bytes]:
    """Raises TimeoutError from outside; more than the limit is cut off, which is no JSON then."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None

    async def tell(pipe: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # it need not read
            pipe.write(config)
            await pipe.drain()
        pipe.close()

    said, complaint, _ = await asyncio.gather(_read(child.stdout), _read(child.stderr), tell(child.stdin))
    await child.wait()
    return said, complaint


async def _read(pipe: asyncio.StreamReader) -> bytes:
    """To its end, keeping no more than the limit."""
    found = bytearray()
    while data := await pipe.read(64 * 1024):
        found += data[: max(0, ANSWER_LIMIT + 1 - len(found))]
    return bytes(found)


def _answer(what: str, code: int | None, said: bytes, complaint: bytes) -> dict[str, Any]:
    """Errors of a plugin are objects with code, msg and details (SPEC.md, section 5)."""
    found: Any = {}
    garbage = len(said) > ANSWER_LIMIT
    if said.strip() and not garbage:
        try:
            found = json.loads(said)
        except ValueError:
            garbage = True
    garbage = garbage or not isinstance(found, dict)
    if code == 0 and not garbage:
        return dict(found)
    if code == 0:
        raise Unavailable(f"cannot understand {what}: its answer is no JSON object: {_shown(said)}")
    if not garbage and "msg" in found:
        details = f": {found['details']}" if found.get("details") else ""
        later = "; it may be tried again" if found.get("code") == TRY_LATER else ""
        raise Unavailable(f"cannot finish {what}: {found['msg']}{details} (code {found.get('code')}){later}")
    raise Unavailable(f"cannot finish {what}: it ended with {code}: {_shown(complaint or said)}")


def _shown(data: bytes) -> str:
    text = data[:WORDS].decode(errors="replace").strip()
    return text or "it said nothing"
