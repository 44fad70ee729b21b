"""A kubelet as a runtime sees it: the calls of its kuberuntime, PLEG, probes, statistics and collection, in that order,
and configurations with what it fills in, by what pkg/kubelet of Kubernetes does.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.linux import cgroup
from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import IMAGE, Node

MASKED = ("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats")
MASKED += ("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware")
MASKED += ("/sys/devices/virtual/powercap",)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
TERMINATION = "/dev/termination-log"
LABEL = "io.kubernetes.pod."
CONTAINER = "io.kubernetes.container."
SECONDS = 20  # for what is executed
DEFAULT_PROFILE = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)


@dataclass(frozen=True)
class Member:
    """A container of a pod's spec."""

    name: str
    script: str
    pre_stop: tuple[str, ...] = ()
    post_start: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A pod that is always started again."""

    name: str
    members: Sequence[Member]
    inits: Sequence[Member] = ()
    namespace: str = "default"
    grace: int = 2
    host_port: int = 0
    labels: dict[str, str] = field(default_factory=lambda: {"app": "tried"})
    image: str = IMAGE

    @property
    def uid(self) -> str:
        return f"0f6c3b1e-{self.name}"

    @property
    def directory(self) -> str:
        return f"{self.namespace}_{self.name}_{self.uid}"


@dataclass
class Status:
    """What a PLEG knows of a pod; the latest attempt first."""

    sandboxes: list[pb.PodSandboxStatus]
    containers: list[pb.ContainerStatus]

    @property
    def sandbox(self) -> pb.PodSandboxStatus | None:
        found = self.sandboxes[0] if self.sandboxes else None
        return found if found is not None and found.state == pb.SANDBOX_READY else None

    def of(self, name: str) -> list[pb.ContainerStatus]:
        return [one for one in self.containers if one.metadata.name == name]


class Kubelet:
    """Of a node, with directories of its own. `driver` and `handlers` are what the runtime has told it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.logs, self.pods = node.base / "var-log-pods", node.base / "kubelet-pods"
        for place in (self.logs, self.pods):
            place.mkdir()
        self.driver = pb.CGROUPFS
        self.seen: dict[str, int] = {}

    # -- the node

    def connect(self) -> None:
        """As it starts: is it a runtime of the CRI, which cgroup driver has it, where are its images?"""
        version = self.node.call("Version", pb.VersionRequest(version=""))
        assert version.runtime_api_version == "v1"
        self.driver = self.node.call("RuntimeConfig", pb.RuntimeConfigRequest()).linux.cgroup_driver
        (images,) = self.node.images("ImageFsInfo", pb.ImageFsInfoRequest()).image_filesystems
        assert images.fs_id.mountpoint
        self.update()

    def update(self) -> dict[str, tuple[bool, str]]:
        """Every five seconds: the conditions."""
        found = self.node.call("Status", pb.StatusRequest(verbose=False))
        assert "" in {one.name for one in found.runtime_handlers}, "the default handler is among them"
        return {one.type: (one.status, one.message) for one in found.status.conditions}

    def set_pod_cidr(self, cidr: str) -> None:
        request = pb.UpdateRuntimeConfigRequest()
        request.runtime_config.network_config.pod_cidr = cidr
        self.node.call("UpdateRuntimeConfig", request)

    # -- what is there

    def relist(self) -> dict[str, int]:
        """Every second, without a filter: by id, the state of each pod and container that has changed."""
        known = {one.id: one.state + 10 for one in self.node.pods()}
        known |= {one.id: one.state for one in self.node.containers()}
        changed = {id: state for id, state in known.items() if self.seen.get(id) != state}
        changed |= {id: -1 for id in self.seen if id not in known}
        self.seen = known
        return changed

    def status(self, spec: Spec) -> Status:
        """Of a pod, all that there is of it, by its uid."""
        labels = {f"{LABEL}uid": spec.uid}
        pods = self.node.call(
            "ListPodSandbox", pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        )
        sandboxes = [
            self.node.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=one.id)).status
            for one in pods.items
        ]
        wanted = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=labels))
        containers = [self.node.status(one.id) for one in self.node.call("ListContainers", wanted).containers]
        attempt = lambda one: -one.metadata.attempt  # noqa: E731
        return Status(sorted(sandboxes, key=attempt), sorted(containers, key=attempt))

    # -- one pod

    def sync(self, spec: Spec) -> bool:
        """One turn of SyncPod. True when there is nothing more to be done."""
        now = self.status(spec)
        if now.sandbox is None:
            self.kill(spec, now)
            return self._run_sandbox(spec, max((one.metadata.attempt + 1 for one in now.sandboxes), default=0))
        for one in spec.inits:
            latest = self._latest(now, one)
            if latest is None or (latest.state == pb.CONTAINER_EXITED and latest.exit_code):
                return self._start(spec, now, one)
            if latest.state != pb.CONTAINER_EXITED:
                return False
        missing = [one for one in spec.members if not self._runs(now, one)]
        for one in missing:
            self._start(spec, now, one)
        return not missing

    def _latest(self, now: Status, member: Member) -> pb.ContainerStatus | None:
        """In the sandbox that there is: what has been in another does not count for init containers."""
        assert now.sandbox is not None
        found = [one for one in now.of(member.name) if one.created_at > now.sandbox.created_at]
        return found[0] if found else None

    def _runs(self, now: Status, member: Member) -> bool:
        latest = self._latest(now, member)
        return latest is not None and latest.state == pb.CONTAINER_RUNNING

    def _run_sandbox(self, spec: Spec, attempt: int) -> bool:
        """The pod's cgroup is the kubelet's; its log directory, too."""
        cgroup.create(self.cgroup(spec))
        (self.logs / spec.directory).mkdir(exist_ok=True)
        config = self.sandbox_config(spec, attempt)
        made = self.node.call("RunPodSandbox", pb.RunPodSandboxRequest(config=config, runtime_handler=""))
        self.node.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=made.pod_sandbox_id))
        return False

    def ensure_image(self, spec: Spec) -> str:
        """IfNotPresent: what the container's configuration names as its image."""
        image = pb.ImageSpec(image=spec.image, annotations={}, user_specified_image=spec.image)
        found = self.node.images("ImageStatus", pb.ImageStatusRequest(image=image)).image
        if found.id:
            return str(found.id)
        request = pb.PullImageRequest(image=image, sandbox_config=self.sandbox_config(spec, 0))
        return str(self.node.images("PullImage", request).image_ref)

    def _start(self, spec: Spec, now: Status, member: Member) -> bool:
        assert now.sandbox is not None
        attempt = max((one.metadata.attempt + 1 for one in now.of(member.name)), default=0)
        (self.logs / spec.directory / member.name).mkdir(exist_ok=True)
        config = self.container_config(spec, member, attempt, self.ensure_image(spec))
        sandbox = self.sandbox_config(spec, now.sandbox.metadata.attempt)
        request = pb.CreateContainerRequest(pod_sandbox_id=now.sandbox.id, config=config, sandbox_config=sandbox)
        container = self.node.call("CreateContainer", request).container_id
        self.node.start_container(container)
        if member.post_start:
            assert self.probe(container, member.post_start) == 0
        return False

    def probe(self, container: str, command: Iterable[str]) -> int:
        """Within far more than the second that a kubelet gives it: here each is to come to its end."""
        return int(self.node.exec(container, command, SECONDS).exit_code)

    def kill(self, spec: Spec, now: Status | None = None) -> None:
        """Hooks, then containers, each with the pod's grace, then all of its sandboxes."""
        now = now or self.status(spec)
        hooks = {one.name: one.pre_stop for one in spec.members}
        for one in now.containers:
            if one.state == pb.CONTAINER_RUNNING:
                if hook := hooks.get(one.metadata.name):
                    self.probe(one.id, hook)
                self.node.stop_container(one.id, spec.grace)
        for sandbox in now.sandboxes:
            self.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=sandbox.id))

    # -- what is over

    def collect(self, spec: Spec, *, gone: bool = False) -> None:
        """The latest of each name is kept, and the latest sandbox; nothing of a pod that is gone."""
        now = self.status(spec)
        keep = 0 if gone else 1
        for name in {one.metadata.name for one in now.containers}:
            dead = [one for one in now.of(name) if one.state == pb.CONTAINER_EXITED]
            for one in dead[keep if len(dead) == len(now.of(name)) else 0 :]:
                self.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one.id))
        in_use = {one.pod_sandbox_id for one in self.node.containers()}
        for sandbox in now.sandboxes[keep:]:
            if sandbox.state == pb.SANDBOX_NOTREADY and sandbox.id not in in_use:
                self.node.remove_pod(sandbox.id)
        if gone:
            cgroup.remove(self.cgroup(spec))
            shutil.rmtree(self.logs / spec.directory)  # noqa: TID251  (a kubelet's own)

    def close(self) -> None:
        """It leaves no cgroup: those of its pods are gone."""
        top = f"{self.node.cgroup}/kubepods"
        assert not cgroup.children(f"{top}/burstable")
        cgroup.remove(top)
        cgroup.remove_if_empty(self.node.cgroup)

    def cgroup(self, spec: Spec) -> str:
        return f"{self.node.cgroup}/kubepods/burstable/pod{spec.uid}"

    # -- statistics

    def summary(self) -> dict[str, dict[str, pb.ContainerStats]]:
        """Of the Summary API by the CRI: by pod's name, its containers' by theirs."""
        there = {one.id for one in self.node.containers()}
        assert {one.id for one in self.node.pods()}
        found = self.node.call("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()).stats
        assert all(one.attributes.id in there for pod in found for one in pod.linux.containers)
        return {
            pod.attributes.metadata.name: {one.attributes.metadata.name: one for one in pod.linux.containers}
            for pod in found
        }

    def metrics(self) -> set[str]:
        """Of /metrics/cadvisor by the CRI: the names that were sent, all of them described."""
        known = {
            one.name for one in self.node.call("ListMetricDescriptors", pb.ListMetricDescriptorsRequest()).descriptors
        }
        sent = self.node.call("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest()).pod_metrics
        found = {one.name for pod in sent for inside in pod.container_metrics for one in inside.metrics}
        assert found <= known
        return found

    def rotate(self, spec: Spec, member: str) -> tuple[Path, Path]:
        """A log that is too large: (what it is now, what it was)."""
        container = self.status(spec).of(member)[0]
        place = Path(container.log_path)
        old = place.with_name(f"{place.name}.20261121-120000")
        os.rename(place, old)
        self.node.call("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container.id))
        return place, old

    # -- configurations

    def sandbox_config(self, spec: Spec, attempt: int) -> pb.PodSandboxConfig:
        namespaces = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)
        linux = pb.LinuxPodSandboxConfig(
            cgroup_parent=self.cgroup(spec),
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=namespaces,
                seccomp=DEFAULT_PROFILE,
                supplemental_groups=[2000],
                supplemental_groups_policy=pb.Merge,
            ),
            sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
            overhead=pb.LinuxContainerResources(),
            resources=pb.LinuxContainerResources(cpu_period=100_000, cpu_shares=102, memory_limit_in_bytes=256 << 20),
        )
        ports = [pb.PortMapping(container_port=80)]
        if spec.host_port:
            ports = [pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=spec.host_port)]
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=spec.name, namespace=spec.namespace, uid=spec.uid, attempt=attempt),
            hostname=spec.name,
            log_directory=str(self.logs / spec.directory),
            dns_config=pb.DNSConfig(
                servers=["10.96.0.10"],
                searches=[f"{spec.namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                options=["ndots:5"],
            ),
            port_mappings=ports,
            labels=self._labels(spec) | spec.labels,
            annotations={"kubernetes.io/config.seen": "2026-11-21T12:00:00Z", "kubernetes.io/config.source": "api"},
            linux=linux,
        )

    def container_config(self, spec: Spec, member: Member, attempt: int, image: str) -> pb.ContainerConfig:
        resources = pb.LinuxContainerResources(
            cpu_period=100_000,
            cpu_quota=50_000,
            cpu_shares=102,
            memory_limit_in_bytes=128 << 20,
            oom_score_adj=992,
            hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
        )
        context = pb.LinuxContainerSecurityContext(
            namespace_options=pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD),
            run_as_user=pb.Int64Value(value=0),
            capabilities=pb.Capability(add_capabilities=["NET_BIND_SERVICE"], drop_capabilities=["MKNOD"]),
            supplemental_groups=[2000],
            no_new_privs=True,
            masked_paths=MASKED,
            readonly_paths=READONLY,
            seccomp=DEFAULT_PROFILE,
        )
        values = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "HOSTNAME": spec.name}
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=member.name, attempt=attempt),
            image=pb.ImageSpec(image=image, user_specified_image=spec.image),
            command=["/bin/sh", "-c"],
            args=[member.script],
            working_dir="/",
            envs=[pb.KeyValue(key=key, value=value) for key, value in values.items()],
            mounts=self._mounts(spec, member),
            labels=self._labels(spec) | {f"{CONTAINER}name": member.name},
            annotations={
                f"{CONTAINER}hash": "5d4f6c1b",
                f"{CONTAINER}restartCount": str(attempt),
                f"{CONTAINER}terminationMessagePath": TERMINATION,
                f"{CONTAINER}terminationMessagePolicy": "File",
                f"{LABEL}terminationGracePeriod": str(spec.grace),
            },
            log_path=f"{member.name}/{attempt}.log",
            linux=pb.LinuxContainerConfig(resources=resources, security_context=context),
        )

    def _labels(self, spec: Spec) -> dict[str, str]:
        return {f"{LABEL}name": spec.name, f"{LABEL}namespace": spec.namespace, f"{LABEL}uid": spec.uid}

    def _mounts(self, spec: Spec, member: Member) -> list[pb.Mount]:
        """An emptyDir that all share, a token, the hosts file, and a file for last words of each container."""
        home = self.pods / spec.uid
        shared, token = home / "volumes/empty-dir/shared", home / "volumes/projected/token"
        for place in (shared, token, home / "containers" / member.name):
            place.mkdir(parents=True, exist_ok=True)
        (token / "token").write_text("t0k3n")
        (home / "etc-hosts").write_text(f"127.0.0.1 localhost\n# {spec.name}\n")
        words = self.words(spec, member.name)
        words.touch()
        words.chmod(0o666)
        return [
            pb.Mount(container_path="/shared", host_path=str(shared), propagation=pb.PROPAGATION_PRIVATE),
            pb.Mount(
                container_path="/var/run/secrets/kubernetes.io/serviceaccount", host_path=str(token), readonly=True
            ),
            pb.Mount(container_path="/etc/hosts", host_path=str(home / "etc-hosts")),
            pb.Mount(container_path=TERMINATION, host_path=str(words)),
        ]

    def words(self, spec: Spec, member: str) -> Path:
        """Where a container says why it ended."""
        return self.pods / spec.uid / "containers" / member / "words"
