"""Traces from a real daemon, taken by a real OTLP receiver: what belongs to what; a collector holds up nobody."""

import os
import secrets
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from image import build_busybox_image
from kit.cni import Network
from kit.collector import Collector, Seen, collector
from kit.node import BIN, Node, node, until
from kit.ports import free_port
from kit.registry import push, registry

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from holdfast.tracing import QUEUE

ENDED = 10.0  # seconds in which a daemon ends whose collector does not answer; on a quiet machine it takes one


@pytest.fixture(scope="module")
def taker() -> Iterator[Collector]:
    with collector() as one:
        yield one


@pytest.fixture(scope="module")
def life(taker: Collector) -> Iterator[Node]:
    """With a network plugin that attaches nothing."""
    net = Network(tracing_endpoint=taker.address)
    try:
        net.configure("10-test.conflist", [{"type": "odd"}])
        net.node.start()
        net.node.busybox()
        yield net.node
    finally:
        net.close()


class Client:
    """Calls as a kubelet makes them that traces: each is a part of one trace, of a span of the client's."""

    def __init__(self, life: Node, taker: Collector, *, sampled: bool = True) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self._header = (("traceparent", f"00-{self.trace}-{self.span}-0{int(sampled)}"),)
        self._life = life
        self._taker = taker

    def call(self, method: str, request: Any) -> Any:
        service = ImageServiceStub if method == "PullImage" else RuntimeServiceStub
        return getattr(service(self._life.channel), method)(request, timeout=30, metadata=self._header)

    def spans(self, last: str) -> list[Seen]:
        """All of the trace once the call `last` has come."""
        until(lambda: any(one.name.endswith(f"/{last}") for one in self._taker.of(self.trace)), f"the span of {last}")
        return self._taker.of(self.trace)


def below(spans: list[Seen], *names: str) -> Seen:
    """The one at the end of a path of names from a call down; each is a child of the one before it."""
    found = [one for one in spans if one.name.endswith(f"/{names[0]}")]
    for name in names[1:]:
        parents = {one.id for one in found}
        found = [one for one in spans if one.name == name and one.parent in parents]
    assert found, f"no {' > '.join(names)} among {sorted(one.name for one in spans)}"
    return found[0]


def test_a_container_from_the_pull_to_an_exec(life: Node, taker: Collector, tmp_path: Path) -> None:
    client = Client(life, taker)
    with registry() as host:
        push(host, "test/other", "1", build_busybox_image(tmp_path, "test/other:1", User="0"))
        client.call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=f"{host}/test/other:1")))
        config = life.pod_config(network=pb.POD)
        pod = client.call("RunPodSandbox", pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        inside = life.container_config("sleep 1000", image=f"{host}/test/other:1", network=pb.POD)
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=inside)
        container = client.call("CreateContainer", request).container_id
        client.call("StartContainer", pb.StartContainerRequest(container_id=container))
        executed = client.call(
            "ExecSync", pb.ExecSyncRequest(container_id=container, cmd=["echo", "hello"], timeout=20)
        )
        assert executed.stdout == b"hello\n"
    spans = client.spans("ExecSync")
    calls = [one for one in spans if one.parent.hex() == client.span]
    assert [one.name for one in sorted(calls, key=lambda one: one.span.start_time_unix_nano)] == [
        "runtime.v1.ImageService/PullImage",
        "runtime.v1.RuntimeService/RunPodSandbox",
        "runtime.v1.RuntimeService/CreateContainer",
        "runtime.v1.RuntimeService/StartContainer",
        "runtime.v1.RuntimeService/ExecSync",
    ]
    for one in calls:
        assert one.span.kind == one.span.SPAN_KIND_SERVER and not one.failed
        assert one.attributes["rpc.grpc.status_code"] == 0
        assert one.resource["service.name"] == "holdfastd"
    assert below(spans, "PullImage", "pull").attributes["holdfast.image"] == f"{host}/test/other:1"
    below(spans, "PullImage", "pull", "resolve")
    assert below(spans, "PullImage", "pull", "fetch blob").attributes["holdfast.bytes"] > 0
    assert below(spans, "RunPodSandbox", "start shim", "keeper fork").attributes["holdfast.kind"] == "shim"
    below(spans, "RunPodSandbox", "make namespaces")
    below(spans, "RunPodSandbox", "make cgroup")
    plugin = below(spans, "RunPodSandbox", "attach network", "network plugin").attributes
    assert (plugin["holdfast.plugin"], plugin["holdfast.command"]) == ("odd", "ADD")
    below(spans, "CreateContainer", "prepare snapshot")
    below(spans, "CreateContainer", "write bundle")
    below(spans, "CreateContainer", "store write")
    assert below(spans, "StartContainer", "shim Create").attributes["holdfast.container"] == container
    below(spans, "StartContainer", "shim Start")
    for name in ("shim Exec", "shim Start", "shim Wait", "shim Delete"):
        assert below(spans, "ExecSync", name).attributes["holdfast.exec"]
    by_id = {one.id: one for one in spans}
    for one in spans:
        if (around := by_id.get(one.parent)) is not None:
            assert around.span.start_time_unix_nano <= one.span.start_time_unix_nano
        else:
            assert one in calls
    life.remove_pod(pod)


