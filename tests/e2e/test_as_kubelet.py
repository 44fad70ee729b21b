"""What a kubelet asks of a runtime, in its order and with its words, on a network of real plugins."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kit.boot import reboot
from kit.cni import Network, network
from kit.kubelet import TERMINATION, Kubelet, Member, Spec
from kit.node import IMAGE, node, until
from kit.registry import push, registry

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
CRASH = f"mkdir /shared/once || exec sleep 1000; cat /shared/first /shared/second; echo because > {TERMINATION}; exit 7"
POD = Spec(
    "web",
    [
        Member(
            "count", COUNT, pre_stop=("sh", "-c", "echo bye > /shared/bye"), post_start=("touch", "/shared/started")
        ),
        Member("crash", CRASH),
    ],
    inits=[Member("first", "echo one > /shared/first"), Member("second", "cat /shared/first > /shared/second")],
    host_port=8080,
)


@pytest.fixture
def net(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Network]:
    """Without a configuration until the kubelet tells the pods' CIDR."""
    template = tmp_path / "template"
    with network(default_runtime=getattr(request, "param", "crun"), cni_conf_template=str(template)) as one:
        (made,) = one.directory.iterdir()
        raw = json.loads(made.read_text())
        ranges = "{{.PodCIDRRanges}}"
        raw["plugins"][0]["ipam"]["ranges"] = ranges
        template.write_text(json.dumps(raw).replace(f'"{ranges}"', ranges))
        made.unlink()
        yield one


def synced(kubelet: Kubelet, spec: Spec) -> None:
    until(lambda: kubelet.sync(spec), f"pod {spec.name} to be as it should")


def latest(kubelet: Kubelet, spec: Spec, name: str) -> pb.ContainerStatus:
    return kubelet.status(spec).of(name)[0]


def started(net: Network) -> Kubelet:
    kubelet = Kubelet(net.node)
    kubelet.connect()
    until(lambda: "no network configuration" in kubelet.update()["NetworkReady"][1], "it to be missed")
    assert not kubelet.update()["NetworkReady"][0]
    kubelet.set_pod_cidr("10.88.0.0/24,fd00:88::/64")
    until(lambda: kubelet.update()["NetworkReady"][0], "the network to be ready")
    assert kubelet.update()["RuntimeReady"] == (True, "")
    return kubelet


def ended(kubelet: Kubelet, spec: Spec) -> None:
    """The pod is deleted: stopped, then all of it collected."""
    kubelet.kill(spec)
    kubelet.collect(spec, gone=True)
    assert not kubelet.status(spec).sandboxes
    assert set(kubelet.relist().values()) <= {-1}
    kubelet.close()


