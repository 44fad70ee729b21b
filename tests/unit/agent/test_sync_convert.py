"""From a pod to the CRI's messages."""

from dataclasses import replace

import pytest
from hypothesis import given
from kit.pods import APPLICATION, pods, simple

from holdfast.agent.pod.containers import Lifecycle
from holdfast.agent.pod.env import Missing
from holdfast.agent.pod.manifest import parse
from holdfast.agent.pod.scalars import Port, Seconds, Signal
from holdfast.agent.pod.security import AppArmorProfile, PodSecurityContext, SeccompProfile, SecurityContext
from holdfast.agent.pod.spec import DnsConfig, DnsOption, HostAlias, Pod
from holdfast.agent.sync import convert, names
from holdfast.agent.sync.convert import Node
from holdfast.proto import runtime_v1_pb2 as pb

NODE = Node("here", memory=8 << 30, dns=pb.DNSConfig(servers=["192.0.2.53"], searches=["lan"], options=["ndots:1"]))


def container(pod: Pod, number: int = 0, **more: str) -> pb.ContainerConfig:
    one = pod.spec.containers[number]
    return convert.container_config(pod, one, 3, image="sha256:1", variables=more, mounts=(), node=NODE)


def test_an_application_as_a_kubelet_would_word_it() -> None:
    own = APPLICATION.replace("  hostNetwork: true", "").replace("Port: 8080", "Port: 8080, hostPort: 18080")
    (pod,) = parse(own.encode(), "web.yaml").pods
    uid = pod.metadata.uid
    sandbox = convert.sandbox_config(pod, 2, NODE)
    assert (sandbox.metadata.name, sandbox.metadata.namespace, sandbox.metadata.attempt) == ("web", "default", 2)
    assert sandbox.log_directory == f"/var/log/pods/default_web_{uid}"
    named = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid}
    assert dict(sandbox.labels) == {"app": "web", **named}
    assert (sandbox.port_mappings[0].container_port, sandbox.port_mappings[0].host_port) == (8080, 18080)
    assert sandbox.linux.cgroup_parent == f"/holdfast-agent/burstable/pod{uid}"
    assert sandbox.dns_config == NODE.dns
    assert sandbox.hostname == "web"
    found = container(pod, A="1")
    assert dict(found.labels) == {**named, "io.kubernetes.container.name": "httpd"}
    assert found.annotations["io.kubernetes.container.restartCount"] == "3"
    assert found.annotations["io.kubernetes.container.hash"] == convert.digest_of(pod.spec.containers[0])
    assert found.log_path == "httpd/3.log"
    assert (found.image.image, found.image.user_specified_image) == ("sha256:1", "docker.io/library/busybox:1.36")
    resources = found.linux.resources
    assert (resources.cpu_shares, resources.memory_limit_in_bytes, resources.cpu_quota) == (51, 64 << 20, 0)
    assert 2 < resources.oom_score_adj < 1000
    assert found.envs[0] == pb.KeyValue(key="A", value="1")


@given(pods())
def test_whatever_a_pod_is_the_messages_hold_it(pod: Pod) -> None:
    sandbox = convert.sandbox_config(pod, 0, NODE)
    assert sandbox.labels["io.kubernetes.pod.uid"] == pod.metadata.uid
    assert bool(sandbox.hostname) is not pod.spec.host_network
    assert sandbox.linux.security_context.namespace_options == convert.namespaces(pod.spec)
    for number, one in enumerate(pod.spec.containers):
        found = container(pod, number)
        context = found.linux.security_context
        assert list(found.args) == list(one.args)
        assert context.privileged is one.security_context.privileged
        assert bool(context.masked_paths) is (not context.privileged and one.security_context.proc_mount == "Default")
        user = one.security_context.run_as_user
        user = pod.spec.security_context.run_as_user if user is None else user
        assert context.HasField("run_as_user") is (user is not None)
        assert user is None or context.run_as_user.value == user
        group = pod.spec.security_context.fs_group
        assert group is None or group in context.supplemental_groups
        assert context.namespace_options == convert.namespaces(pod.spec)
        assert found.linux.resources.cpu_shares >= 2


def test_variables_are_expanded_in_commands() -> None:
    pod = simple(container={"command": ("echo", "$(A)"), "args": ("$$(A)", "$(B)")})
    found = container(pod, A="1")
    assert (list(found.command), list(found.args)) == (["echo", "1"], ["$(A)", "$(B)"])


