"""Pod networks by real CNI plugins, in a network namespace made for the test; and plugins that hang, fail or vanish."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.boot import reboot
from kit.cni import Network, network
from kit.node import until

from holdfast.linux import cgroup, mount, process
from holdfast.proto import runtime_v1_pb2 as pb

SERVE = "echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' > /r; while :; do nc -l -p 80 < /r; done"
HANGING = 10  # seconds after which a plugin is given up, in these tests: none that is well takes as long anywhere


@pytest.fixture(scope="module")
def shared() -> Iterator[Network]:
    with network(cni_timeout=HANGING) as one:
        yield one


@pytest.fixture
def net(shared: Network) -> Iterator[Network]:
    """The same network each time, as it was at first; a test leaves nothing in it."""
    shared.does()
    shared.forget()
    yield shared
    shared.does()
    for pod in shared.node.pods():
        shared.node.remove_pod(pod.id)
    for place in shared.directory.iterdir():
        place.unlink()
    shared.write("10-test.conflist")
    left = lambda: [*shared.left(), *shared.node.leftovers()]  # noqa: E731
    until(lambda: left() == [f"mount {shared.netns}"], "what could not be undone to be tried again")


def pod_config(net: Network, name: str = "", **more: Any) -> pb.PodSandboxConfig:
    return net.node.pod_config(name, network=pb.POD, **more)


def status(net: Network, pod: str) -> pb.PodSandboxStatus:
    return net.node.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status


def info(net: Network, pod: str) -> dict[str, Any]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    found: dict[str, Any] = json.loads(net.node.call("PodSandboxStatus", request).info["info"])
    return found


def ips(net: Network, pod: str) -> list[str]:
    found = status(net, pod).network
    return [found.ip, *(one.ip for one in found.additional_ips)]


def run(net: Network, pod: str, script: str, name: str = "main") -> str:
    """A container in the pod's network."""
    config = net.node.container_config(script, name, network=pb.POD)
    container = net.node.create(pod, config)
    net.node.start_container(container)
    return container


def refused(net: Network, config: pb.PodSandboxConfig) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failure:
        net.node.run_pod(config)
    return failure.value


def ready(net: Network) -> Any:
    """The condition. For as long as plugins are slow to tell it is what it was, of another configuration perhaps."""
    found = net.node.call("Status", pb.StatusRequest()).status.conditions
    return next(one for one in found if one.type == "NetworkReady")


def until_ready(net: Network) -> None:
    until(lambda: ready(net).status, "the network to be ready")


def until_unready(net: Network, words: str) -> None:
    """For a reason with these words."""
    until(lambda: not (now := ready(net)).status and words in now.message, f"it not to be ready: {words}")


def test_pods_reach_each_other_and_a_port_of_the_host_leads_to_one(net: Network) -> None:
    config = pod_config(net, "server")
    config.port_mappings.add(protocol=pb.TCP, container_port=80, host_port=8080)
    config.dns_config.CopyFrom(pb.DNSConfig(servers=["10.9.9.9"], searches=["cluster.local"], options=["ndots:5"]))
    server = net.node.run_pod(config)
    v4, v6 = ips(net, server)
    assert v4.startswith("10.88.0.")
    assert v6.startswith("fd00:88::")
    serving = run(net, server, SERVE)
    assert b"nameserver 10.9.9.9" in net.node.exec(serving, ["cat", "/etc/resolv.conf"]).stdout
    links = net.node.exec(serving, ["ip", "-o", "link"]).stdout
    assert b"lo: <LOOPBACK,UP" in links
    assert b"eth0" in links

    client = net.node.run_pod(pod_config(net, "client"))
    asking = run(net, client, "sleep 1000")
    for address in (f"http://{v4}/", f"http://[{v6}]/"):
        until(
            lambda address=address: net.node.exec(asking, ["wget", "-q", "-O", "-", address]).stdout == b"hello\n",
            f"an answer from {address}",
        )
    gateway = "10.88.0.1"
    until(
        lambda: net.run("busybox", "wget", "-q", "-O", "-", f"http://{gateway}:8080/", check=False), "the host's port"
    )
    assert any("8080" in rule for rule in net.rules())
    told = net.told("ADD")
    assert [one["env"]["CNI_IFNAME"] for one in told] == ["eth0", "eth0"]
    assert "K8S_POD_NAME=server" in told[0]["env"]["CNI_ARGS"]
    net.node.remove_pod(server)
    assert len(net.addresses()) == 2, "those of the client"
    assert not any("8080" in rule for rule in net.rules())


