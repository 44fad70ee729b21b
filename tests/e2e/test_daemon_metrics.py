"""What a scrape of a real daemon says while things fail, hang, die and are taken up again; docs/METRICS.md has it all.

The network's plugin is one that does what it is told; nothing is attached to anything.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from image import build_busybox_image
from kit import disk, metrics
from kit.cni import Network
from kit.node import IMAGE, Node, until
from kit.ports import free_port
from kit.registry import push, registry
from kit.streams import Stream, exec_url
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from holdfast.model.spec import new_id
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub
from holdfast.runtime import keeper

OURS = re.compile("holdfast_(?!agent_)")
GIVEN_UP = 5  # seconds after which a plugin is: until then it is to be seen, by a machine that stands still for some


@dataclass
class Measured:
    """A node and where it is scraped."""

    node: Node
    address: str

    def scrape(self) -> dict[str, Metric]:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return {one.name: one for one in text_string_to_metric_families(answer.read().decode())}

    def value(self, name: str, **labels: str) -> float:
        """Of one sample; 0 for one that is not there (yet)."""
        samples = [sample for family in self.scrape().values() for sample in family.samples]
        return next((one.value for one in samples if one.name == name and one.labels == labels), 0.0)

    def grows(self, name: str, by: float = 1, **labels: str) -> "contextlib.AbstractContextManager[None]":
        """What is done within moves a counter by just so much."""

        @contextlib.contextmanager
        def watch() -> Iterator[None]:
            before = self.value(name, **labels)
            yield
            until(lambda: self.value(name, **labels) >= before + by, f"{name} {labels} to move")
            assert self.value(name, **labels) == before + by

        return watch()

    def does(self, **verbs: str) -> None:
        """What the network's plugin does from now on, see kit.cni."""
        (self.node.base / "cni" / "does.json").write_text(json.dumps(verbs))

    def attached_pod(self) -> str:
        return self.node.run_pod(self.node.pod_config(network=pb.POD))


def _address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def images() -> Iterator[str]:
    with registry() as host:
        yield host


@pytest.fixture(scope="module")
def shared(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    push(
        images,
        IMAGE.partition(":")[0],
        "latest",
        build_busybox_image(tmp_path_factory.mktemp("image"), IMAGE, User="0"),
    )
    address = _address()
    nobody = "127.0.0.1:9"  # discard; traces are not what is looked at here
    net = Network(metrics_address=address, cni_timeout=GIVEN_UP, tracing_endpoint=nobody)
    try:
        net.configure("10-test.conflist", [{"type": "odd"}])
        net.node.start()
        net.node.busybox()
        yield Measured(net.node, address)
    finally:
        net.close()


@pytest.fixture
def life(shared: Measured) -> Iterator[Measured]:
    yield shared
    shared.does()
    for pod in shared.node.pods():
        shared.node.remove_pod(pod.id)


def failing(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    code: grpc.StatusCode = failed.value.code()
    return code


def test_calls_are_counted_by_method_and_code_and_timed(life: Measured) -> None:
    with (
        life.grows("holdfast_operations_total", operation="RunPodSandbox", code="OK"),
        life.grows("holdfast_operation_duration_seconds_count", 2, operation="RunPodSandbox"),
        life.grows("holdfast_operations_total", operation="RunPodSandbox", code="INVALID_ARGUMENT"),
        life.grows("holdfast_sessions_total", kind="exec_sync", result="ok"),
        life.grows("holdfast_shim_calls_total", method="Create", result="ok"),
    ):
        pod = life.node.run_pod()
        nameless = life.node.pod_config()
        nameless.metadata.name = ""
        assert failing(lambda: life.node.run_pod(nameless)) is grpc.StatusCode.INVALID_ARGUMENT
        life.node.exec(life.node.run(pod, "sleep 1000"), ["true"])
    assert life.value("holdfast_pods", state="READY") == 1
    assert life.value("holdfast_containers", state="RUNNING") == 1
    assert life.value("holdfast_shims", state="connected") == 1
    until(lambda: life.value("holdfast_workers", kind="shim") == 1, "the end of those before it to be told")
    assert life.value("holdfast_operations_under_way", operation="RunPodSandbox") == 0


def test_a_plugin_that_hangs_is_seen_while_it_does_and_afterwards(life: Measured) -> None:
    life.does(ADD="hang")
    with (
        life.grows("holdfast_cni_operations_total", plugin="odd", command="ADD", result="deadline_exceeded"),
        life.grows("holdfast_cni_operations_total", plugin="odd", command="DEL", result="ok"),
        life.grows("holdfast_operations_total", operation="RunPodSandbox", code="DEADLINE_EXCEEDED"),
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        failed = threads.submit(failing, life.attached_pod)
        until(lambda: life.value("holdfast_cni_operations_under_way", plugin="odd", command="ADD") == 1, "the plugin")
        assert life.value("holdfast_operations_under_way", operation="RunPodSandbox") == 1
        assert failed.result() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert life.value("holdfast_cni_operations_under_way", plugin="odd", command="ADD") == 0


def test_what_goes_on_without_its_client_is_counted_as_what_comes_of_it(life: Measured) -> None:
    life.does(ADD="hang")
    request = pb.RunPodSandboxRequest(config=life.node.pod_config(network=pb.POD))
    with (
        life.grows("holdfast_operations_abandoned_total", operation="RunPodSandbox"),
        life.grows("holdfast_operations_total", operation="RunPodSandbox", code="DEADLINE_EXCEEDED"),
    ):
        client = RuntimeServiceStub(life.node.channel).RunPodSandbox.future(request)
        until(lambda: life.value("holdfast_cni_operations_under_way", plugin="odd", command="ADD") == 1, "the plugin")
        assert client.cancel()
        assert life.value("holdfast_operations_under_way", operation="RunPodSandbox") == 1


def test_pulls(life: Measured, images: str) -> None:
    def pull(name: str) -> None:
        life.node.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=f"{images}/{name}")))

    with life.grows("holdfast_pulls_total", result="ok"), life.grows("holdfast_pull_duration_seconds_count"):
        pull(IMAGE)
    assert life.value("holdfast_pull_bytes_total") > 0
    assert life.value("holdfast_image_bytes") > 0
    with life.grows("holdfast_pulls_total", result="not_found"):
        assert failing(lambda: pull("test/nobody:latest")) is grpc.StatusCode.NOT_FOUND
    assert life.value("holdfast_pulls_under_way") == 0