def test_profiles_the_containers_own_come_first() -> None:
    local = SeccompProfile("Localhost", "p.json")
    of_all = PodSecurityContext(seccomp_profile=local, app_armor_profile=AppArmorProfile("Localhost", "mine"))
    found = container(simple(security_context=of_all)).linux.security_context
    assert (found.seccomp.profile_type, found.seccomp.localhost_ref) == (2, "/var/lib/kubelet/seccomp/p.json")
    assert found.apparmor.localhost_ref == "mine"
    own = {"security_context": SecurityContext(seccomp_profile=SeccompProfile("Unconfined"))}
    found = container(simple(security_context=of_all, container=own)).linux.security_context
    assert found.seccomp.profile_type == pb.SecurityProfile.Unconfined
    assert container(simple()).linux.security_context.seccomp.profile_type == pb.SecurityProfile.RuntimeDefault


def test_names_are_resolved_as_the_machine_does_and_as_is_asked_for_beside() -> None:
    more = DnsConfig(("192.0.2.1", "192.0.2.53"), ("example.org",), (DnsOption("ndots", "5"), DnsOption("rotate")))
    found = convert.sandbox_config(simple(dns_config=more), 0, NODE).dns_config
    assert list(found.servers) == ["192.0.2.53", "192.0.2.1"]
    assert (list(found.searches), list(found.options)) == (["lan", "example.org"], ["ndots:5", "rotate"])
    alone = convert.sandbox_config(simple(dns_policy="None", dns_config=more), 0, NODE).dns_config
    assert (list(alone.servers), list(alone.searches)) == (["192.0.2.1", "192.0.2.53"], ["example.org"])


def test_the_names_of_a_pod() -> None:
    assert names.host_name(simple(hostname="a")) == "a"
    assert names.host_name(simple(hostname="a", hostname_override="b.example")) == "b.example"


@pytest.mark.parametrize(("name", "number"), [(None, 0), ("SIGUSR1", 29), ("SIGRTMIN+3", 38), ("SIGRTMAX-1", 64)])
def test_stop_signals(name: str | None, number: int) -> None:
    lifecycle = Lifecycle(stop_signal=None if name is None else Signal.from_yaml(name))
    assert container(simple(container={"lifecycle": lifecycle})).stop_signal == number


def test_resolv_conf() -> None:
    found = names.parse_resolv(
        "# a\nnameserver 192.0.2.1 # b\nsearch a b\n\ndomain c\noptions ndots:2 rotate\nsortlist x\n"
    )
    assert found == pb.DNSConfig(servers=["192.0.2.1"], searches=["c"], options=["ndots:2", "rotate"])


def test_hosts() -> None:
    aliases = (HostAlias("192.0.2.9", ("db", "db.lan")),)
    own = names.hosts(simple(host_aliases=aliases), ("10.0.0.2", "fd00::2"), "not this")
    assert "10.0.0.2\tp\nfd00::2\tp\n" in own
    assert own.endswith("192.0.2.9\tdb\tdb.lan\n")
    assert "not this" not in own
    of_host = names.hosts(simple(host_network=True), ("10.0.0.2",), "192.0.2.1 host\n")
    assert "192.0.2.1 host" in of_host
    assert "10.0.0.2" not in of_host


@pytest.mark.parametrize(
    ("user", "image", "said"),
    [
        (1000, pb.Image(), ""),
        (0, pb.Image(), "would run as root"),
        (None, pb.Image(uid=pb.Int64Value(value=5)), ""),
        (None, pb.Image(uid=pb.Int64Value(value=0)), "would run as root"),
        (None, pb.Image(username="www"), "'www' is a name"),
        (None, pb.Image(), "would run as root"),
        (7, pb.Image(username="www"), ""),
    ],
)
def test_who_is_not_to_be_root(user: int | None, image: pb.Image, said: str) -> None:
    context = SecurityContext(run_as_non_root=True, run_as_user=None if user is None else Seconds(user))
    pod = simple(container={"security_context": context})
    one = pod.spec.containers[0]
    if not said:
        convert.check_user(pod, one, image)
        return
    with pytest.raises(Missing, match=said):
        convert.check_user(pod, one, image)
    convert.check_user(pod, replace(one, security_context=SecurityContext()), image)


def test_ports_by_name() -> None:
    (pod,) = parse(APPLICATION.encode(), "web.yaml").pods
    (httpd,) = pod.spec.containers
    assert convert.port_of(httpd, Port("http")) == convert.port_of(httpd, Port("8080")) == 8080
    with pytest.raises(Missing, match="no port named 'https'"):
        convert.port_of(httpd, Port("https"))