def test_a_pod_on_the_hosts_network_is_untouched(net: Network) -> None:
    pod = net.node.run_pod(net.node.pod_config(network=pb.NODE))
    assert not status(net, pod).network.ip
    assert not net.told()


def test_addresses_outlive_the_daemon_and_are_gone_with_the_pod(net: Network) -> None:
    pod = net.node.run_pod(pod_config(net))
    before = ips(net, pod)
    net.kill()
    net.start()
    assert ips(net, pod) == before
    net.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert ips(net, pod) == [""]
    assert not net.left()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("hang", f"cannot finish ADD of network test, plugin odd: no end after {HANGING} s"),
        ("fail", "cannot finish ADD of network test, plugin odd: not today: rain (code 11); it may be tried again"),
        (
            "garbage",
            "cannot understand ADD of network test, plugin odd: its answer is no JSON object: this is { no JSON",
        ),
        ("die", "cannot finish ADD of network test, plugin odd: it ended with 3: out of luck"),
    ],
)
def test_a_plugin_that_misbehaves_has_its_own_pod_only(net: Network, does: str, said: str) -> None:
    other = net.node.run_pod(pod_config(net, "other"))
    before = net.left()
    net.does(ADD=does)
    failure = refused(net, pod_config(net, "sick"))
    assert said in str(failure.details())
    expected = grpc.StatusCode.DEADLINE_EXCEEDED if does == "hang" else grpc.StatusCode.UNAVAILABLE
    assert failure.code() is expected
    assert net.left() == before, "what the plugins before it have done is undone"
    assert [pod.id for pod in net.node.pods()] == [other]
    net.does(DEL=does)
    with pytest.raises(grpc.RpcError) as failed:
        net.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=other))
    assert "DEL of network test, plugin odd" in str(failed.value.details())
    net.does()
    well = net.node.run_pod(pod_config(net, "well"))
    net.node.remove_pod(other)
    net.node.remove_pod(well)


def test_a_plugin_that_vanishes(net: Network) -> None:
    pod = net.node.run_pod(pod_config(net))
    (net.bin / "odd").rename(net.bin / "away")
    try:
        until_unready(net, "there is no such program")
        assert refused(net, pod_config(net, "next")).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError):
            net.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert [one.id for one in net.node.pods()] == [pod], "it is not forgotten while it has an address"
    finally:
        (net.bin / "away").rename(net.bin / "odd")
    until_ready(net)
    net.node.remove_pod(pod)


def test_configurations_are_read_as_they_are_now_and_undone_as_they_were(net: Network) -> None:
    pod = net.node.run_pod(pod_config(net))
    place = net.directory / "10-test.conflist"
    place.unlink()
    until_unready(net, "no network configuration")
    assert ready(net).reason == "NetworkPluginNotReady"
    assert refused(net, pod_config(net, "none")).code() is grpc.StatusCode.FAILED_PRECONDITION
    place.write_text('{"cniVersion": "1.0.0", "name": "test", "plugins": [{"typ": "bridge"}]}')
    until_unready(net, "10-test.conflist: plugins[0].type: None is not a plugin's name")
    assert "plugins[0].type" in str(refused(net, pod_config(net, "broken")).details())
    net.configure("05-other.conf", [{"type": "odd"}])
    until_ready(net)  # the first by name is another one
    net.forget()
    net.node.remove_pod(pod)
    assert not net.left(), "it was released as it was attached"
    (told,) = net.told("DEL")
    assert told["config"]["prevResult"]["ips"], "with what ADD had said"


def test_a_host_port_that_nobody_maps_is_refused(net: Network) -> None:
    net.configure("10-test.conflist", [{"type": "odd"}])
    config = pod_config(net)
    config.port_mappings.add(protocol=pb.TCP, container_port=80, host_port=8080)
    failure = refused(net, config)
    assert failure.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "config.port_mappings[0].host_port" in str(failure.details())
    assert not net.node.pods()


