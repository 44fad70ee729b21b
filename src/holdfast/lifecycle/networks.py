"""Pods and their networks: what was planned is recorded before it is done, and undone by that record."""

import asyncio
import contextlib
import ipaddress
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Pod, network_cgroup
from holdfast.lifecycle.tasks import Background, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import address, files
from holdfast.linux.inject import crashpoint
from holdfast.model import cgroups, trace
from holdfast.model.errors import HoldfastError, InvalidArgument
from holdfast.network.network import Network, NetworkResult, PodNetwork, Port
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.store import pods as rows
from holdfast.store.db import Store

log = logging.getLogger(__name__)

READY_SECONDS: Final = 1.0
ADD_SECONDS: Final = 90.0  # for all plugins together; each has a deadline of its own
PART_LIMIT: Final = 4 * 1024 * 1024
CIDRS: Final = "pod_cidrs"  # meta: comma-separated, as UpdateRuntimeConfig has them
PROTOCOLS: Final = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}


class Networks:
    """Attaches pods to the node's network and detaches them."""

    def __init__(
        self,
        world: World,
        network: Network,
        store: Store,
        layout: Layout,
        background: Background,
        handlers: Handlers,
    ) -> None:
        self._handlers = handlers
        self._world = world
        self._network = network
        self.measures = network.measures
        self._store = store
        self._layout = layout
        self._background = background
        self._open = asyncio.Event()  # nobody is attached while plugins release what they are not told of
        self._open.set()
        self._said = (False, "NetworkPluginNotReady", "the network's plugins have not told their status yet")

    async def load(self) -> None:
        """What kubelets have said before."""
        said = await self._store.read(lambda tx: rows.get_meta(tx, CIDRS))
        self._network.pod_cidrs = tuple(filter(None, said.split(",")))

    async def ready(self) -> tuple[bool, str, str]:
        """(whether pods can be given a network, reason, message); what was known while a plugin is slow to tell."""
        await asyncio.wait([self._background.start("network status", self._ask())], timeout=READY_SECONDS)
        return self._said

    async def _ask(self) -> None:
        self._said = await self._network.ready()

    async def plan(self, pod: Pod) -> str:
        """What is to be recorded before the pod is attached. Raises FailedPrecondition, InvalidArgument."""
        return (await self._network.plan(pod_network(pod))).to_json()

    @trace.step("attach network")
    async def attach(self, pod: Pod) -> str:
        """Do what was planned, and return what is to be recorded. Raises Unavailable, DeadlineExceeded."""

        async def record(known: NetworkResult) -> None:
            """Not on disk, for with a reboot all of it is gone; but where the next daemon finds it."""
            crashpoint("run.attaching")
            pod.status = replace(pod.status, network=known.to_json())
            await in_thread(files.write_atomic, self._part(pod), pod.status.network.encode(), sync=False)

        await self._open.wait()
        plan = network_result(pod).without()
        added = self._network.add(pod_network(pod), Path(pod.status.netns), plan, record)
        return (await within(ADD_SECONDS, added, f"set up network of pod {pod.meta.id}")).to_json()

    async def detach(self, pod: Pod) -> None:
        """Idempotent. Raises Unavailable, DeadlineExceeded, OSError."""
        known = await in_thread(self._known, pod)
        if self._taken_over(pod):
            await in_thread(_put_back, Path(pod.status.netns), known)
        gone = self._network.delete(pod_network(pod), Path(pod.status.netns), known)
        await within(ADD_SECONDS, gone, f"delete network of pod {pod.meta.id}")

    def _taken_over(self, pod: Pod) -> bool:
        """Whether the addresses are no longer the interface's: gVisor takes them away and answers for them itself."""
        return self._handlers.get(pod.meta.handler).gvisor

    def _known(self, pod: Pod) -> NetworkResult:
        """What is recorded; of an ADD that was cut off, what it had said by then."""
        known = network_result(pod)
        if "run" in pod.intents and not any(one.result for one in known.attachments):
            with contextlib.suppress(OSError, ValueError):
                known = NetworkResult.from_json(files.read_bounded(self._part(pod), PART_LIMIT).decode())
        return known

    def _part(self, pod: Pod) -> Path:
        return self._layout.pod(pod.meta.id) / "network.json"

    async def look_after(self) -> None:
        """Once after a start: have released what no pod has, and see whether the others still have what they had."""
        self._open.clear()  # whoever is being attached already has his plan in the record, and is told of
        try:
            alive = [pod for pod in self._world.pods.values() if pod.status.netns and not pod.status.stopped_at]
            await self._network.collect(
                [(pod.meta.id, attachment) for pod in alive for attachment in network_result(pod).attachments]
            )
        finally:
            self._open.set()
        await asyncio.gather(*(self._check(pod) for pod in alive))

    async def _check(self, pod: Pod) -> None:
        async with pod.lock:  # no plugin does two things to a pod at once
            if pod.meta.id not in self._world.pods or not pod.status.ready or pod.intents:
                return
            if self._taken_over(pod):
                return
            try:
                await self._network.check(pod_network(pod), Path(pod.status.netns), network_result(pod))
            except (HoldfastError, OSError) as exc:
                pod.network_trouble = str(exc)
                log.warning("pod %s: its network is not as it was: %s", pod.meta.id, exc)

    async def configure(self, pod_cidr: str) -> None:
        """What UpdateRuntimeConfig says: one CIDR, or one of each family. Raises InvalidArgument, OSError."""
        cidrs = tuple(filter(None, (word.strip() for word in pod_cidr.split(","))))
        for cidr in cidrs:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as exc:
                raise InvalidArgument(f"runtime_config.network_config.pod_cidr: {exc}") from exc
        if not cidrs:
            return
        await self._store.write(lambda tx: rows.set_meta(tx, CIDRS, ",".join(cidrs)))
        self._network.pod_cidrs = cidrs
        await in_thread(self._network.write_template)


def _put_back(network: Path, known: NetworkResult) -> None:
    """Plugins look for them when they take away what they have made for them elsewhere."""
    for one in known.attachments:
        try:
            address.add(network, one.interface, map(ipaddress.ip_interface, one.addresses))
        except (OSError, ValueError) as exc:
            log.info("cannot put back the addresses of %s in %s: %s", one.interface, network, exc)


def pod_network(pod: Pod) -> PodNetwork:
    config, dns = pod.config, pod.config.dns_config
    return PodNetwork(
        id=pod.meta.id,
        name=pod.meta.name,
        namespace=pod.meta.namespace,
        uid=pod.meta.uid,
        cgroup=network_cgroup(pod.meta),
        ports=tuple(
            Port(PROTOCOLS[one.protocol], one.container_port, one.host_port, one.host_ip)
            for one in config.port_mappings
        ),
        annotations=dict(config.annotations),
        cgroup_parent=cgroups.parent_path(pod.meta.cgroup_parent),
        servers=tuple(dns.servers),
        searches=tuple(dns.searches),
        options=tuple(dns.options),
    )


def network_result(pod: Pod) -> NetworkResult:
    return NetworkResult.from_json(pod.status.network) if pod.status.network else NetworkResult()
