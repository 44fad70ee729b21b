"""What was measured, in the words of Prometheus, over http."""

import socket

import httpx
import pytest
from kit.ports import free_port
from prometheus_client.parser import text_string_to_metric_families

from holdfast.metrics import serve
from holdfast.model.errors import Unavailable
from holdfast.model.tally import Counter, Gauge, Histogram, Measure


def scraped(measures: list[Measure]) -> dict[str, float]:
    """Samples by name and labels, each as "name{label=value}"."""
    address = f"127.0.0.1:{free_port()}"
    stop = serve(address, measures)
    try:
        text = httpx.get(f"http://{address}/metrics", trust_env=False).text
    finally:
        stop()
    return {
        f"{one.name}{{{','.join(f'{key}={value}' for key, value in one.labels.items())}}}": one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_each_kind() -> None:
    counter = Counter("t_things_total", "Things.", ("kind",))
    counter.add("a", by=2)
    histogram = Histogram("t_work_seconds", "Work.", bounds=(0.5, 1.0))
    for seconds in (0.2, 0.7, 0.7, 9.0):
        histogram.observe(seconds)
    found = scraped([counter, histogram, Gauge("t_level", "Level.", lambda: [(("x",), 7)], ("who",))])
    assert found["t_things_total{kind=a}"] == 2
    assert found["t_level{who=x}"] == 7
    assert [found[f"t_work_seconds_bucket{{le={bound}}}"] for bound in ("0.5", "1.0", "+Inf")] == [1, 3, 4]
    assert found["t_work_seconds_count{}"] == 4
    assert found["t_work_seconds_sum{}"] == pytest.approx(10.6)
    assert found["process_open_fds{}"] > 0


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=address):
            serve(address, [])