def test_what_plugins_are_told_of_a_pod(net: Network) -> None:
    asked = dict.fromkeys(("portMappings", "bandwidth", "dns", "ipRanges", "mac", "aliases", "cgroupPath"), True)
    net.configure("10-test.conflist", [{"type": "odd", "capabilities": asked}, {"type": "odd"}])
    config = pod_config(
        net,
        annotations={
            "kubernetes.io/ingress-bandwidth": "10M",
            "kubernetes.io/egress-bandwidth": "1.5k",
            "network.holdfast.io/mac": "02:00:00:00:00:01",
            "network.holdfast.io/aliases": "one, two",
        },
    )
    config.port_mappings.add(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1")
    config.port_mappings.add(protocol=pb.TCP, container_port=80)
    config.dns_config.servers.append("10.9.9.9")
    request = pb.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.88.0.0/24,fd00:88::/64"
    net.node.call("UpdateRuntimeConfig", request)
    net.node.run_pod(config)
    first, second = net.told("ADD")
    parent = first["config"]["runtimeConfig"].pop("cgroupPath")
    assert parent.startswith(net.node.cgroup)
    assert first["config"]["runtimeConfig"] == {
        "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 2**32 - 1,
            "egressRate": 1500,
            "egressBurst": 2**32 - 1,
        },
        "dns": {"servers": ["10.9.9.9"]},
        "ipRanges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
        "mac": "02:00:00:00:00:01",
        "aliases": ["one", "two"],
    }
    assert "capabilities" not in first["config"]
    assert "runtimeConfig" not in second["config"]
    request.runtime_config.network_config.pod_cidr = "10.88.0.0/99"
    with pytest.raises(grpc.RpcError) as failure:
        net.node.call("UpdateRuntimeConfig", request)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "pod_cidr" in str(failure.value.details())
    bad = pod_config(net, annotations={"kubernetes.io/ingress-bandwidth": "fast"})
    assert refused(net, bad).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_after_a_start_plugins_check_what_is_there_and_collect_what_is_not(net: Network) -> None:
    net.configure("10-test.conflist", [{"type": "odd"}], "1.1.0")
    pod, gone = net.node.run_pod(pod_config(net, "stays")), net.node.run_pod(pod_config(net, "goes"))
    net.node.remove_pod(gone)
    net.forget()
    net.does(CHECK="fail", STATUS="fail")
    net.kill()
    net.start()
    until(lambda: "not today" in info(net, pod)["networkTrouble"], "the check to be seen")
    (collected,) = net.told("GC")
    assert collected["config"]["cni.dev/valid-attachments"] == [{"containerID": pod, "ifname": "eth0"}]
    assert status(net, pod).state == pb.SANDBOX_READY, "it runs on"
    until_unready(net, "not today")


def test_nobody_is_attached_while_what_is_lost_is_released(net: Network) -> None:
    """A plugin that is not told of a new pod would release what that has just been given."""
    net.configure("10-test.conflist", [{"type": "odd"}], "1.1.0")
    old = net.node.run_pod(pod_config(net, "old"))
    net.forget()
    net.does(GC="hang")
    net.kill()
    net.start()
    until(lambda: net.told("GC"), "the plugin to be in GC")
    new = net.node.run_pod(pod_config(net, "new"))
    assert [one["verb"] for one in net.told() if one["verb"] in ("GC", "ADD")] == ["GC", "ADD"]
    assert not cgroup.exists(f"{net.node.cgroup}/cni-gc"), "it was given up before"
    assert {pod.id for pod in net.node.pods()} == {old, new}


def test_a_plugin_that_does_not_tell_its_status_holds_up_nobody(net: Network) -> None:
    net.configure("10-test.conflist", [{"type": "odd", "now": "one"}], "1.1.0")
    until(lambda: ready(net).status and net.told("STATUS"), "it to be asked")
    net.does(STATUS="hang")
    net.configure("10-test.conflist", [{"type": "odd", "now": "another"}], "1.1.0")
    assert ready(net).status, "as it was, until it is known to be otherwise"
    until_unready(net, f"no end after {HANGING} s")


def test_a_namespace_that_is_gone_is_released_all_the_same(net: Network) -> None:
    pod = net.node.run_pod(pod_config(net))
    assert len(net.addresses()) == 2
    net.kill()
    pinned = net.node.state / "pods" / pod / "ns" / "net"
    mount.unmount_tree(pinned)
    net.start()
    net.forget()
    net.node.remove_pod(pod)
    assert [one["env"]["CNI_NETNS"] for one in net.told("DEL")] == [""]
    assert not net.addresses()
    until(lambda: not net.links(), "the cables to go with their namespace")
    net.run("iptables", "-t", "nat", "-F")  # the bridge plugin knows its rules only from inside the namespace
    net.run("ip6tables", "-t", "nat", "-F")


def cut_off(net: Network, verb: str, config: pb.PodSandboxConfig) -> None:
    """SIGKILL to the daemon while a plugin is in the middle of it."""
    pod = "" if verb == "ADD" else net.node.run_pod(config)
    net.forget()
    net.does(**{verb: "hang"})
    call = (
        net.node.channel.unary_unary  # asked by somebody who does not wait for the answer
    )
    name = "RunPodSandbox" if verb == "ADD" else "StopPodSandbox"
    request: Any = pb.RunPodSandboxRequest(config=config) if verb == "ADD" else None
    request = request or pb.StopPodSandboxRequest(pod_sandbox_id=pod)
    asked = call(
        f"/runtime.v1.RuntimeService/{name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=bytes,
    ).future(request, timeout=30)
    until(lambda: net.told(verb), f"the plugin to be in {verb}")
    net.kill()
    assert isinstance(asked.exception(), grpc.RpcError)
    net.does()
    net.start()


