"""Pods for tests: a real application, and any that may be."""

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from holdfast.agent.pod.containers import (
    Container,
    ContainerPort,
    ExecAction,
    Handler,
    HttpGet,
    Lifecycle,
    Probe,
    Resources,
    Sleep,
    TcpSocket,
    VolumeMount,
)
from holdfast.agent.pod.scalars import Amount, Count, HostPort, Name, Port, Seconds, Subdomain
from holdfast.agent.pod.security import (
    AppArmorProfile,
    Capabilities,
    PodSecurityContext,
    SeccompProfile,
    SecurityContext,
    SelinuxOptions,
    Sysctl,
)
from holdfast.agent.pod.sources import EnvVar
from holdfast.agent.pod.spec import DnsConfig, DnsOption, HostAlias, Metadata, Pod, PodSpec
from holdfast.agent.pod.volumes import EmptyDir, Volume

APPLICATION = (Path(__file__).parents[2] / "docs" / "examples" / "web.yaml").read_text()

words = st.text("abcxyz019", min_size=1, max_size=8)
names = words.map(Name)
few = st.integers(0, 2)
seconds = st.integers(0, 10**6).map(Seconds)
counts = st.integers(1, 999).map(Count)
amounts = st.integers(0, 10**15).map(Amount)
ports = st.integers(1, 65535).map(lambda number: Port(str(number))) | st.just(Port("http"))
actions = (
    st.builds(lambda words: {"exec": ExecAction(tuple(words))}, st.lists(words, max_size=2))
    | st.builds(lambda port, path: {"http_get": HttpGet(port, f"/{path}")}, ports, words)
    | ports.map(lambda port: {"tcp_socket": TcpSocket(port)})
)
probes = st.builds(
    lambda action, period, success: Probe(**action, period_seconds=period, success_threshold=success),
    actions, counts, counts,
)  # fmt: skip
handlers = actions.map(lambda action: Handler(**action)) | seconds.map(lambda many: Handler(sleep=Sleep(many)))
maybe = st.none() | st.booleans()
users = st.none() | seconds
seccomp = st.none() | st.sampled_from(["RuntimeDefault", "Unconfined"]).map(SeccompProfile) | words.map(
    lambda name: SeccompProfile("Localhost", name)
)  # fmt: skip
apparmor = st.none() | words.map(lambda name: AppArmorProfile("Localhost", name))
selinux = st.none() | st.builds(SelinuxOptions, words, words, words, words)
resources = st.builds(
    Resources,
    st.dictionaries(st.sampled_from(["cpu", "memory", "hugepages-2Mi"]), amounts),
    st.dictionaries(st.sampled_from(["cpu", "memory"]), amounts),
)


@st.composite
def containers(draw: st.DrawFn, name: str, volumes: list[str], *, sidecar: bool = False) -> Container:
    mounted = draw(st.lists(st.sampled_from(volumes), max_size=2)) if volumes else []
    return Container(
        Name(name),
        draw(words),
        command=tuple(draw(st.lists(st.text(max_size=6), max_size=2))),
        args=tuple(draw(st.lists(words, max_size=2))),
        ports=tuple(draw(st.lists(st.builds(ContainerPort, st.just(HostPort(80)), words), max_size=1))),
        env=tuple(
            draw(st.lists(st.builds(EnvVar, words.map(lambda word: f"V{word}"), st.text(max_size=5)), max_size=2))
        ),
        resources=draw(resources),
        volume_mounts=tuple(VolumeMount(Name(one), f"/v/{number}") for number, one in enumerate(mounted)),
        liveness_probe=draw(st.none() | probes),
        readiness_probe=draw(st.none() | probes),
        startup_probe=draw(st.none() | probes),
        lifecycle=Lifecycle(draw(st.none() | handlers), draw(st.none() | handlers)),
        image_pull_policy=draw(st.sampled_from(["", "Always", "IfNotPresent", "Never"])),
        security_context=SecurityContext(
            allow_privilege_escalation=draw(maybe),
            app_armor_profile=draw(apparmor),
            capabilities=Capabilities(tuple(draw(st.lists(words, max_size=2)))),
            privileged=draw(st.booleans()),
            proc_mount=draw(st.sampled_from(["Default", "Unmasked"])),
            run_as_user=draw(users),
            run_as_group=draw(users),
            run_as_non_root=draw(maybe),
            se_linux_options=draw(selinux),
            seccomp_profile=draw(seccomp),
        ),
        tty=draw(st.booleans()),
        restart_policy="Always" if sidecar else "",
    )


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    volumes = draw(st.lists(words, max_size=2, unique=True))
    inits = [draw(containers(f"i{number}", volumes, sidecar=draw(st.booleans()))) for number in range(draw(few))]
    mains = [draw(containers(f"c{number}", volumes)) for number in range(1 + draw(few))]
    spec = PodSpec(
        tuple(mains),
        tuple(inits),
        tuple(Volume(Name(one), empty_dir=EmptyDir(size_limit=draw(st.none() | amounts))) for one in volumes),
        restart_policy=draw(st.sampled_from(["Always", "OnFailure", "Never"])),
        termination_grace_period_seconds=draw(seconds),
        dns_policy=draw(st.sampled_from(["Default", "None"])),
        dns_config=DnsConfig(tuple(draw(st.lists(words, max_size=1))), (), (DnsOption("ndots", "2"),)),
        host_aliases=tuple(draw(st.lists(st.builds(HostAlias, words, st.tuples(words)), max_size=1))),
        host_network=draw(st.booleans()),
        host_ipc=draw(st.booleans()),
        hostname=draw(st.just("") | words),
        share_process_namespace=draw(st.booleans()),
        security_context=PodSecurityContext(
            fs_group=draw(users),
            run_as_user=draw(users),
            seccomp_profile=draw(seccomp),
            supplemental_groups=tuple(draw(st.lists(seconds, max_size=2))),
            sysctls=tuple(draw(st.lists(st.builds(Sysctl, words, words), max_size=1))),
        ),
    )
    meta = Metadata(Subdomain(draw(words)), uid=draw(words), labels=draw(st.dictionaries(words, words, max_size=2)))
    return Pod("v1", "Pod", meta, spec)


def simple(**more: object) -> Pod:
    """One container "c" of an image "i:1"; `container` has more for it, the rest is the pod's."""
    of_container: dict[str, object] = more.pop("container", {})  # type: ignore[assignment]
    one = replace(Container(Name("c"), "i:1"), **of_container)  # type: ignore[arg-type]
    spec = PodSpec((one,), **more)  # type: ignore[arg-type]
    return Pod("v1", "Pod", Metadata(Subdomain("p"), Name("n"), "u-1"), spec)