@pytest.mark.parametrize("net", ["crun", "runc"], indirect=True)
def test_a_pods_life(net: Network) -> None:
    kubelet, life = started(net), net.node
    until(lambda: kubelet.sync(POD) and len(kubelet.status(POD).of("crash")) == 2, "the crash, and another attempt")
    now = kubelet.status(POD)
    again, crashed = now.of("crash")
    assert (again.metadata.attempt, again.state) == (1, pb.CONTAINER_RUNNING)
    assert (crashed.metadata.attempt, crashed.exit_code, crashed.reason) == (0, 7, "Error")
    assert kubelet.words(POD, "crash").read_text() == "because\n"
    assert [(one.exit_code, one.reason) for name in ("first", "second") for one in now.of(name)] == [
        (0, "Completed")
    ] * 2
    assert now.sandbox is not None
    assert now.sandbox.network.ip.startswith("10.88.0.")
    assert now.sandbox.network.additional_ips[0].ip.startswith("fd00:88:")
    assert len(kubelet.relist()) == 1 + 5
    assert not kubelet.relist(), "nothing has changed since"

    counting = latest(kubelet, POD, "count")
    assert counting.image.user_specified_image == IMAGE
    assert kubelet.probe(counting.id, ["test", "-e", "/shared/started"]) == 0
    assert kubelet.probe(counting.id, ["sh", "-c", "exit 4"]) == 4
    inside = life.exec(counting.id, ["sh", "-c", "cat /etc/resolv.conf /etc/hosts /etc/hostname; env"]).stdout.decode()
    for wanted in ("nameserver 10.96.0.10", "options ndots:5", "# web", "KUBERNETES_SERVICE_PORT=443"):
        assert wanted in inside
    assert any("8080" in rule for rule in net.rules())

    assert {name: sorted(of) for name, of in kubelet.summary().items()} == {"web": ["count", "crash"]}
    assert {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} <= kubelet.metrics()
    place, old = kubelet.rotate(POD, "count")
    until(lambda: place.stat().st_size, "the new log")
    numbers = [int(line.split()[3]) for file in (old, place) for line in file.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "no line is lost between two files"

    kubelet.collect(POD)
    assert [one.metadata.attempt for one in kubelet.status(POD).of("crash")] == [1]
    assert kubelet.status(POD).of("first"), "of each name the last one is kept"
    before = kubelet.status(POD)
    kubelet.relist()
    net.kill()
    net.start()
    kubelet.connect()
    assert not kubelet.relist(), "a daemon that was killed has changed nothing"
    assert kubelet.status(POD) == before
    assert kubelet.sync(POD)

    ended(kubelet, POD)
    assert not net.left()


def test_events_tell_what_a_relist_would(net: Network) -> None:
    """Evented PLEG: each event has what PodSandboxStatus and ContainerStatus would say."""
    kubelet = started(net)
    events = RuntimeServiceStub(net.node.channel).GetContainerEvents(pb.GetEventsRequest(), timeout=120)
    spec = Spec("told", [Member("ends", "exit 5")])
    until(lambda: kubelet.sync(spec) or kubelet.status(spec).of("ends"), "the container to be there")
    seen = []
    for event in events:
        kinds = {one.id: one for one in event.containers_statuses}
        seen.append((event.container_event_type, bool(kinds.get(event.container_id))))
        if event.container_event_type == pb.CONTAINER_STOPPED_EVENT and event.container_id in kinds:
            assert kinds[event.container_id].exit_code == 5
            assert event.pod_sandbox_status.metadata.uid == spec.uid
            break
    events.cancel()
    created, began, stopped = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT, pb.CONTAINER_STOPPED_EVENT
    assert seen == [(created, False), (began, False), (created, True), (began, True), (stopped, True)]
    ended(kubelet, spec)


def test_after_a_reboot_the_pod_is_made_anew(net: Network) -> None:
    kubelet = started(net)
    spec = Spec("back", [Member("main", "sleep 1000")], inits=[Member("first", "true")])
    synced(kubelet, spec)
    old = kubelet.status(spec)
    reboot(net.node)
    for table in ("nat", "filter"):
        net.run("iptables", "-t", table, "-F")
        net.run("ip6tables", "-t", table, "-F")
    net.start()
    kubelet.connect()
    until(lambda: kubelet.status(spec).sandbox is None, "the sandbox to be over")
    until(lambda: latest(kubelet, spec, "main").state == pb.CONTAINER_EXITED, "its container to be over")
    assert latest(kubelet, spec, "main").exit_code == 255
    synced(kubelet, spec)
    new = kubelet.status(spec)
    assert [one.metadata.attempt for one in new.sandboxes] == [1, 0]
    assert [one.metadata.attempt for one in new.of("first")] == [1, 0]
    assert old.sandboxes[0].id == new.sandboxes[1].id
    kubelet.collect(spec)
    left = kubelet.status(spec)
    assert [one.metadata.attempt for one in left.sandboxes] == [1]
    assert len(net.addresses()) == 2, "what the first one had is given back"
    ended(kubelet, spec)


def test_an_image_is_pulled_when_it_is_not_there() -> None:
    with node() as life, registry() as host:
        push(host, "kubelet/busybox", "one", life.base / "busybox.tar")
        kubelet = Kubelet(life)
        kubelet.connect()
        spec = Spec("pulled", [Member("main", "sleep 1000")], image=f"{host}/kubelet/busybox:one")
        first = kubelet.ensure_image(spec)
        synced(kubelet, spec)
        assert kubelet.ensure_image(spec) == first
        assert latest(kubelet, spec, "main").image_id == first
        ended(kubelet, spec)