def cycles(net: Network, number: int) -> None:
    for turn in range(number):
        config = pod_config(net, f"turn-{turn}")
        verb = ("ADD", "DEL")[turn % 2]
        cut_off(net, verb, config)
        again = net.node.run_pod(pod_config(net, f"again-{turn}"))
        assert len(ips(net, again)) == 2
        for pod in net.node.pods():
            net.node.remove_pod(pod.id)
        until(lambda: not net.addresses(), f"no address to be held, but there are {net.addresses()}")


def test_f13_no_address_leaks_whatever_is_cut_off(net: Network) -> None:
    """Six addresses; more turns than those."""
    cycles(net, 8)
    assert not net.left()


@pytest.mark.soak
def test_f13_thirty_turns(net: Network) -> None:
    cycles(net, 30)
    assert not net.left()


def test_what_an_add_that_was_cut_off_still_does_is_ended_before_it_is_undone(net: Network) -> None:
    """Else it would take an address after that was given back."""
    net.does(ADD="hang")
    config = pod_config(net)
    asked = net.node.channel.unary_unary(
        "/runtime.v1.RuntimeService/RunPodSandbox",
        request_serializer=pb.RunPodSandboxRequest.SerializeToString,
        response_deserializer=bytes,
    ).future(pb.RunPodSandboxRequest(config=config), timeout=30)
    (told,) = until(lambda: net.told("ADD"), "the plugin to be in ADD")
    owner = told["env"]["CNI_CONTAINERID"]
    (pid,) = cgroup.pids(f"{net.node.cgroup}/{owner}/{owner}-cni")
    started = process.start_time(pid)
    os.kill(net.node.process.pid, signal.SIGKILL) if net.node.process else None
    assert isinstance(asked.exception(), grpc.RpcError)
    net.kill()
    assert process.start_time(pid) == started, "it is not the daemon's death that ends it"
    net.start()
    until(lambda: net.told("DEL"), "it to be undone")
    assert process.start_time(pid) != started or process.state(pid) == "Z"
    until(lambda: len(net.node.leftovers()) == 1, "all of it to be undone")


def test_a_configuration_is_made_from_a_template(tmp_path: Path) -> None:
    template = tmp_path / "template"
    plugin = {"type": "odd", "capabilities": {"ipRanges": True}, "ipam": {"subnet": "{{.PodCIDR}}"}}
    template.write_text(json.dumps({"cniVersion": "1.0.0", "name": "made", "plugins": [plugin]}))
    with network(cni_conf_template=str(template)) as net:
        request = pb.UpdateRuntimeConfigRequest()
        request.runtime_config.network_config.pod_cidr = "10.77.0.0/24"
        net.node.call("UpdateRuntimeConfig", request)
        assert [place.name for place in net.directory.iterdir()] == ["10-test.conflist"], "there is one already"
        (net.directory / "10-test.conflist").unlink()
        until_unready(net, "no network configuration")
        net.node.call("UpdateRuntimeConfig", request)
        (made,) = net.directory.iterdir()
        assert json.loads(made.read_text())["plugins"][0]["ipam"]["subnet"] == "10.77.0.0/24"
        until_ready(net)
        request.runtime_config.network_config.pod_cidr = "10.78.0.0/24"
        net.node.call("UpdateRuntimeConfig", request)
        assert json.loads(made.read_text())["plugins"][0]["ipam"]["subnet"] == "10.78.0.0/24"
        net.kill()
        net.start()
        pod = net.node.run_pod(net.node.pod_config(network=pb.POD))
        assert net.told("ADD")[0]["config"]["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.78.0.0/24"}]]}
        net.node.remove_pod(pod)


def test_the_hosts_own_network_is_not_touched(net: Network) -> None:
    net.node.run_pod(pod_config(net))
    ours = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
    assert "hf0" not in ours


