"""Commands in running containers: ExecSync, its output bounded, its time limited; and what a session executes."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from pathlib import Path
from typing import Any, Final

from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.tasks import Background, in_thread, within
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import DeadlineExceeded, FailedPrecondition, HoldfastError, InvalidArgument, NotFound
from holdfast.model.state import ContainerState
from holdfast.model.tally import Timed
from holdfast.runtime import streamers
from holdfast.runtime.shims import Shims
from holdfast.runtime.task import TaskClient

log = logging.getLogger(__name__)

CHUNK: Final = 256 * 1024
READS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
KILL_SECONDS: Final = 0.5  # and as long again to forget it: one second beyond the client's own
END_SECONDS: Final = 5.0
LATE_LONGEST: Final = 3.0  # between attempts to end what has outlived that


class Collector:
    """Reads one output FIFO as it fills and keeps at most `limit` bytes; what is more is read and dropped."""

    def __init__(self, path: Path, limit: int) -> None:
        files.fifo(path, 0o600)
        self._fd = os.open(path, READS)
        self._limit = limit
        self.data = bytearray()
        asyncio.get_running_loop().add_reader(self._fd, self.drain)

    def drain(self) -> None:
        """Take what is there now; what a child left behind writes later is not waited for."""
        while True:
            try:
                chunk = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                # No writer (any more): readable for ever, so stop watching.
                asyncio.get_running_loop().remove_reader(self._fd)
                return
            self.data += chunk[: self._limit - len(self.data)]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


class Executor:
    """Runs commands for ExecSync, and prepares those that a streamer starts."""

    def __init__(
        self, containers: Containers, bundles: Bundles, shims: Shims, output_limit: int, background: Background
    ) -> None:
        self._containers = containers
        self._bundles = bundles
        self._shims = shims
        self._limit = output_limit
        self._background = background
        self._late: set[str] = set()  # what was executed, is over for its client, and not for its shim
        self.sessions = Timed("holdfast_session", "commands executed and other sessions in containers", ("kind",))

    async def exec_sync(self, container_id: str, command: list[str], seconds: float) -> tuple[bytes, bytes, int]:
        """(stdout, stderr, exit code). `seconds` <= 0 is no limit. Raises DeadlineExceeded, having killed it."""
        if not command:
            raise InvalidArgument("cmd: a command is needed")
        with self.sessions.one("exec_sync"):
            return await self._exec_sync(container_id, command, seconds)

    async def _exec_sync(self, container_id: str, command: list[str], seconds: float) -> tuple[bytes, bytes, int]:
        async with self._containers.running(container_id, "exec in") as container:
            task = await self._shims.task(container.pod.meta.id)
            exec_id = secrets.token_hex(8)
            directory = self._directory(container, exec_id)
            outputs: list[Collector] = []
            try:
                outputs += [Collector(directory / name, self._limit) for name in ("stdout", "stderr")]
                code = await self._run(task, container, exec_id, directory, command, seconds)
                for output in outputs:
                    output.drain()
                return bytes(outputs[0].data), bytes(outputs[1].data), code
            finally:
                for output in outputs:
                    output.close()
                if exec_id not in self._late:  # of which the next daemon would have to know
                    await in_thread(files.remove_tree, directory)

    async def prepare(self, container: Container, exec_id: str, command: list[str], streams: list[str]) -> Path:
        """Tell the shim of a command for `exec_id` and make FIFOs for its streams; somebody else is to start it.

        `streams` are the names of those that are asked for, with "tty" among them where it has a terminal. Returns the
        directory in which they are. To be undone by `end`, also when this fails.
        """
        task = await self._shims.task(container.pod.meta.id)
        directory = self._directory(container, exec_id)
        paths = {name: str(directory / name) for name in streams if name != "tty"}
        for path in paths.values():
            files.fifo(path, 0o600)
        await self._create(task, container, exec_id, command, paths, terminal="tty" in streams)
        return directory

    def forsaken(self, container: Container) -> list[str]:
        """What an earlier daemon was executing for its clients when it died, those of streamers apart.

        To be asked before anybody can execute anything new.
        """
        try:
            names = os.listdir(self._bundles.path(container) / "exec")
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not streamers.kind_of(name))

    async def end(self, container: Container, exec_id: str) -> None:
        """End one whose client has gone. Raises DeadlineExceeded, Unavailable while the shim does not answer."""
        task = await self._shims.task(container.pod.meta.id)
        directory = self._bundles.path(container) / "exec" / exec_id
        with contextlib.ExitStack() as held:
            _hold_outputs(directory, held)
            await within(END_SECONDS, _end(task, container.meta.id, exec_id), f"end exec {exec_id}")
        await in_thread(files.remove_tree, directory)

    def _directory(self, container: Container, exec_id: str) -> Path:
        directory = self._bundles.path(container) / "exec" / exec_id
        files.make_private(directory.parent)
        files.make_private(directory)
        return directory

    async def _create(
        self,
        task: TaskClient,
        container: Container,
        exec_id: str,
        command: list[str],
        paths: dict[str, str],
        *,
        terminal: bool = False,
    ) -> None:
        spec = await in_thread(self._bundles.load, container)
        process = {**_process(spec), "args": command, "terminal": terminal}
        process.pop("consoleSize", None)
        if terminal and not any(one.startswith("TERM=") for one in process["env"]):
            process["env"] = [*process["env"], "TERM=xterm"]
        crashpoint("exec.prepared")
        stdin, stdout, stderr = (paths.get(name, "") for name in ("stdin", "stdout", "stderr"))
        await task.exec(
            container.meta.id, exec_id, process, stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal
        )
        crashpoint("exec.created")

    async def _run(
        self, task: TaskClient, container: Container, exec_id: str, directory: Path, command: list[str], seconds: float
    ) -> int:
        container_id = container.meta.id
        paths = {name: str(directory / name) for name in ("stdout", "stderr")}
        try:
            async with asyncio.timeout(seconds if seconds > 0 else None):
                await self._create(task, container, exec_id, command, paths)
                await task.start(container_id, exec_id)
                crashpoint("exec.started")
                code, _ = await task.wait(container_id, exec_id)
                crashpoint("exec.exited")
                return code
        except TimeoutError as exc:
            await self._kill(task, container_id, exec_id)
            raise DeadlineExceeded(f"cannot exec in container {container_id}: no end after {seconds:g} s") from exc
        except asyncio.CancelledError:  # the client has gone, and with it the reason to run this
            await self._kill(task, container_id, exec_id)
            raise
        finally:
            await self._forget(task, container, exec_id)

    async def _kill(self, task: TaskClient, container_id: str, exec_id: str) -> None:
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await task.kill(container_id, signal.SIGKILL, exec_id, everything=True)
                await task.wait(container_id, exec_id)
        except (HoldfastError, TimeoutError) as exc:
            log.warning("exec %s in container %s outlives its kill: %s", exec_id, container_id, exc)

    async def _forget(self, task: TaskClient, container: Container, exec_id: str) -> None:
        """What lives on, or has not even begun, as it takes its time on a busy machine, is ended when it can be."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await task.delete(container.meta.id, exec_id)
        except NotFound:
            return
        except (HoldfastError, TimeoutError) as exc:
            log.info("exec %s in container %s is to be ended later: %s", exec_id, container.meta.id, exc)
            self._late.add(exec_id)
            self._background.see_through(
                f"end of exec {exec_id}", lambda: self._end_late(container, exec_id), LATE_LONGEST
            )

    async def _end_late(self, container: Container, exec_id: str) -> None:
        if container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            await self.end(container, exec_id)
        await in_thread(files.remove_tree, self._bundles.path(container) / "exec" / exec_id)
        self._late.discard(exec_id)


def _hold_outputs(directory: Path, held: contextlib.ExitStack) -> None:
    """Open to be read: a foreign shim that is starting a command waits for that, and cannot end it before."""
    for name in ("stdout", "stderr"):
        with contextlib.suppress(FileNotFoundError):
            held.callback(os.close, os.open(directory / name, READS))


async def _end(task: TaskClient, container_id: str, exec_id: str) -> None:
    with contextlib.suppress(NotFound, FailedPrecondition):  # it has ended, or was never started
        await task.kill(container_id, signal.SIGKILL, exec_id, everything=True)
        await task.wait(container_id, exec_id)
    with contextlib.suppress(NotFound):
        await task.delete(container_id, exec_id)


def _process(spec: dict[str, object]) -> dict[str, Any]:
    process = spec["process"]
    assert isinstance(process, dict)
    return process
