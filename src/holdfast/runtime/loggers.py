"""The daemon's side of loggers, one for each container of a foreign shim; a logger outlives the daemon."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from google.protobuf.empty_pb2 import Empty

from holdfast.linux import files, process
from holdfast.model.errors import Damaged, Unavailable
from holdfast.model.state import ProcessRef
from holdfast.model.witness import LOGGER_FILE, decode_process
from holdfast.runtime.keeper import Keeper
from holdfast.ttrpc.client import Client, ConnectionLost, TtrpcError

log = logging.getLogger(__name__)

KIND: Final = "logger"
SOCKET: Final = "log.sock"
STREAMS: Final = ("stdout", "stderr")
SERVICE: Final = "holdfast.v1.Logger"
CALL_SECONDS: Final = 10.0
RECORD_LIMIT: Final = 64 * 1024


class Loggers:
    """By pod and container id."""

    def __init__(self, pods: Path, keeper: Keeper) -> None:
        self._pods = pods
        self._keeper = keeper

    def streams(self, pod_id: str, container_id: str) -> tuple[str, str]:
        """The FIFOs that the shim is to write to, made by the logger."""
        bundle = self._pods / pod_id / container_id
        return str(bundle / STREAMS[0]), str(bundle / STREAMS[1])

    def has(self, pod_id: str, container_id: str) -> bool:
        """Whether the container has a log that was not completed yet: a logger that ends takes its FIFOs with it."""
        return any(os.path.exists(path) for path in self.streams(pod_id, container_id))

    async def start(
        self, pod_id: str, container_id: str, log_path: str, stdin: str = "", *, adopt: bool = False
    ) -> ProcessRef:
        """Have the keeper fork one; it reads when this returns. One that has died is replaced with `adopt`.

        Raises Unavailable.
        """
        bundle = self._pods / pod_id / container_id
        args: dict[str, object] = {
            "directory": str(bundle), "log_path": log_path, "stdin": stdin, "adopt": adopt,
        }  # fmt: skip
        return await self._keeper.fork(KIND, container_id, args, listen=bundle / SOCKET)

    def find(self, pod_id: str, container_id: str) -> ProcessRef | None:
        """The container's logger, if it lives: it says so itself, as its keeper may be another one's by now."""
        with contextlib.suppress(FileNotFoundError, Damaged):
            path = self._pods / pod_id / container_id / LOGGER_FILE
            logger = decode_process(files.read_bounded(path, RECORD_LIMIT))
            with process.pin(logger.pid, logger.start_time) as pinned:
                if logger.boot_id == process.boot_id() and pinned is not None and pinned.alive():
                    return logger
        return None

    async def reopen(self, pod_id: str, container_id: str) -> None:
        """Raises Unavailable."""
        await self._call(pod_id, container_id, "Reopen")

    async def finish(self, pod_id: str, container_id: str) -> None:
        """Nothing more will come: have the log completed. Raises Unavailable."""
        await self._call(pod_id, container_id, "Finish")
        (self._pods / pod_id / container_id / SOCKET).unlink(missing_ok=True)

    async def _call(self, pod_id: str, container_id: str, method: str) -> None:
        what = f"cannot {method.lower()} log of container {container_id}"
        try:
            client = await Client.connect(self._pods / pod_id / container_id / SOCKET)
            try:
                await client.call(SERVICE, method, Empty(), Empty, CALL_SECONDS)
            finally:
                client.close()
        except TtrpcError as exc:
            raise Unavailable(f"{what}: {exc}") from exc
        except (OSError, ConnectionLost, TimeoutError) as exc:
            raise Unavailable(f"{what}: its logger does not answer: {exc}") from exc