@pytest.mark.parametrize(("version", "name"), [("0.3.1", "a.conflist"), ("0.4.0", "a.conflist"), ("1.0.0", "a.conf")])
def test_debians_plugins_by_each_version_that_they_know(net: Network, version: str, name: str) -> None:
    """A .conf is a single plugin's: the bridge, without a list around it. The firewall knows no version below 0.4.0."""
    place = net.directory / "10-test.conflist"
    bridge, portmap, firewall, odd = json.loads(place.read_text())["plugins"]
    if name.endswith(".conf"):
        (net.directory / name).write_text(json.dumps({"cniVersion": version, "name": "test", **bridge}))
    else:
        net.configure(name, [bridge, portmap, *([firewall] if version > "0.3.1" else []), odd], version)
    place.unlink()
    until_ready(net)
    pod = net.node.run_pod(pod_config(net))
    before = ips(net, pod)
    assert [address.split("88")[0] for address in before] == ["10.", "fd00:"]
    net.kill()
    net.start()
    container = run(net, pod, "sleep 1000")
    shown = net.node.exec(container, ["ip", "addr", "show", "eth0"]).stdout.decode()
    assert all(address in shown for address in before)
    if version == "0.4.0":  # which has CHECK, and a list whose last one is asked when the others have found nothing
        until(lambda: net.told("CHECK"), "CHECK to be over")
    assert not info(net, pod)["networkTrouble"], "CHECK finds all as it was"
    net.node.remove_pod(pod)


def test_a_plugin_that_does_not_know_the_version_is_told_before_a_pod_fails(net: Network) -> None:
    net.write("10-test.conflist", "1.1.0")
    until_unready(net, "plugin bridge does not know version 1.1.0, but 0.1.0, ")
    net.write("10-test.conflist")
    until_ready(net)


def test_versions_are_asked_once_of_a_program_and_one_that_does_not_tell_is_believed(net: Network) -> None:
    plugin, asked = net.bin / "mute", net.bin / "asked"
    for knows, times in (("exit 1", 2), ("echo '{}'", 1), ("""echo '{"supportedVersions": ["1.0.0"]}'""", 1)):
        plugin.write_text(f"#!/bin/sh\necho $CNI_COMMAND >> {asked}\n{knows}\n")
        plugin.chmod(0o755)
        asked.unlink(missing_ok=True)
        for now in range(2):
            net.configure("10-test.conflist", [{"type": "mute", "now": f"{knows} {now}"}])
            until_ready(net)
            wanted = ["VERSION"] * min(times, now + 1)
            until(lambda wanted=wanted: asked.exists() and asked.read_text().split() == wanted, "it to be asked")
        assert asked.read_text().split() == ["VERSION"] * times
    plugin.unlink()


def test_what_a_reboot_has_taken_is_released_all_the_same(net: Network) -> None:
    """Addresses are files; the namespace, its cables and all rules are gone."""
    pod = net.node.run_pod(pod_config(net))
    assert len(net.addresses()) == 2
    reboot(net.node)
    net.run("ip", "link", "delete", "hf0")
    for command in ("iptables", "ip6tables"):
        for table in ("nat", "filter"):
            net.run(command, "-t", table, "-F")
            net.run(command, "-t", table, "-X")
    net.forget()
    net.start()
    until(lambda: status(net, pod).state == pb.SANDBOX_NOTREADY, "the pod to be over")
    net.node.remove_pod(pod)
    assert [one["env"]["CNI_NETNS"] for one in net.told("DEL")] == [""] * len(net.told("DEL"))
    assert net.told("DEL")
    assert not net.addresses()


def test_bandwidth_by_debians_plugin(net: Network) -> None:
    """As kubelet asks for it. Traffic to the pod is shaped on its cable, from the pod on a device made for it."""
    plugins = json.loads((net.directory / "10-test.conflist").read_text())["plugins"]
    net.configure("10-test.conflist", [*plugins[:1], {"type": "bandwidth", "capabilities": {"bandwidth": True}}])
    limits = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "5M"}
    pod = net.node.run_pod(pod_config(net, annotations=limits))
    found = json.loads(net.run("tc", "-j", "qdisc", "show"))
    rates = {one["dev"]: one["options"]["rate"] for one in found if one["kind"] == "tbf"}
    (cable,) = [name.split("@")[0] for name in net.links()]
    assert rates.pop(cable) == 10_000_000 // 8, "bytes a second"
    assert list(rates.values()) == [5_000_000 // 8]
    assert {one["kind"] for one in found if one["dev"] == cable} >= {"tbf", "ingress"}
    free = net.node.run_pod(pod_config(net))
    assert len([one for one in json.loads(net.run("tc", "-j", "qdisc", "show")) if one["kind"] == "tbf"]) == 2
    net.node.remove_pod(pod)
    net.node.remove_pod(free)
    until(lambda: "tbf" not in net.run("tc", "qdisc", "show"), "nothing to be left of it")
    assert "ifb" not in net.run("ip", "-o", "link", "show")
