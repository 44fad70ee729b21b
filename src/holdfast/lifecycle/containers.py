"""Containers: create, start, stop, remove, update. Intent first, then the act, then the result."""

import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.images.service import Images
from holdfast.lifecycle import target
from holdfast.lifecycle.adopt import Adopter
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.container_checkpoints import ContainerCheckpoints
from holdfast.lifecycle.foreign import Foreign
from holdfast.lifecycle.joins import Joins
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.limits import Limits
from holdfast.lifecycle.monitor import Monitor, read_init
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.restores import Restores
from holdfast.lifecycle.stop import Stopper
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.tasks import Background, in_thread, within
from holdfast.lifecycle.userns import Users
from holdfast.lifecycle.volumes import Volumes
from holdfast.lifecycle.world import World
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    AlreadyExists,
    Damaged,
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from holdfast.model.image import Image
from holdfast.model.spec import ContainerMetadata, Intent, new_id
from holdfast.model.state import (
    EXIT_START_FAILED,
    REASON_START,
    ContainerState,
    ContainerStatus,
    PodState,
    ProcessRef,
)
from holdfast.model.words import readable
from holdfast.oci.signals import stop_signal
from holdfast.oci.validate import validate_container
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.pathwork import PathWork
from holdfast.runtime.shims import Shims
from holdfast.snapshots.overlay import Snapshots

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 10.0
CLEAN_SECONDS: Final = 30.0
# From a start: nobody knows how far it got, or that cannot be written down. What the witnesses say is what happened.
UNTOLD: Final = (Unavailable, DeadlineExceeded, ResourceExhausted, Damaged)


