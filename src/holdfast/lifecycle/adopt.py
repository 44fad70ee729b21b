"""A shim that dies is not the death of its containers: another one adopts its pod.

Where that is not wanted (`on_shim_death = "cleanup"`) the pod is stopped instead, as if its client had asked for that.

The shim's end is seen at its pidfd, whoever its parent is, and at the start of the daemon. Until a pod has a shim again
its containers run on; the keeper, or the kernel, remembers how they end.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from holdfast.lifecycle.events import Kind
from holdfast.lifecycle.objects import Pod, init_cgroup
from holdfast.lifecycle.tasks import Background
from holdfast.lifecycle.world import World
from holdfast.linux import process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import HoldfastError
from holdfast.model.state import REASON_SHIM, ContainerState
from holdfast.model.tally import Timed
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.shims import Shims, alive, wait_gone

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 0.25
RETRY_LONGEST: Final = 60.0
GRACE_SECONDS: Final = 3.0  # the keeper may have died with the shim, and is about to be replaced


class Adopter:
    """Keeps a living shim behind each pod, one background task a pod."""

    def __init__(self, world: World, shims: Shims, handlers: Handlers, background: Background, adopts: bool) -> None:
        self.stop_pod: Callable[[Pod], Awaitable[None]] | None = None  # finish_stop of Pods, which need an Adopter
        self.adoptions = Timed("holdfast_shim_adoption", "adoptions of pods whose shim had died")
        self._adopts = adopts
        self._world = world
        self._shims = shims
        self._handlers = handlers
        self._background = background

    def watch(self, pod: Pod) -> None:
        """See to it that the death of this pod's shim is noticed and made good."""
        self._background.see_through(f"shim-watch {pod.meta.id}", lambda: self._watch(pod))

    async def ensure(self, pod: Pod) -> bool:
        """Whether the pod has a living shim; one that is dead is replaced first, if that can be done."""
        async with pod.shim_lock:
            shim = pod.status.shim
            if shim is not None and alive(shim):
                return True
            if not self._wanted(pod) or not self._adoptable(pod):
                return False
            try:
                with self.adoptions.one():
                    await self._adopt(pod)
            except (HoldfastError, OSError) as exc:
                log.warning("cannot replace the shim of pod %s: %s", pod.meta.id, exc)
                return False
            return True

    async def replace(self, pod: Pod, why: str) -> None:
        """End a shim that is wrong: another one adopts the pod. Not where its death would be the pod's."""
        async with pod.shim_lock:
            shim = pod.status.shim
            if shim is not None and self._wanted(pod) and self._adoptable(pod):
                log.warning("pod %s: shim %d is replaced: %s", pod.meta.id, shim.pid, why)
                await self._shims.kill(pod.meta.id, shim)

    async def release(self, pod: Pod) -> None:
        """The pod is being taken apart: its shim's death is meant from now on."""
        async with pod.shim_lock:
            pod.released = True

    async def _watch(self, pod: Pod) -> None:
        wait, lost_at = RETRY_FIRST, 0.0
        while self._wanted(pod):
            if (shim := pod.status.shim) is not None and await wait_gone(shim) and not self._wanted(pod):
                return
            if not self._adoptable(pod):
                await self._clean_up(pod)
                return
            if await self.ensure(pod):
                wait, lost_at = RETRY_FIRST, 0.0
                continue
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > GRACE_SECONDS:
                await self._mark_lost(pod)
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_LONGEST)

    def _adoptable(self, pod: Pod) -> bool:
        return self._adopts and not self._handlers.get(pod.meta.handler).shim

    async def _clean_up(self, pod: Pod) -> None:
        """End what a dead shim has left, as a stop of the pod does, which a daemon that dies meanwhile goes on with."""
        log.warning("pod %s: its shim is gone, and its containers are ended with it", pod.meta.id)
        await self._mark_lost(pod)
        assert self.stop_pod is not None
        await self.stop_pod(pod)

    def _wanted(self, pod: Pod) -> bool:
        """Whether this pod should have a shim: not one that is over, being taken apart, or of an earlier boot."""
        if pod.released or pod.status.stopped_at or not pod.acknowledged or pod.meta.id not in self._world.pods:
            return False
        return pod.status.shim is not None and pod.status.shim.boot_id == process.boot_id()

    async def _adopt(self, pod: Pod) -> None:
        crashpoint("adopt.begin")
        options = pod.config.linux.security_context.namespace_options
        handler = self._handlers.get(pod.meta.handler).on(options.network)
        shared = options.pid == pb.POD and not handler.gvisor
        before = pod.status.shim
        running = [one for one in pod.containers.values() if one.state is ContainerState.RUNNING]
        inits = {one.meta.id: one.status.process for one in running if one.status.process is not None}
        shim = await self._shims.adopt(pod.meta.id, handler, shared, init_cgroup(pod.meta), inits, pod.owner)
        crashpoint("adopt.forked")
        pod.status = replace(pod.status, shim=shim)  # it is the one, whether that can be written down or not
        await self._world.learn_pod(
            pod,
            lambda status: replace(
                status,
                shim=shim,
                ready=status.ready or status.reason == REASON_SHIM,
                reason="" if status.reason == REASON_SHIM else status.reason,
            ),
        )
        crashpoint("adopt.recorded")
        self._world.tell(Kind.ADOPTED, pod)
        log.info("pod %s: shim %d is gone, %d has adopted it", pod.meta.id, before.pid if before else 0, shim.pid)

    async def _mark_lost(self, pod: Pod) -> None:
        if not pod.status.ready:
            return
        try:
            await self._world.learn_pod(pod, lambda status: replace(status, ready=False, reason=REASON_SHIM))
        except (HoldfastError, OSError) as exc:
            log.warning("cannot record that pod %s has no shim: %s", pod.meta.id, exc)