def test_what_fails_says_why_and_what_goes_on_later_is_no_part_of_it(life: Node, taker: Collector) -> None:
    client = Client(life, taker)
    with pytest.raises(grpc.RpcError):
        client.call("StartContainer", pb.StartContainerRequest(container_id="nobody"))
    (failed,) = client.spans("StartContainer")
    assert failed.failed and "nobody" in failed.span.status.message
    assert failed.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert failed.attributes["holdfast.container"] == "nobody"
    pod = life.run_pod()
    container = life.create(pod, life.container_config("sleep 0.2"))
    started = Client(life, taker)
    started.call("StartContainer", pb.StartContainerRequest(container_id=container))
    life.exited(container)
    life.remove_pod(pod)
    ended = Client(life, taker)
    ended.call("Version", pb.VersionRequest())
    ended.spans("Version")
    assert not [one for one in started.spans("StartContainer") if one.name == "shim Delete"]


def test_a_client_that_does_not_trace_this_call_decides_that(life: Node, taker: Collector) -> None:
    unwanted, wanted = Client(life, taker, sampled=False), Client(life, taker)
    for client in (unwanted, wanted):
        client.call("Version", pb.VersionRequest())
    wanted.spans("Version")
    assert taker.of(unwanted.trace) == []


def test_only_a_share_of_what_nobody_has_decided_is_traced() -> None:
    with collector() as taker, node(tracing_endpoint=taker.address, tracing_sampling_ratio=0.0) as one:
        one.call("Version", pb.VersionRequest())
        asked = Client(one, taker)
        asked.call("Version", pb.VersionRequest())
        assert len(asked.spans("Version")) == 1
        assert len(taker.spans) == 1


@pytest.mark.parametrize("how", ["down", "silent"])
def test_a_collector_that_does_not_take_them_holds_up_neither_calls_nor_the_end(how: str) -> None:
    """More spans than the queue has places for; those that are too many are counted."""
    metrics = f"127.0.0.1:{free_port()}"
    with collector() as taker:
        taker.silent.set()
        endpoint = taker.address if how == "silent" else f"127.0.0.1:{free_port()}"
        with node(tracing_endpoint=endpoint, metrics_address=metrics) as one:
            began = time.monotonic()
            for _ in range(QUEUE + 1100):
                one.call("Version", pb.VersionRequest())
            each = (time.monotonic() - began) / (QUEUE + 1100)
            assert each < 0.05, "a call is as long as ever"
            until(lambda: _spans(metrics, "dropped") > 0, "those that are too many to be counted")
            if how == "down":  # else one batch is on its way still when the daemon is told to end
                until(lambda: _spans(metrics, "failed") > 0, "a batch to be given up")
            began = time.monotonic()
            assert one.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < ENDED
            said = "traces cannot be sent" if how == "down" else "spans could not be sent"
            assert said in one.log()
            one.start()
        taker.go_on.set()


def _spans(address: str, result: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith(f'holdfast_trace_spans_total{{result="{result}"}}')]
    return float(found[0].split()[-1]) if found else 0.0


def test_without_the_packages_it_is_said_which_setting_wants_them(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('there is no opentelemetry here')")
    one = Node(tracing_endpoint="127.0.0.1:4317")
    command = [BIN / "holdfastd", "--root", one.root, "--state", one.state, "--config", one.config]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
        assert done.returncode == 1
        assert "tracing_endpoint: it needs packages (holdfast[tracing])" in done.stderr
    finally:
        one.config.write_text(one.config.read_text().replace('tracing_endpoint = "127.0.0.1:4317"\n', ""))
        one.purge()
