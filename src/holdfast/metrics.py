"""Metrics for Prometheus over http: what the daemon knows anyway, nothing is measured for them."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.world import World
from holdfast.model.errors import Unavailable


class Metrics(Collector):
    """Filesystems in use, and what is known and not written yet. Asked in a thread of the server's."""

    def __init__(self, storage: Storage, world: World) -> None:
        self._storage = storage
        self._world = world

    def collect(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "holdfast_storage_healthy",
            "1 while a filesystem in use is healthy, else 0 with the reason.",
            labels=("use", "path", "reason"),
        )
        room = GaugeMetricFamily("holdfast_storage_free_bytes", "Free bytes of it.", labels=("use", "path"))
        inodes = GaugeMetricFamily("holdfast_storage_free_inodes", "Free inodes of it.", labels=("use", "path"))
        for disk in self._storage.found:
            healthy.add_metric((disk.use, disk.path, disk.reason), 0 if disk.reason else 1)
            room.add_metric((disk.use, disk.path), disk.free_bytes)
            inodes.add_metric((disk.use, disk.path), disk.free_inodes)
        yield from (healthy, room, inodes)
        yield CounterMetricFamily(
            "holdfast_container_oom_kills",
            "Processes of containers that were killed for want of memory, since the daemon's start.",
            value=self._world.oom_kills,
        )
        yield GaugeMetricFamily(
            "holdfast_unwritten_objects",
            "Pods and containers of which more is known than could be written.",
            value=self._world.unwritten,
        )


def serve(address: str, metrics: Metrics) -> Callable[[], None]:
    """Serve at "host:port". Returns how to stop. Raises Unavailable."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as exc:
        raise Unavailable(f"cannot serve metrics at {address}: {exc.strerror or exc}") from exc

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