def test_deaths_of_shim_and_keeper(life: Measured) -> None:
    pod = life.node.run_pod()
    container = life.node.run(pod, "sleep 1000")
    with (
        life.grows("holdfast_worker_ends_total", kind="shim", result="killed"),
        life.grows("holdfast_shim_adoptions_total", result="ok"),
        life.grows("holdfast_events_total", kind="adopted"),
    ):
        shim = next(one for one in keeper.workers(life.node.state) if one.kind == "shim")
        os.kill(shim.pid, signal.SIGKILL)
    assert life.node.works(container)
    assert life.value("holdfast_workers", kind="shim") == 1
    with life.grows("holdfast_keeper_replaced_total"):
        found = keeper._ask(life.node.state / keeper.SOCKET, "hello")
        assert found is not None
        os.kill(found["pid"], signal.SIGKILL)
    assert life.node.works(container)


def test_a_recovery_is_told_while_it_goes_on_and_afterwards(life: Measured) -> None:
    """One of two shims stands still: its container is not settled, the scrape is answered, the other one is served."""
    pods = [life.node.run_pod() for _ in range(2)]
    well, sick = (life.node.run(pod, "sleep 1000") for pod in pods)
    shim = next(one for one in keeper.workers(life.node.state) if one.id == pods[1])
    life.node.end(signal.SIGKILL)
    os.kill(shim.pid, signal.SIGSTOP)
    try:
        life.node.start()
        until(lambda: life.node.works(well), "the one that is well")
        assert life.value("holdfast_recovery_unsettled") == 1
        assert life.value("holdfast_recovery_complete") == 0
        assert life.value("holdfast_recovery_seconds", phase="complete") == 0
        assert life.value("holdfast_recovery_seconds", phase="served") > 0
    finally:
        os.kill(shim.pid, signal.SIGCONT)
    until(lambda: life.value("holdfast_recovery_complete") == 1, "the recovery to be over")
    until(lambda: life.value("holdfast_recovery_unsettled") == 0, "all to be settled")
    assert life.node.works(sick)
    assert life.value("holdfast_recovery_objects", kind="pod", before="READY", after="READY") == 2
    assert life.value("holdfast_recovery_objects", kind="container", before="RUNNING", after="RUNNING") == 2


