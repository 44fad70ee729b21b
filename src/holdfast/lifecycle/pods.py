"""Pod sandboxes: run, stop, remove. A sandbox is its pinned namespaces, its cgroup and its shim; nothing is paused."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.adopt import Adopter
from holdfast.lifecycle.bundle import hostname
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.guard import Guard
from holdfast.lifecycle.joins import Joins
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.limits import Limits
from holdfast.lifecycle.networks import Networks
from holdfast.lifecycle.objects import Pod, init_cgroup
from holdfast.lifecycle.pod_checkpoints import Outcome, PodCheckpoints, Wish
from holdfast.lifecycle.sandbox import Sandboxes
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.tasks import Background, in_thread, within
from holdfast.lifecycle.userns import Users
from holdfast.lifecycle.world import World
from holdfast.linux import files, mount, namespace
from holdfast.linux.inject import crashpoint
from holdfast.model import trace
from holdfast.model.errors import DeadlineExceeded, HoldfastError, InvalidArgument, NotFound, Unavailable
from holdfast.model.spec import Intent, PodMetadata, new_id
from holdfast.model.state import PodState, PodStatus
from holdfast.oci import gvisor, sysctls
from holdfast.oci.namespaces import user_namespace
from holdfast.oci.validate import validate_pod
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler, Handlers
from holdfast.runtime.pathwork import PathWork
from holdfast.runtime.shims import Shims

log = logging.getLogger(__name__)

RESTORE: Final = "restore"  # intent of a pod that is being made from an archive
POD_FILES: Final = ("hostname", "hosts", "resolv.conf")
SHM_BYTES: Final = 64 * 1024 * 1024
SETTLE_SECONDS: Final = 30.0  # for which a run waits for what an earlier daemon has begun under its name to be undone
ASKING_SECONDS: Final = 5.0
ENDING_SECONDS: Final = 30.0
Prepare = Callable[[Pod], Awaitable[None]]


class Pods:
    """The rules by which pod sandboxes come and go."""

    def __init__(
        self,
        world: World,
        shims: Shims,
        handlers: Handlers,
        networks: Networks,
        containers: Containers,
        cleanup: Cleanup,
        background: Background,
        layout: Layout,
        cgroups: Cgroups,
        adopter: Adopter,
        paths: PathWork,
        storage: Storage,
        sandboxes: Sandboxes,
        gate: Gate,
        users: Users,
        limits: Limits,
        guard: Guard,
        checkpoints: PodCheckpoints,
    ) -> None:
        self._checkpoints = checkpoints
        self._guard = guard
        self._limits = limits
        self._gate = gate
        self._users = users
        self._sandboxes = sandboxes
        self._storage = storage
        self._joins = Joins[Pod](world.pods.get, world.clock.now, SETTLE_SECONDS)
        self._paths = paths
        self._adopter = adopter
        self._world = world
        self._shims = shims
        self._handlers = handlers
        self._networks = networks
        self._containers = containers
        self._cleanup = cleanup
        self._background = background
        self._layout = layout
        self._cgroups = cgroups

    async def run(self, config: pb.PodSandboxConfig, handler_name: str, prepare: Prepare | None = None) -> Pod:
        """Reserve the name and bring the sandbox up. A failure leaves nothing behind. Asked twice, it is done once.

        A pod that is restored is prepared when it has its row, and before anything else is made of it; the intent
        "restore" is left for whoever asks to end.
        """
        validate_pod(config, self._cgroups.driver)
        self._limits.check_pod(config)
        handler = self._handlers.usable(handler_name)
        if handler.gvisor:
            gvisor.check_pod(config)
        if user_namespace(config.linux.security_context.namespace_options) is not None:
            await self._users.require(handler)

        def same(pod: Pod) -> bool:
            return pod.state is PodState.READY and not pod.intents and (pod.config, pod.meta.handler) == request

        request, named = (config, handler.name), config.metadata
        key = (named.name, named.namespace, named.uid, named.attempt)
        return await self._joins.once(key, request, lambda: self._run(config, handler, prepare), same)

    async def _run(self, config: pb.PodSandboxConfig, handler: Handler, prepare: Prepare | None) -> Pod:
        await self._gate.require(handler)
        named = config.metadata
        what, taken = f"run pod sandbox {named.name}", (named.name, named.namespace, named.uid, named.attempt)
        held = (pod.meta for pod in self._world.pods.values())
        if all((meta.name, meta.namespace, meta.uid, meta.attempt) != taken for meta in held):
            await self._storage.require(what)
        with self._storage.named(what):
            return await self._make(config, handler, prepare)

    async def _make(self, config: pb.PodSandboxConfig, handler: Handler, prepare: Prepare | None) -> Pod:
        meta = await self._metadata(config, handler)
        intent = Intent(meta.id, "run", meta.created_at, {})
        pod = await self._world.insert_pod(meta, PodStatus(), intent)
        pod.stage = "making its shim, namespaces and cgroup"
        crashpoint("run.recorded")
        async with AsyncExitStack() as undo, pod.lock:
            undo.push_async_callback(self._give_up, pod)
            restore = None
            if prepare is not None:
                await prepare(pod)
                restore = Intent(meta.id, RESTORE, self._world.clock.now(), {})
            await self._bring_up(pod, handler)
            network = pod.status.network
            ready = lambda status: replace(status, ready=True, network=network)  # noqa: E731
            await self._world.update_pod(pod, ready, begin=restore, end="run")
            crashpoint("run.ready")
            undo.pop_all()
        self.watch(pod)
        return pod

    def watch(self, pod: Pod) -> None:
        """See to it that the end of what the pod needs, its shim and its sandbox container, is noticed."""
        self._adopter.watch(pod)
        self._sandboxes.watch(pod)

    async def undo_run(self, pod: Pod) -> None:
        """Remove a sandbox that was never acknowledged."""
        await self._cleanup.sandbox(pod)
        await self._cleanup.pod(pod)

    async def _give_up(self, pod: Pod) -> None:
        """Undo a run; what cannot be undone now is undone as soon as it can be."""
        pod.stage = ""
        try:
            await self.undo_run(pod)
        except (HoldfastError, OSError) as exc:
            log.warning("cannot undo the run of pod %s yet: %s", pod.meta.id, exc)
            self._background.see_through(f"undo run {pod.meta.id}", lambda: self.undo_run(pod))

    async def stop(self, pod_id: str) -> None:
        """End the pod's containers, its network and its namespaces. One that does not exist has been stopped."""
        try:
            pod = self._world.pod(pod_id)
        except NotFound:
            return
        await self.finish_stop(pod)

    async def update_resources(
        self, pod_id: str, overhead: pb.LinuxContainerResources | None, resources: pb.LinuxContainerResources | None
    ) -> None:
        """Replace the limits of the pod as a whole, as far as they are given."""
        pod = self._world.pod(pod_id)
        if not pod.acknowledged:
            raise NotFound(f"cannot find pod sandbox {pod_id!r}: it is being made")
        await self._limits.update_pod(pod, overhead, resources)

    async def finish_stop(self, pod: Pod) -> None:
        """Carry out a stop, from wherever it stands. The guard has its say however often a stop is asked for."""
        async with pod.lock:
            if pod.meta.id not in self._world.pods:
                return
            if not pod.status.stopped_at or pod.intents:
                await self._stop(pod)
        await self._guard.clear(pod)  # when it is seen to be stopped: the same pod's other sandboxes look at that

    async def _stop(self, pod: Pod) -> None:
        if "stop" not in pod.intents:
            await self._world.begin(pod, "stop")
            crashpoint("stopp.recorded")
        await self._end_containers(pod)
        await self._cleanup.sandbox(pod)
        now = self._world.clock.now()
        stopped = lambda status: replace(status, ready=False, stopped_at=now, shim=None)  # noqa: E731
        await self._world.update_pod(pod, stopped, end="stop")
        crashpoint("stopp.done")

    async def checkpoint(self, pod_id: str, wish: Wish) -> Outcome:
        """Leave an archive of a pod; see PodCheckpoints. Unless left running it is stopped."""
        pod = self._world.pod(pod_id)
        done = await self._checkpoints.checkpoint(pod, wish)
        if not wish.leave_running:
            await self.finish_stop(pod)
        return done

    async def remove(self, pod_id: str) -> None:
        """Stop and remove the pod and its containers. One that does not exist has been removed."""
        try:
            pod = self._world.pod(pod_id)
        except NotFound:
            return
        await self.finish_remove(pod)

    async def finish_remove(self, pod: Pod) -> None:
        """Carry out a removal, from wherever it stands."""
        await self.finish_stop(pod)
        await self._checkpoints.over(pod)
        async with pod.lock:
            if pod.meta.id not in self._world.pods:
                return
            await self._world.begin(pod, "remove")
            crashpoint("rmp.recorded")
            for container in list(pod.containers.values()):
                await self._containers.finish_remove(container)
            crashpoint("rmp.containers")
            await self._cleanup.pod(pod)

    async def _end_containers(self, pod: Pod) -> None:
        """All at once. A shim that does not answer is ended: its containers are between the kernel and us then."""
        try:
            await self._end_all(pod, ASKING_SECONDS)
        except (DeadlineExceeded, Unavailable) as exc:
            if pod.status.shim is not None and not await self._shims.answers(pod.meta.id, pod.status.shim):
                log.warning("ending the shim of pod %s, which does not answer: %s", pod.meta.id, exc)
                await self._shims.end(pod.meta.id, pod.status.shim)
            await self._sandboxes.kill(pod, self._handlers.get(pod.meta.handler))
            await self._end_all(pod, ENDING_SECONDS)

    async def _end_all(self, pod: Pod, seconds: float) -> None:
        """Stop all containers and wait until each is cleaned up after. Raises the first failure once all have ended."""
        ends = [self._end(container_id, seconds) for container_id in list(pod.containers)]
        for failure in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    async def _end(self, container_id: str, seconds: float) -> None:
        await self._containers.stop(container_id, 0)
        container = self._world.containers.get(container_id)
        if container is not None and container.exited.is_set():
            await within(seconds, container.cleaned.wait(), f"clean up after container {container_id}")

    async def _bring_up(self, pod: Pod, handler: Handler) -> None:
        """Files, namespaces, cgroup and shim at once; then the network, which needs the namespaces."""
        directory, config = self._layout.pod(pod.meta.id), pod.config
        await in_thread(files.make_private, directory)
        crashpoint("run.directory")
        kinds = _own_kinds(config.linux.security_context.namespace_options)
        await self._users.make(pod, kinds)
        options = config.linux.security_context.namespace_options
        handler = handler.on(options.network)
        shared_pid = options.pid == pb.POD and not handler.gvisor  # whose pods have pids of their own
        shim = self._start_shim(pod, handler, shared_pid)
        first = [] if handler.shim else [shim]  # a foreign one looks into its bundle, which names what is pinned
        done = await asyncio.gather(
            *first,
            trace.step("make namespaces")(in_thread)(self._make_namespaces, pod, kinds),
            self._make_cgroup(pod),
            self._make_log_directory(config.log_directory),
            return_exceptions=True,  # all must have ended before any of it can be undone
        )
        for failure in done:
            if failure is not None:
                shim.close()
                raise failure
        if handler.shim or handler.sandbox:
            await in_thread(self._sandboxes.prepare, pod, handler, hostname(pod.config))
        if handler.shim:
            await shim
        if pod.status.netns:
            pod.stage = "setting up its network"
            crashpoint("run.planned")
            pod.status = replace(pod.status, network=await self._networks.attach(pod))
            crashpoint("run.network")
        await self._sandboxes.begin(pod, handler)

    @trace.step("make cgroup")
    async def _make_cgroup(self, pod: Pod) -> None:
        await self._cgroups.create(pod.meta)
        crashpoint("run.cgroup")
        await self._limits.begin_pod(pod)

    @trace.step("make log directory")
    async def _make_log_directory(self, path: str) -> None:
        if path:
            await self._paths.make_directory(path, "config.log_directory")

    @trace.step("start shim")
    async def _start_shim(self, pod: Pod, handler: Handler, pid_namespace: bool) -> None:
        shim = await self._shims.start(pod.meta.id, handler, pid_namespace, init_cgroup(pod.meta), owner=pod.owner)
        crashpoint("run.shim")
        options = pod.config.linux.security_context.namespace_options
        netns = "" if options.network == pb.NODE else str(self._layout.namespaces(pod.meta.id) / "net")
        network = await self._networks.plan(pod) if netns else ""
        # Whoever undoes this must know, written or not.
        pod.status = replace(pod.status, shim=shim, netns=netns, network=network)
        await self._world.update_pod(pod, lambda status: replace(status, shim=shim, netns=netns, network=network))

    def _make_namespaces(self, pod: Pod, kinds: list[str]) -> None:
        """Pin what the pod does not take from the host, unless that was done; write the files that go with it."""
        directory = self._layout.namespaces(pod.meta.id)
        files.make_private(directory)
        if kinds and pod.users is None:
            namespace.pin(kinds, directory, hostname=hostname(pod.config))
            crashpoint("run.namespaces")
        if "ipc" in kinds:
            shm = self._layout.shm(pod.meta.id)
            files.mkdir(shm, 0o1777)
            crashpoint("run.shm")
            options = f"mode=1777,size={SHM_BYTES}"
            if pod.owner is not None:
                options += f",uid={pod.owner[0]},gid={pod.owner[1]}"
            mount.mount("shm", shm, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC, options)
        set_sysctls(pod.config, [directory / kind for kind in kinds])
        write_pod_files(self._layout.pod(pod.meta.id), pod.config)
        if pod.owner is not None:
            for name in POD_FILES:
                os.chown(self._layout.pod(pod.meta.id) / name, *pod.owner)
        crashpoint("run.files")

    async def _metadata(self, config: pb.PodSandboxConfig, handler: Handler) -> PodMetadata:
        pod_id = new_id()
        parent = self._cgroups.parent(config.linux.cgroup_parent, pod_id)
        others = [pod.meta for pod in self._world.pods.values() if not pod.status.stopped_at]
        return PodMetadata(
            id=pod_id,
            name=config.metadata.name,
            namespace=config.metadata.namespace,
            uid=config.metadata.uid,
            attempt=config.metadata.attempt,
            handler=handler.name,
            config=config.SerializeToString(),
            cgroup_parent=parent,
            owns_cgroup=await self._cgroups.owned(parent, others),
            created_at=self._world.clock.now(),
        )


