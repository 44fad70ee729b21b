"""What plugins are told of a pod."""

import asyncio
from typing import Any

import pytest

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.network.arguments import BURST, arguments, environment
from holdfast.network.network import Attachment, LoopbackOnly, NetworkResult, PodNetwork, Port

EVERYTHING = frozenset(
    {"portMappings", "bandwidth", "dns", "ipRanges", "ips", "mac", "aliases", "cgroupPath"}
    | {"io.kubernetes.cri.pod-annotations"}
)


def pod(**fields: Any) -> PodNetwork:
    return PodNetwork("f" * 64, "web", "default", "u-1", "/c", **fields)


def test_only_what_is_asked_for_and_said() -> None:
    assert arguments(pod(), EVERYTHING, ()) == {}
    said = pod(servers=("10.0.0.1",), searches=("a",), cgroup_parent="/kubepods/x")
    assert arguments(said, EVERYTHING, ()) == {
        "dns": {"servers": ["10.0.0.1"], "searches": ["a"]},
        "cgroupPath": "/kubepods/x",
    }
    assert arguments(said, frozenset({"mac"}), ("10.0.0.0/8",)) == {}


def test_ports() -> None:
    one = pod(ports=(Port("tcp", 80, 8080), Port("udp", 53, 53, "127.0.0.1"), Port("tcp", 81, 0)))
    found = arguments(one, frozenset({"portMappings"}), ())["portMappings"]
    assert found == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]
    with pytest.raises(FailedPrecondition, match=r"^config\.port_mappings\[0\]\.host_port: no plugin"):
        arguments(one, frozenset(), ())
    assert arguments(pod(ports=(Port("tcp", 81, 0),)), frozenset(), ()) == {}


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10M", 10**7), ("1.5k", 1500), ("1Ki", 1024), ("0.5Mi", 1 << 19), ("1P", 10**15), ("1000", 1000)],
)
def test_rates(text: str, rate: int) -> None:
    one = pod(annotations={"kubernetes.io/egress-bandwidth": text})
    assert arguments(one, EVERYTHING, ())["bandwidth"] == {"egressRate": rate, "egressBurst": BURST}


@pytest.mark.parametrize("text", ["", "fast", "-1M", "999", "2P", "1e3", "1" * 19, "1.M"])
def test_rates_that_are_none(text: str) -> None:
    key = "kubernetes.io/ingress-bandwidth"
    with pytest.raises(InvalidArgument, match=rf"^config\.annotations\[{key}\]: "):
        arguments(pod(annotations={key: text}), EVERYTHING, ())


def test_ranges() -> None:
    assert arguments(pod(), frozenset({"ipRanges"}), ("10.0.0.0/8", "fd00::/64")) == {
        "ipRanges": [[{"subnet": "10.0.0.0/8"}], [{"subnet": "fd00::/64"}]]
    }
    own = pod(annotations={"network.holdfast.io/ip-ranges": '[[{"subnet": "10.1.0.0/16"}]]'})
    assert arguments(own, EVERYTHING, ("10.0.0.0/8",))["ipRanges"] == [[{"subnet": "10.1.0.0/16"}]]
    for bad in ("{}", "x", "[1]"):
        with pytest.raises(InvalidArgument, match="ip-ranges"):
            arguments(pod(annotations={"network.holdfast.io/ip-ranges": bad}), EVERYTHING, ())


def test_the_environment_has_no_separators_in_its_values() -> None:
    text = environment(PodNetwork("id", "a;b=c", "ns", "u", "/c"))
    assert text == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a_b_c;K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=u"
    )


def test_a_result_is_read_as_it_was_written() -> None:
    attachment = Attachment("eth0", {"name": "net", "cniVersion": "1.0.0"}, {"dns": {}}, {"ips": []})
    result = NetworkResult(("10.0.0.2",), (attachment,))
    assert NetworkResult.from_json(result.to_json()) == result
    assert NetworkResult.from_json('{"ips": ["1.2.3.4"]}') == NetworkResult(("1.2.3.4",)), "an earlier release's"
    for bad in ("", "[]", "{}", '{"ips": [], "attachments": [1]}'):
        with pytest.raises(ValueError):
            NetworkResult.from_json(bad)


def test_a_port_of_the_host_needs_a_network() -> None:
    with pytest.raises(FailedPrecondition, match="cni_conf_dir"):
        asyncio.run(LoopbackOnly().plan(pod(ports=(Port("tcp", 80, 8080),))))
    assert asyncio.run(LoopbackOnly().plan(pod(ports=(Port("tcp", 80, 0),)))) == NetworkResult()