def test_what_the_doctor_finds_and_removes(life: Measured) -> None:
    planted = life.node.state / "pods" / new_id()
    planted.mkdir()
    life.node.cli("doctor", check=False)
    assert life.value("holdfast_findings", kind="pod directory", verdict="orphan") == 1
    with life.grows("holdfast_orphans_total", kind="pod directory", result="removed"):
        life.node.cli("doctor", "--fix", check=False)
    life.node.cli("doctor", check=False)
    assert life.value("holdfast_findings", kind="pod directory", verdict="orphan") == 0


def test_a_streaming_session_is_under_way_also_under_the_next_daemon(life: Measured) -> None:
    container = life.node.run(life.node.run_pod(), "sleep 1000")
    with life.grows("holdfast_sessions_total", kind="exec", result="ok"):
        stream = Stream(exec_url(life.node, container, ["/bin/cat"]))
    with stream:
        assert life.value("holdfast_sessions_under_way", kind="exec") == 1
        assert life.value("holdfast_workers", kind="streamer") == 1
        life.node.restart()
        until(lambda: life.value("holdfast_sessions_under_way", kind="exec") == 1, "it to be taken over")
    until(lambda: life.value("holdfast_sessions_under_way", kind="exec") == 0, "its end")
    assert life.value("holdfast_sessions_total", kind="exec", result="ok") == 0, "of this daemon's"


def test_who_follows_events(life: Measured) -> None:
    stream = RuntimeServiceStub(life.node.channel).GetContainerEvents(pb.GetEventsRequest())
    until(lambda: life.value("holdfast_event_followers") == 1, "the follower")
    stream.cancel()
    until(lambda: life.value("holdfast_event_followers") == 0, "it to be gone")


def test_the_store_and_its_reserve_are_told_as_they_were_seen_last(life: Measured) -> None:
    until(lambda: life.value("holdfast_store_size_bytes") > 0, "the first look")
    assert life.value("holdfast_store_reserve_bytes", part="ballast") == 8 << 20
    assert life.value("holdfast_store_reserve_missing_bytes") == 0
    assert life.value("holdfast_store_reserve_in_use") == 0
    with life.grows("holdfast_store_sync_duration_seconds_count", 0):
        assert life.value("holdfast_store_sync_duration_seconds_sum") > 0
    assert life.value("holdfast_storage_healthy", use="root", path=str(life.node.root), reason="") == 1


def test_a_full_disk_is_told_and_what_is_refused_because_of_it(tmp_path: Path) -> None:
    address = _address()
    with disk.small("ext4", tmp_path, 100 << 20) as root:
        node = Node(metrics_address=address, min_free_bytes=1 << 20)
        node.root = root
        life = Measured(node, address)
        where = {"use": "root", "path": str(root)}
        try:
            node.start()
            node.busybox()
            pod = node.run_pod()
            container = node.run(pod, "sleep 1000")
            disk.fill(root)
            until(lambda: health(life, where) == {"StorageFull": 0}, "the disk to be seen")
            assert life.value("holdfast_storage_free_bytes", **where) == 0
            with life.grows("holdfast_operations_total", operation="CreateContainer", code="RESOURCE_EXHAUSTED"):
                refused = node.container_config("sleep 1", "another")
                assert failing(lambda: node.create(pod, refused)) is grpc.StatusCode.RESOURCE_EXHAUSTED
            written = life.value("holdfast_store_changes_total", result="ok")
            node.stop_container(container)
            assert life.value("holdfast_store_changes_total", result="ok") > written, "from the reserve"
            assert life.value("holdfast_unwritten_objects") == 0
            disk.free(root)
            until(lambda: health(life, where) == {"": 1}, "it to be well again")
        finally:
            disk.free(root)
            node.purge()


def health(life: Measured, where: dict[str, str]) -> dict[str, float]:
    """What is told of a filesystem, by the reason; Status has the daemon look sooner than it would."""
    life.node.call("Status", pb.StatusRequest())
    samples = life.scrape()["holdfast_storage_healthy"].samples
    return {one.labels["reason"]: one.value for one in samples if where.items() <= one.labels.items()}


def test_the_page_has_every_metric_and_no_other(life: Measured) -> None:
    pod = life.attached_pod()
    life.node.exec(life.node.run(pod, "sleep 1000"), ["true"])
    until(lambda: life.value("holdfast_store_size_bytes") > 0, "the first look")
    found = {name: one for name, one in life.scrape().items() if name.startswith("holdfast_")}
    metrics.check(found, OURS)