class Containers:
    """The rules by which containers come and go."""

    def __init__(
        self,
        world: World,
        shims: Shims,
        images: Images,
        snapshots: Snapshots,
        bundles: Bundles,
        monitor: Monitor,
        stopper: Stopper,
        cleanup: Cleanup,
        background: Background,
        layout: Layout,
        adopter: Adopter,
        paths: PathWork,
        storage: Storage,
        foreign: Foreign,
        volumes: Volumes,
        users: Users,
        limits: Limits,
        restores: Restores,
        checkpoints: ContainerCheckpoints,
    ) -> None:
        self._limits = limits
        self._restores = restores
        self._checkpoints = checkpoints
        self._volumes = volumes
        self._foreign = foreign
        self._users = users
        self._storage = storage
        self._joins = Joins[Container](world.containers.get, world.clock.now, SETTLE_SECONDS)
        self._paths = paths
        self._adopter = adopter
        self._world = world
        self._shims = shims
        self._images = images
        self._snapshots = snapshots
        self._bundles = bundles
        self._monitor = monitor
        self._stopper = stopper
        self._cleanup = cleanup
        self._background = background
        self._layout = layout

    async def create(self, pod_id: str, config: pb.ContainerConfig, saved: Path | None = None) -> Container:
        """Reserve the name and prepare bundle and writable layer. A failure leaves nothing behind.

        Asked twice, it is done once. `saved` is a directory with what a checkpoint has of it, which becomes its own.
        """
        pod = self._world.pod(pod_id)
        if pod.state is not PodState.READY or not pod.acknowledged:
            raise FailedPrecondition(f"cannot create container in pod sandbox {pod.meta.id}: it is not ready")
        validate_container(config, pod.config)
        target.find(pod, config)

        def same(made: Container) -> bool:
            return made.state is ContainerState.CREATED and not made.intents and made.config == config

        key = (pod.meta.id, config.metadata.name, config.metadata.attempt)
        return await self._joins.once(key, config, lambda: self._create(pod, config, saved), same)

    async def _create(self, pod: Pod, config: pb.ContainerConfig, saved: Path | None) -> Container:
        what, taken = f"create container {config.metadata.name}", (config.metadata.name, config.metadata.attempt)
        if all((one.meta.name, one.meta.attempt) != taken for one in pod.containers.values()):
            await self._storage.require(what)
        with self._storage.named(what):
            container_id = new_id()
            try:
                kept = await self._restores.read(container_id, pod, config, saved)
                image = kept or await self._images.whole(config.image.image)
                meta = self._metadata(container_id, pod, config, image, config.image.image if kept else "")
                return await self._make(meta, config, image)
            finally:
                if container_id not in self._world.containers:
                    await self._restores.discard(container_id)

    async def _make(self, meta: ContainerMetadata, config: pb.ContainerConfig, image: Image) -> Container:
        intent = Intent(meta.id, "create", self._world.clock.now(), {})
        limits = self._bundles.first_limits(config).SerializeToString(deterministic=True)
        container = await self._world.insert_container(meta, ContainerStatus(resources=limits), intent)
        self._restores.known(meta.id)
        container.stage = "preparing its writable layer"
        crashpoint("create.recorded")
        async with AsyncExitStack() as undo, container.lock:
            undo.push_async_callback(self._give_up, container)
            await self._snapshots.prepare(meta.snapshot_key, self._images.snapshot_name(image))
            crashpoint("create.snapshot")
            await self._users.own(container)
            await self._restores.fill(container)
            container.stage = "preparing its mounts and its bundle"
            user = (await self._bundles.write(container, image)).SerializeToString()
            await self._restores.check(container)
            crashpoint("create.bundle")
            await self._world.update_container(container, lambda status: replace(status, user=user), end="create")
            crashpoint("create.done")
            undo.pop_all()
        container.settled.set()
        container.cleaned.set()
        return container

    async def undo_create(self, container: Container) -> None:
        """Remove a container whose creation was never acknowledged."""
        await self._cleanup.container(container)

    async def _give_up(self, container: Container) -> None:
        """Undo a creation; what cannot be undone now is undone as soon as it can be."""
        container.stage = ""
        try:
            await self.undo_create(container)
        except (HoldfastError, OSError) as exc:
            log.warning("cannot undo the creation of container %s yet: %s", container.meta.id, exc)
            self._background.see_through(f"undo create {container.meta.id}", lambda: self.undo_create(container))

    async def start(self, container_id: str, held: float = 0.0) -> None:
        """Run a created container. When it cannot be started it is EXITED with 128 and reason StartError.

        One that is restored may be `held` for some seconds, see Freezer.held.
        """
        container = await self._acknowledged(container_id)
        async with container.lock:
            pod = container.pod
            if "start" in container.intents:
                raise Unavailable(
                    f"cannot start container {container.meta.id}: how far an earlier start got is not known"
                )
            if container.state is not ContainerState.CREATED:
                raise FailedPrecondition(f"cannot start container {container.meta.id}: it is {container.state}")
            if pod.state is not PodState.READY:
                raise FailedPrecondition(f"cannot start container {container.meta.id}: its pod sandbox is not ready")
            await self._cleanup.clear_cgroup(container)
            await self._world.begin(container, "start")
            crashpoint("start.recorded")
            container.cleaned.clear()
            now = self._world.clock.now()  # before the act: a process may be over before we hear that it runs
            try:
                async with self._storage.blamed(f"start container {container.meta.id}"):
                    process = await self._run(container, held)
                started = lambda status: replace(status, started_at=status.started_at or now, process=process)  # noqa: E731
                await self._world.update_container(container, started, end="start")
            except UNTOLD:
                await self._adopter.ensure(pod)
                await self._monitor.settle_soon(container)
                if container.state is ContainerState.CREATED:
                    raise
                return  # it was done before the shim was gone
            except (HoldfastError, OSError) as exc:
                await self._start_failed(container, str(exc))
                raise
            crashpoint("start.done")
            self._monitor.watch(container)
            self._restores.discard_later(container)

    async def stop(self, container_id: str, seconds: float) -> None:
        """Stop gracefully within `seconds`. A container that does not exist has been stopped."""
        try:
            container = await self._acknowledged(container_id)
        except NotFound:
            return
        await self._stopper.stop(container, seconds)

    async def held_up(self, container: Container) -> str:
        """Why a container that is being stopped does not end; "" when that is not known, or not so."""
        return await self._stopper.held_up(container)

    async def remove(self, container_id: str) -> None:
        """Remove a container, killing it first if it runs. One that does not exist has been removed."""
        try:
            container = await self._acknowledged(container_id)
        except NotFound:
            return
        await self.finish_remove(container)

    async def finish_remove(self, container: Container) -> None:
        """Carry out a removal, from wherever it stands."""
        if "remove" not in container.intents:
            await self._world.begin(container, "remove")
            crashpoint("remove.recorded")
        await self._stopper.stop(container, 0)
        await self._checkpoints.over(container)
        async with container.lock:
            if container.meta.id not in self._world.containers:
                return  # somebody else has removed it meanwhile
            await self._world.write_known(container)
            what = f"clean up after container {container.meta.id}"
            await within(CLEAN_SECONDS, container.cleaned.wait(), what)
            await self._cleanup.container(container)
        await self._images.collect()

    async def checkpoint(self, container_id: str, location: str, seconds: float) -> None:
        """Leave an archive of a container that runs, and goes on, at `location`; see ContainerCheckpoints."""
        container = await self._acknowledged(container_id)
        await self._checkpoints.checkpoint(container, location, seconds)

    async def update_resources(self, container_id: str, resources: pb.LinuxContainerResources) -> None:
        """Change limits of a container that runs, or of one that will."""
        container = await self._acknowledged(container_id)
        async with container.lock:
            await self._limits.update(container, resources)

    async def reopen_log(self, container_id: str) -> None:
        container = await self._acknowledged(container_id)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"cannot reopen log of container {container.meta.id}: it is {container.state}")
        if self._foreign.serves(container):
            await self._foreign.reopen_log(container)
        else:
            await (await self._shims.task(container.pod.meta.id)).reopen_log(container.meta.id)

    @asynccontextmanager
    async def running(self, container_id: str, verb: str) -> AsyncIterator[Container]:
        """A container that runs, for an operation inside it."""
        container = await self._acknowledged(container_id)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"cannot {verb} container {container.meta.id}: it is {container.state}")
        yield container

    async def _acknowledged(self, container_id: str) -> Container:
        """The container, once it has been settled after a restart."""
        container = self._world.container(container_id)
        if not container.acknowledged:
            raise NotFound(f"cannot find container {container_id!r}: it is being created")
        await within(SETTLE_SECONDS, container.settled.wait(), f"settle container {container.meta.id}")
        return container

    async def _run(self, container: Container, held: float) -> ProcessRef:
        """Have the shim create and start the task."""
        bundle = self._layout.bundle(container.pod.meta.id, container.meta.id)
        await self._bundles.ensure(container)
        crashpoint("start.bundle")
        stdout = stderr = await self._prepare_log(container.meta.log_path)
        stdin = str(bundle / "stdin") if container.config.stdin else ""
        if foreign := self._foreign.serves(container):
            stdout, stderr = await self._foreign.begin(container, stdin)
        task = await self._shims.task(container.pod.meta.id)
        origin = await self._restores.begin(container, held)
        with contextlib.suppress(NotFound, Damaged):  # of an image that is gone the layers may be there all the same
            await self._images.whole(container.meta.image_id)
        mounts = self._users.shown(container, await self._snapshots.mounts(container.meta.snapshot_key))
        make = functools.partial(
            task.create,
            container.meta.id,
            bundle=bundle,
            rootfs=await self._bundles.labelled(container, mounts),
            terminal=container.config.tty,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            options=self._foreign.options(container),
            restore=origin,
        )

        at_once = origin is not None or self._bundles.mounts_at_start(container)

        async def begin() -> int:
            """What is restored, or gVisor's, is put into its mounts when it is started, and not before."""
            async with self._volumes.staged(container):
                pid = await make()
                if at_once:
                    await task.start(container.meta.id)
            return pid

        async with target.held(container, bundle):
            try:
                pid = await begin()
            except AlreadyExists:  # what a shim that died had begun, and its successor could not take apart at once
                await self._cleanup.discard(container)
                container.cleaned.clear()
                pid = await begin()
        crashpoint("start.created")
        if foreign:
            await self._foreign.created(container, pid)
        if not at_once:
            await task.start(container.meta.id)
        crashpoint("start.started")
        problem = "its shim has not recorded its init"
        try:
            init = await in_thread(read_init, bundle)
        except OSError as exc:
            init, problem = None, str(exc)
        if init is None:
            raise Unavailable(f"cannot tell whether container {container.meta.id} has started: {problem}")
        return ProcessRef(init.pid, init.start_time, init.boot_id)

    async def _prepare_log(self, path: str) -> str:
        """The log's address for the shim, its directory made; without a path, for output that is read and not kept."""
        if path:
            await self._paths.make_directory(os.path.dirname(path), "config.log_path")
        return f"cri://{path}"

    async def _start_failed(self, container: Container, message: str) -> None:
        now = self._world.clock.now()

        def failed(status: ContainerStatus) -> ContainerStatus:
            return replace(
                status,
                started_at=now,
                finished_at=now,
                exit_code=EXIT_START_FAILED,
                reason=REASON_START,
                message=readable(message),
            )

        try:
            await self._world.update_container(container, failed, end="start")
            self._monitor.clean(container)
        except HoldfastError:
            await self._monitor.settle_soon(container)

    def _metadata(
        self, container_id: str, pod: Pod, config: pb.ContainerConfig, image: Image, checkpoint: str
    ) -> ContainerMetadata:
        directory = pod.config.log_directory
        return ContainerMetadata(
            id=container_id,
            pod_id=pod.meta.id,
            name=config.metadata.name,
            attempt=config.metadata.attempt,
            config=config.SerializeToString(),
            image_ref=config.image.user_specified_image or config.image.image,
            image_id=image.id,
            snapshot_key=container_id,
            log_path=os.path.join(directory, config.log_path) if directory and config.log_path else "",
            stop_signal=stop_signal(config, image),
            created_at=self._world.clock.now(),
            checkpoint=checkpoint,
        )
