"""What our own shims see to themselves and a foreign one leaves to us: a container's log, and its init.json."""

import logging

from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.sandbox import record_init, record_start
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.linux.inject import crashpoint
from holdfast.model.state import ContainerState, ProcessRef
from holdfast.runtime.foreign import ForeignShims
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.loggers import Loggers
from holdfast.runtime.shims import wait_gone

log = logging.getLogger(__name__)


class Foreign:
    """Containers of foreign shims. Each with a log has a logger, which is replaced when it dies."""

    def __init__(
        self, shims: ForeignShims, loggers: Loggers, handlers: Handlers, background: Background, layout: Layout
    ) -> None:
        self._shims = shims
        self._loggers = loggers
        self._handlers = handlers
        self._background = background
        self._layout = layout

    def options(self, container: Container) -> bytes:
        """What the shim is to be told with Create, a serialized google.protobuf.Any; b"" for our own."""
        return self._handlers.get(container.pod.meta.handler).options

    def serves(self, container: Container) -> bool:
        return bool(self._handlers.get(container.pod.meta.handler).shim)

    async def begin(self, container: Container, stdin: str) -> tuple[str, str]:
        """Before Create: what the shim expects in the bundle, and a logger. Returns stdout and stderr, "" without.

        Raises Unavailable, OSError.
        """
        pod_id, id, path = container.pod.meta.id, container.meta.id, container.meta.log_path
        handler = self._handlers.get(container.pod.meta.handler)
        await in_thread(self._shims.prepare, self._layout.bundle(pod_id, id), handler)
        if not path and not stdin:
            return "", ""
        if (left := self._loggers.find(pod_id, id)) is not None:  # of an attempt that was cut off
            await self._loggers.finish(pod_id, id)
            await wait_gone(left)
        await self._loggers.start(pod_id, id, path, stdin)
        crashpoint("foreign.logging")
        stdout, stderr = self._loggers.streams(pod_id, id)
        return stdout, "" if container.config.tty else stderr

    async def created(self, container: Container, pid: int) -> None:
        """After Create and before Start: write down who its init is. Raises Unavailable, OSError."""
        bundle = self._layout.bundle(container.pod.meta.id, container.meta.id)
        await in_thread(record_init, bundle, pid)
        crashpoint("foreign.init")
        await in_thread(record_start, bundle)

    def watch(self, container: Container) -> None:
        """See to it that the logger of a container that runs is replaced when it dies."""
        if self.serves(container) and self._has_log(container):
            self._background.see_through(f"logger-watch {container.meta.id}", lambda: self._watch(container))

    async def reopen_log(self, container: Container) -> None:
        if self._has_log(container):
            await self._loggers.reopen(container.pod.meta.id, container.meta.id)

    async def delete(self, container: Container) -> None:
        """What the shim would do if it were not dead: its own command to delete what is left of the task."""
        handler = self._handlers.get(container.pod.meta.handler)
        await self._shims.delete(container.pod.meta.id, container.meta.id, handler)

    async def finish(self, container: Container) -> None:
        """The shim has handed over all there is: complete the log. Raises Unavailable; idempotent."""
        if not self.serves(container) or not self._has_log(container):
            return
        if self._loggers.find(container.pod.meta.id, container.meta.id) is None:
            await self._adopt(container)
        await self._loggers.finish(container.pod.meta.id, container.meta.id)

    async def _watch(self, container: Container) -> None:
        while container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            logger = self._loggers.find(container.pod.meta.id, container.meta.id)
            if logger is None:
                log.warning("the logger of container %s is gone, starting another one", container.meta.id)
                logger = await self._adopt(container)
            await wait_gone(logger)

    async def _adopt(self, container: Container) -> ProcessRef:
        pod_id, id, path = container.pod.meta.id, container.meta.id, container.meta.log_path
        stdin = str(self._layout.bundle(pod_id, id) / "stdin") if container.config.stdin else ""
        return await self._loggers.start(pod_id, id, path, stdin, adopt=True)

    def _has_log(self, container: Container) -> bool:
        return self._loggers.has(container.pod.meta.id, container.meta.id)
