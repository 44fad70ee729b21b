"""What a scrape of a real agent says while pods run, crash and go; docs/METRICS.md has it all."""

import re
import signal
import urllib.request
from collections.abc import Iterator

import pytest
from kit import metrics
from kit.agent import IMAGE, Agent, application, get, running_agent
from kit.node import node
from kit.ports import free_port
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

OURS = re.compile("holdfast_agent_")
CRASH = f"""
{{apiVersion: v1, kind: Pod, metadata: {{name: crash}},
  spec: {{containers: [{{name: c, image: '{IMAGE}', command: [sh, -c, exit 1]}}]}}}}
"""


@pytest.fixture
def there() -> Iterator[Agent]:
    with node() as one, running_agent(one) as agent:
        yield agent


class Scraped:
    def __init__(self, there: Agent) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        there.flags = ["--metrics-address", self.address]
        there.restart(signal.SIGTERM)

    def families(self) -> dict[str, Metric]:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            found = {one.name: one for one in text_string_to_metric_families(answer.read().decode())}
        return {name: one for name, one in found.items() if name.startswith("holdfast_")}

    def value(self, name: str, **labels: str) -> float:
        """Of one sample; 0 while there is none, or nobody answers yet."""
        try:
            samples = [sample for family in self.families().values() for sample in family.samples]
        except OSError:
            return 0.0
        return next((one.value for one in samples if one.name == name and one.labels == labels), 0.0)


def test_what_is_told_and_that_the_docs_have_it(there: Agent) -> None:
    scraped = Scraped(there)
    port = free_port()
    there.write("web.yaml", application(port))
    there.write("crash.yaml", CRASH)
    there.write("broken.yaml", "kind: [")
    there.until(lambda: get(port) == b"hello\n", "the application to answer")
    there.until(lambda: scraped.value("holdfast_agent_restarts_total") >= 1, "a restart")
    there.until(lambda: scraped.value("holdfast_agent_containers_waiting", reason="CrashLoopBackOff") == 1, "the pause")
    there.until(lambda: scraped.value("holdfast_agent_backoffs") == 1, "the pause to be counted")
    there.until(lambda: scraped.value("holdfast_agent_pods", phase="Running") == 2, "both pods to be told")
    assert scraped.value("holdfast_agent_manifests_unread") == 1
    assert scraped.value("holdfast_agent_syncs_total", result="ok") > 4
    assert scraped.value("holdfast_agent_sync_duration_seconds_count") > 4
    assert scraped.value("holdfast_agent_volume_operations_total", operation="set_up", result="ok") == 2
    there.node.kill()
    there.until(lambda: scraped.value("holdfast_agent_syncs_total", result="unavailable") > 0, "no answer to be told")
    there.node.start()
    for name in ("broken", "crash", "web"):
        (there.manifests / f"{name}.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
    there.until(lambda: scraped.value("holdfast_agent_pods", phase="Running") == 0, "no pod to be told")
    assert scraped.value("holdfast_agent_volume_operations_total", operation="tear_down", result="ok") == 2
    assert scraped.value("holdfast_agent_volumes_kept") == 0
    metrics.check(scraped.families(), OURS)
