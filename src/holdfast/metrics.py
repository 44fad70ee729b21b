"""Metrics for Prometheus over http: what was counted, and what is known. See docs/METRICS.md for all of them.

A scrape is answered by a thread of its own from copies of plain data. It waits for no lock, no disk and no shim: it is
answered while the daemon recovers, and while whatever it works with is full or hangs.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from holdfast.model.errors import Unavailable
from holdfast.model.tally import Counter, Histogram, Measure


class Metrics(Collector):
    """Gives what was measured in the words of Prometheus. Asked in a thread of the server's."""

    def __init__(self, measures: Iterable[Measure]) -> None:
        self._measures = list(measures)

    def collect(self) -> Iterator[Metric]:
        return map(_family, self._measures)


def _family(measure: Measure) -> Metric:
    if isinstance(measure, Histogram):
        return _histogram(measure)
    kind = CounterMetricFamily if isinstance(measure, Counter) else GaugeMetricFamily
    family = kind(measure.name, measure.help, labels=measure.labels)
    for labels, value in measure.read():
        family.add_metric(labels, value)
    return family


def _histogram(measure: Histogram) -> Metric:
    family = HistogramMetricFamily(measure.name, measure.help, labels=measure.labels)
    bounds = [*map(floatToGoString, measure.bounds), "+Inf"]
    for labels, counts, total in measure.read():
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return family


def serve(address: str, measures: Iterable[Measure]) -> Callable[[], None]:
    """Serve at "host:port". Returns how to stop. Raises Unavailable."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(Metrics(measures))
    for of_process in (ProcessCollector, PlatformCollector, GCCollector):
        of_process(registry=registry)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as exc:
        raise Unavailable(f"cannot serve metrics at {address}: {exc.strerror or exc}") from exc

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
