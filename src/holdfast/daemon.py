"""The composition root: build everything, serve, stop in reverse. Nothing else constructs these objects.

The order at start matters: the store, the keeper's connection, the rows, then the socket; only then is anything asked
of a shim, so no shim can keep the API from answering.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from holdfast import __version__, doors, logs
from holdfast import config as configuration
from holdfast.config import Config
from holdfast.cri.boundary import Boundary
from holdfast.cri.image_service import ImageService
from holdfast.cri.node_service import NodeService
from holdfast.cri.runtime_service import RuntimeService
from holdfast.images.content import Content
from holdfast.images.service import Images
from holdfast.lifecycle import facts, keeper_watch, tools
from holdfast.lifecycle.adopt import Adopter
from holdfast.lifecycle.archives import Archives
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.checkpoints import RUNC, Checkpoints
from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.confinement import Confinement
from holdfast.lifecycle.container_checkpoints import ContainerCheckpoints
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.devices import Devices
from holdfast.lifecycle.events import Events
from holdfast.lifecycle.execute import Executor
from holdfast.lifecycle.foreign import Foreign
from holdfast.lifecycle.freezing import Freezer
from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.guard import Guard
from holdfast.lifecycle.gvisor import GvisorVolumes
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.limits import Limits
from holdfast.lifecycle.live import Live
from holdfast.lifecycle.measures import Known
from holdfast.lifecycle.measures import of as measures_of
from holdfast.lifecycle.monitor import Monitor
from holdfast.lifecycle.networks import Networks
from holdfast.lifecycle.node import Node
from holdfast.lifecycle.oom import Ooms
from holdfast.lifecycle.pod_checkpoints import PodCheckpoints
from holdfast.lifecycle.pod_restores import PodRestores
from holdfast.lifecycle.pods import Pods
from holdfast.lifecycle.rebuild import rebuild
from holdfast.lifecycle.recover import Recovery
from holdfast.lifecycle.restores import Restores
from holdfast.lifecycle.sandbox import Sandboxes
from holdfast.lifecycle.sandbox_checkpoints import SandboxCheckpoints
from holdfast.lifecycle.sessions import Sessions
from holdfast.lifecycle.stats import Stats
from holdfast.lifecycle.stop import Stopper
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.sweep import Sweeper
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.lifecycle.userns import Users
from holdfast.lifecycle.volumes import Volumes
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, process, systemd
from holdfast.model import trace
from holdfast.model.cgroups import SYSTEMD
from holdfast.model.clock import Clock
from holdfast.model.errors import FailedPrecondition
from holdfast.model.tally import Measure
from holdfast.network.cni import Cni
from holdfast.network.network import LoopbackOnly, Network
from holdfast.network.plugin import Plugins
from holdfast.runtime import handlers as runtime_handlers
from holdfast.runtime.features import RuntimeFeatures
from holdfast.runtime.keepers import Keepers
from holdfast.runtime.loggers import Loggers
from holdfast.runtime.pathwork import PathWork
from holdfast.runtime.shims import Shims
from holdfast.runtime.streamers import Streamers
from holdfast.runtime.unpack import Unpacker
from holdfast.snapshots.overlay import Snapshots
from holdfast.store.copies import Copies
from holdfast.store.db import Store
from holdfast.store.space import Minimum

log = logging.getLogger(__name__)


class Daemon:
    """One run of holdfastd. `files` is the limit on open files that whatever is not ours is to have."""

    def __init__(self, config: Config, load: Callable[[], Config], files: int) -> None:
        self._files = files
        self._config = config
        self._load = load
        self._stop = asyncio.Event()
        self._background = Background()
        self._shims: Shims | None = None
        self._measures: list[Measure] = []

    async def run(self) -> None:
        """Serve until told to stop."""
        config = self._config
        async with AsyncExitStack() as stack:
            self._trace(stack)
            witnesses = (config.root / "snapshots", config.root / "content" / "sha256", config.state / "pods")
            store = await in_thread(lambda: Store.open(config.root / "holdfast.db", config.reserve_bytes, witnesses))
            stack.push_async_callback(in_thread, store.close)
            keeper = await Keepers.connect(config.state)
            stack.push_async_callback(keeper.aclose)
            layout = Layout(config.root, config.state)
            self._shims = shims = Shims(layout.pods, keeper, layout.events)
            stack.callback(shims.close)
            stack.push_async_callback(self._background.stop)
            boundary = Boundary()
            recovery, images = await self._build(stack, store, keeper, shims, layout, boundary)
            self._handle_signals()
            await recovery.load()
            boundary.gate.set()
            recovery.served_after = process.age()
            systemd.notify("READY=1")
            log.info("serving %s", config.socket)
            self._background.start("recovery", recovery.run())
            self._background.start("deletions", images.finish_deletions())
            self._background.start("mend images", images.mend())
            watch = keeper_watch.watch(keeper, config.state, self._files, recovery.living_pods, self._background)
            self._background.start("keeper watch", watch)
            await self._stop.wait()
            log.info("stopping; containers run on")

    def _trace(self, stack: AsyncExitStack) -> None:
        """Raises FailedPrecondition where what it takes is not installed."""
        config = self._config
        if not config.tracing_endpoint:
            return
        try:
            from holdfast.tracing import Tracing  # nobody else is to pay for it, or to have its packages
        except ImportError as exc:
            raise FailedPrecondition(f"tracing_endpoint: it needs packages (holdfast[tracing]): {exc}") from exc
        node = socket.gethostname()
        tracing = Tracing(config.tracing_endpoint, config.tracing_sampling_ratio, __version__, node)
        trace.install(tracing)
        self._measures += tracing.measures
        stack.push_async_callback(in_thread, tracing.stop)

    async def _build(
        self,
        stack: AsyncExitStack,
        store: Store,
        keeper: Keepers,
        shims: Shims,
        layout: Layout,
        boundary: Boundary,
    ) -> tuple[Recovery, Images]:
        """Construct the layers from the bottom up and start to listen."""
        config, background = self._config, self._background
        mode = cgroup.mode()
        handlers = await in_thread(
            runtime_handlers.find,
            config.runtimes,
            config.default_runtime,
            config.state,
            mode,
            config.runtime_timeout,
            systemd=config.cgroup_driver == SYSTEMD,
            first=RUNC if config.checkpoints else "",
        )
        host = await in_thread(facts.detect, self._files)
        cgroups = Cgroups(config.cgroup_driver, config.cgroup_root)
        clock = Clock()
        events = Events(clock)
        copies = Copies(config.root / "copies")
        rebuilt = await rebuild(store, copies, config.root / "snapshots")
        world = World(store, copies, clock, events)
        networks = Networks(world, self._network(cgroups), store, layout, background, handlers)
        await networks.load()
        snapshots = Snapshots(store, config.root / "snapshots")
        rebuilt += await snapshots.load()
        insecure = frozenset(config.insecure_registries)
        minimum = Minimum(config.min_free_bytes, config.min_free_inodes)
        storage = Storage(store, config.root, config.state, world.log_directories, minimum, events)
        unpacker = Unpacker(keeper)
        images = Images(
            store, copies, Content(config.root), snapshots, unpacker.image_layer, config.root, insecure, minimum
        )
        images.in_doubt = lambda: bool(store.salvaged)
        rebuilt += await images.load()
        adopter = Adopter(world, shims, handlers, background, config.on_shim_death == "adopt")
        foreign = Foreign(shims.foreign, Loggers(layout.pods, keeper), handlers, background, layout)
        confinement = Confinement(config.seccomp_root, config.unset_seccomp_profile, config.apparmor_profile)
        in_gvisor = GvisorVolumes([*map(Path, config.volume_roots)], layout)
        of_sandboxes = SandboxCheckpoints(handlers, shims, layout, in_gvisor)
        sandboxes = Sandboxes(world, shims, background, layout, host, confinement, in_gvisor, of_sandboxes)
        devices = Devices([*map(Path, config.cdi_spec_dirs)], owned=config.device_ownership_from_security_context)
        users = Users(keeper, snapshots, layout)
        paths = PathWork(keeper, config.path_timeout)
        features = RuntimeFeatures()
        volumes = Volumes(images, snapshots, paths, handlers, features, layout, host)
        streamers = Streamers(layout.pods, keeper)
        cleanup = Cleanup(
            world,
            shims,
            handlers,
            snapshots,
            networks,
            layout,
            cgroups,
            adopter,
            foreign,
            sandboxes,
            volumes,
            streamers,
        )
        bundles = Bundles(snapshots, images, layout, host, confinement, handlers, devices, volumes, in_gvisor)
        limits = Limits(world, shims, bundles, cgroups, background, host)
        stopper = Stopper(world, cleanup, background)
        ooms = Ooms(world, background, layout)
        stack.callback(ooms.close)
        monitor = Monitor(world, shims, handlers, cleanup, background, layout, (foreign.watch, ooms.watch))
        criu = Checkpoints(handlers, shims, snapshots, config.criu_path)
        archives, freezer = Archives(world, storage, background, layout), Freezer(shims)
        checkpoints = ContainerCheckpoints(world, criu, freezer, snapshots, images, bundles, handlers, archives)
        restores = Restores(
            images, snapshots, unpacker, bundles, criu, of_sandboxes, background, layout, minimum, config.checkpoints
        )
        containers = Containers(
            world,
            shims,
            images,
            snapshots,
            bundles,
            monitor,
            stopper,
            cleanup,
            background,
            layout,
            adopter,
            paths,
            storage,
            foreign,
            volumes,
            users,
            limits,
            restores,
            checkpoints,
        )
        pod_checkpoints = PodCheckpoints(world, archives, criu, checkpoints, of_sandboxes, freezer, layout)
        gate = Gate(lambda: handlers.all, config.known_escapes == "refuse", frozenset(config.fixed_escapes))
        pods = Pods(
            world,
            shims,
            handlers,
            networks,
            containers,
            cleanup,
            background,
            layout,
            cgroups,
            adopter,
            paths,
            storage,
            sandboxes,
            gate,
            users,
            limits,
            Guard(world),
            pod_checkpoints,
        )
        adopter.stop_pod = pods.finish_stop
        executor = Executor(containers, bundles, shims, config.exec_output_limit, background)
        sessions = Sessions(
            world,
            containers,
            executor,
            bundles,
            shims,
            streamers,
            foreign,
            background,
            handlers,
            config.streaming_idle_timeout,
        )
        live = Live(store, world, images, snapshots, keeper, sessions, restores)
        sweeper = Sweeper(layout, cgroups, live.rows, live.workers, shims, live.remove_rows)
        recovery = Recovery(
            store,
            world,
            keeper,
            monitor,
            stopper,
            containers,
            pods,
            executor,
            sweeper,
            background,
            adopter,
            limits,
            sessions,
            checkpoints,
            pod_checkpoints,
            rebuilt,
        )
        shown = self._facts(handlers.default, facts.report(host))
        node = Node(handlers, features, users, networks.ready, networks.configure, shown, storage, gate)
        runtime = RuntimeService(
            world,
            events,
            pods,
            containers,
            executor,
            bundles,
            images,
            node,
            Stats(world, snapshots, background, handlers),
            sessions,
        )
        extra = NodeService(
            images,
            sweeper,
            events,
            recovery.last_report,
            lambda: configuration.render(config),
            gate,
            lambda: tools.examine(handlers.all.values(), config.criu_path),
            pods,
            PodRestores(
                world,
                pods,
                containers,
                criu,
                images,
                unpacker,
                storage,
                background,
                layout,
                handlers,
                freezer,
                config.log_root,
                config.checkpoints,
            ),
        )
        background.start("catch up", world.catch_up())
        background.start("disks", storage.watch())
        background.start("known escapes", gate.warn())
        recovery.afterwards = networks.look_after
        if config.metrics_address:
            from holdfast.metrics import serve  # nobody else is to pay for it

            self._measures += [
                *measures_of(Known(world, events, recovery, storage, store, shims, sweeper)),
                *boundary.measures,
                *keeper.measures,
                *images.measures,
                *shims.calls.measures,
                *adopter.adoptions.measures,
                *networks.measures,
                *executor.sessions.measures,
            ]
            stack.push_async_callback(in_thread, serve(config.metrics_address, self._measures))
        if any(one.shim for one in handlers.all.values()):
            await doors.hear(stack, layout.events, monitor.hint, background)
        await doors.stream(stack, config, sessions, shown, background)
        await doors.listen(stack, config.socket, boundary, runtime, ImageService(images), extra)
        stack.callback(events.close)  # first of all, or streams would hold up the server's end
        return recovery, images

    def _network(self, cgroups: Cgroups) -> Network:
        config = self._config
        if not config.cni_conf_dir:
            return LoopbackOnly()
        plugins = Plugins(tuple(map(Path, config.cni_bin_dirs)), config.cni_timeout)
        template = Path(config.cni_conf_template) if config.cni_conf_template else None
        return Cni(Path(config.cni_conf_dir), plugins, cgroups.root, config.cni_max_networks, template)

    def _facts(self, runtime: str, host: dict[str, object]) -> dict[str, object]:
        """What Status(verbose) tells of this daemon."""
        config = self._config
        return {
            "root": str(config.root),
            "state": str(config.state),
            "cgroup_driver": config.cgroup_driver,
            "cgroup_root": config.cgroup_root,
            "log_root": str(config.log_root),
            **host,
            "default_runtime": runtime,
            "pid": os.getpid(),
        }

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._dump)

    def _reload(self) -> None:
        """Take over what can be changed while running; say what cannot."""
        systemd.notify("RELOADING=1")
        try:
            new = self._load()
        except Exception as exc:
            log.error("cannot reload the configuration, keeping the old one: %s", exc)
        else:
            for key in configuration.changed_unreloadable(self._config, new):
                log.warning("setting %s has changed; it takes effect at the next start", key)
            logs.configure(new.log_level, new.log_format)
            log.info("configuration reloaded")
        systemd.notify("READY=1")

    def _dump(self) -> None:
        """Tasks, descriptors and shims, for whoever sent SIGUSR1."""
        for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
            frames = task.get_stack(limit=1)
            where = f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "?"
            log.info("dump: task %s at %s", task.get_name(), where)
        for entry in sorted(os.listdir("/proc/self/fd"), key=int):
            log.info("dump: fd %s -> %s", entry, _link(f"/proc/self/fd/{entry}"))
        for pod_id in self._shims.connected() if self._shims else []:
            log.info("dump: connected to the shim of pod %s", pod_id, extra={"pod": pod_id})
        log.info("dump: %d threads, python %s", len(os.listdir("/proc/self/task")), sys.version.split()[0])


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "closed"