def _own_kinds(options: pb.NamespaceOption) -> list[str]:
    """The namespaces that the pod does not take from the host, but for that of processes, which needs one."""
    kinds = ["net", "uts"] if options.network != pb.NODE else []
    return [*kinds, "ipc"] if options.ipc != pb.NODE else kinds


def set_sysctls(config: pb.PodSandboxConfig, namespaces: list[Path]) -> None:
    """Raises InvalidArgument for one that this kernel does not know, or whose value it does not take."""
    wanted = sysctls.files(config)
    if not wanted:
        return
    try:
        namespace.set_sysctls({name: value for name, (value, _) in wanted.items()}, namespaces)
    except OSError as exc:
        if exc.filename not in wanted:
            raise
        value, key = wanted[exc.filename]
        raise InvalidArgument(f"config.linux.sysctls: cannot set {key!r} to {value!r}: {exc.strerror}") from exc


def write_pod_files(directory: Path, config: pb.PodSandboxConfig) -> None:
    """hostname, hosts and resolv.conf, as resolv.conf(5) and hosts(5) have them; the host's own where none is asked."""
    name = hostname(config)
    on_host = config.linux.security_context.namespace_options.network == pb.NODE
    hosts = _host_file("/etc/hosts") if on_host else f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\t{name}\n"
    _write_readable(directory / "hostname", f"{name}\n")
    _write_readable(directory / "hosts", hosts)
    _write_readable(directory / "resolv.conf", resolv_conf(config.dns_config) or _host_file("/etc/resolv.conf"))


def resolv_conf(dns: pb.DNSConfig) -> str:
    """The text of resolv.conf(5) for a DNSConfig; "" when it says nothing."""
    lines = []
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines)


def _host_file(path: str) -> str:
    try:
        return files.read_bounded(Path(path), 1024 * 1024).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _write_readable(path: Path, text: str) -> None:
    """Readable by the container's user, whoever that is; the directory above is private."""
    files.write_atomic(path, text.encode(), mode=0o644, sync=False)
