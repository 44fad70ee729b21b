import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from holdfast.lifecycle.pod_archive import (
    PodArchive,
    PodFile,
    Saved,
    Volume,
    Wanted,
    beside,
    container_config,
    lacking,
    pod_config,
    reaches,
    volume_at,
    volumes_of,
)
from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.hidden import MASKED, READ_ONLY
from holdfast.proto import runtime_v1_pb2 as pb

UID = "0c5c"
DISK = f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/scratch"
MEMORY = f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/fast"
HOSTS = f"/var/lib/kubelet/pods/{UID}/etc-hosts"
IMAGE = f"sha256:{'a' * 64}"


def container(name: str = "web", **fields: Any) -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name, attempt=2),
        image=pb.ImageSpec(image="example.com/web:1"),
        labels={"io.kubernetes.pod.uid": UID, "io.kubernetes.pod.name": "shop", "app": "web"},
        mounts=[pb.Mount(host_path=DISK, container_path="/work"), pb.Mount(host_path=MEMORY, container_path="/fast")],
        linux=pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(masked_paths=MASKED, readonly_paths=READ_ONLY)
        ),
        **fields,
    )


def archive(*containers: pb.ContainerConfig, **fields: Any) -> PodArchive:
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="shop", namespace="default", uid=UID, attempt=3),
        hostname="shop",
        log_directory=f"/var/log/pods/default_shop_{UID}",
        labels={"io.kubernetes.pod.uid": UID, "app": "shop"},
        annotations={"holdfast.io/agent-root": "/agent", "note": "kept"},
        linux=pb.LinuxPodSandboxConfig(cgroup_parent=f"/kubepods/pod{UID}"),
        **fields,
    )
    volumes = (Volume("scratch", DISK), Volume("fast", MEMORY, True, 1 << 20))
    saved = tuple(Saved(one, IMAGE) for one in containers or (container(),))
    files = (PodFile(HOSTS, b"127.0.0.1\tlocalhost\n\xff", 0o644, 0, 7),)
    return PodArchive(config, "runc", saved, volumes, files, ("scratch/run/listener",), 7, 0.25)


def test_it_comes_back_as_it_was() -> None:
    one = archive(container(), container("side", tty=True))
    assert PodArchive.decode(json.loads(json.dumps(one.encode()))) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("pod"),
        lambda about: about["pod"].update(config=3),
        lambda about: about["pod"].update(handler=None),
        lambda about: about["pod"]["config"].update(unknown_field=1),
        lambda about: about["pod"]["config"]["metadata"].update(name="../../etc"),
        lambda about: about["pod"]["config"]["metadata"].update(namespace="a/b"),
        lambda about: about["containers"].append(about["containers"][0]),
        lambda about: about["containers"][0].update(name="../x"),
        lambda about: about["containers"][0]["config"]["metadata"].update(name="other"),
        lambda about: about["containers"][0].update(image="example.com/other:latest"),
        lambda about: about["containers"][0].update(image="sha256:../../x"),
        lambda about: about["containers"][0].update(image=None),
        lambda about: about["volumes"][0].update(name="../../etc"),
        lambda about: about["volumes"][0].update(name="fast"),
        lambda about: about["volumes"][0].update(path="/etc"),
        lambda about: about["volumes"][0].update(path=7),
        lambda about: about["volumes"][0].update(size=-1),
        lambda about: about["volumes"][0].update(memory="yes"),
        lambda about: about["volumes"][0].update(more=1),
        lambda about: about.update(left_out=[1]),
        lambda about: about["files"][0].update(path="etc/hosts"),
        lambda about: about["files"][0].update(data="not base64"),
        lambda about: about["files"][0].update(data="A" * 4 * (1 << 20)),
        lambda about: about["files"][0].update(mode="0644"),
        lambda about: about["files"][0].update(uid=-1),
        lambda about: about["files"][0].update(more=1),
    ],
)
def test_what_strangers_say_of_a_pod(change: Callable[[dict[str, Any]], object]) -> None:
    about = archive().encode()
    change(about)
    with pytest.raises(InvalidArgument, match="^archive: "):
        PodArchive.decode(about)


def test_volumes_are_known_by_where_they_are() -> None:
    assert volume_at(DISK) == "scratch"
    assert volume_at(f"/agent/pods/{UID}/volumes/holdfast~sized-empty-dir/big") == "big"
    for path in ("/etc", "", f"{DISK}/below", DISK.removeprefix("/"), DISK.replace("empty-dir", "csi")):
        assert volume_at(path) is None
    hosts = pb.Mount(host_path="/etc/hosts", container_path="/etc/hosts")
    others = pb.Mount(host_path=DISK.replace(UID, "other"), container_path="/other")
    both = [container(), container("side")]
    both[1].mounts.extend([hosts, others])
    assert volumes_of(UID, both) == {"scratch": DISK, "fast": MEMORY}


def test_files_of_the_pod_are_beside_its_volumes() -> None:
    one = container()
    one.mounts.add(host_path=HOSTS, container_path="/etc/hosts")
    one.mounts.add(host_path="/etc/localtime", container_path="/etc/localtime")
    message = f"/var/lib/kubelet/pods/{UID}/containers/web/0c5d"
    one.mounts.add(host_path=message, container_path="/dev/termination-log")
    assert beside(UID, [one, one]) == [message, HOSTS]
    assert reaches(archive(one)) == ["container web mounts /etc/localtime", f"container web mounts {message}"]


def test_a_part_of_a_volume_is_refused() -> None:
    one = container()
    one.mounts.add(host_path=f"/var/lib/kubelet/pods/{UID}/volume-subpaths/scratch/web/0", container_path="/part")
    with pytest.raises(FailedPrecondition, match="subPath"):
        volumes_of(UID, [one])


def test_a_confined_pod_reaches_for_nothing() -> None:
    assert reaches(archive()) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda one: one.linux.security_context.__setattr__("privileged", True), "privileged"),
        (lambda one: one.mounts.add(host_path="/", container_path="/host"), "mounts /"),
        (lambda one: one.mounts.add(host_path="/run/x.sock", container_path="/x"), "mounts /run/x.sock"),
        (lambda one: one.devices.add(host_path="/dev/mem"), "device /dev/mem"),
        (lambda one: one.CDI_devices.add(name="vendor.com/gpu=all"), "vendor.com/gpu"),
        (lambda one: one.annotations.update({"cdi.k8s.io/x": "vendor.com/gpu=all"}), "annotation cdi.k8s.io"),
        (lambda one: one.annotations.update({"run.oci.hooks": "x"}), "annotation run.oci.hooks"),
        (lambda one: one.linux.security_context.__setattr__("apparmor_profile", "unconfined"), "profile"),
        (lambda one: one.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN"), "SYS_ADMIN"),
        (lambda one: one.linux.security_context.namespace_options.__setattr__("pid", pb.NODE), "host's processes"),
        (lambda one: one.linux.security_context.seccomp.__setattr__("profile_type", 1), "seccomp"),
        (lambda one: one.linux.security_context.apparmor.__setattr__("profile_type", 1), "AppArmor"),
        (lambda one: one.linux.security_context.readonly_paths.remove("/proc/sys"), "may write to /proc/sys"),
        (lambda one: one.linux.security_context.ClearField("masked_paths"), "/proc/kcore"),
        (lambda one: one.mounts[0].__setattr__("propagation", pb.PROPAGATION_BIDIRECTIONAL), "shares mounts"),
    ],
)
def test_what_reaches_for_the_host_is_named(change: Callable[[pb.ContainerConfig], object], what: str) -> None:
    one = container()
    change(one)
    found = reaches(archive(one))
    assert len(found) == 1
    assert what in found[0]


def test_what_is_shown_of_a_kernel_of_its_own() -> None:
    one = container()
    one.linux.security_context.ClearField("readonly_paths")
    assert reaches(archive(one), own_kernel=True) == []
    assert len(reaches(archive(one))) == 1


def test_a_pod_that_reaches_for_the_host() -> None:
    one = archive(port_mappings=[pb.PortMapping(container_port=80, host_port=80)])
    one.config.linux.security_context.privileged = True
    one.config.linux.security_context.namespace_options.network = pb.NODE
    assert len(reaches(one)) == 3


def test_the_pod_that_is_asked_for() -> None:
    found = pod_config(archive(), Wanted(name="copy", uid="new", log_root="/logs"))
    assert (found.metadata.name, found.metadata.namespace, found.metadata.uid) == ("copy", "default", "new")
    assert found.metadata.attempt == 0
    assert found.log_directory == "/logs/default_copy_new"
    assert found.linux.cgroup_parent == ""
    assert dict(found.labels) == {"io.kubernetes.pod.uid": "new", "app": "shop"}
    assert found.hostname == "shop"
    assert dict(found.annotations) == {"note": "kept"}
    assert pod_config(archive(), Wanted(uid="new")).metadata.name == "shop"


def test_the_container_that_is_asked_for() -> None:
    one = archive()
    pod = pod_config(one, Wanted(name="copy", uid="new"))
    found = container_config(one.containers[0], pod, {DISK: "/new/scratch", "/etc": "/nowhere"})
    assert found.image.image == IMAGE
    assert [mount.host_path for mount in found.mounts] == ["/new/scratch", MEMORY]
    assert dict(found.labels) == {"io.kubernetes.pod.uid": "new", "io.kubernetes.pod.name": "copy", "app": "web"}
    assert found.metadata.attempt == 2
    assert one.containers[0].config == container()


def test_what_an_archive_says_that_it_has() -> None:
    made = replace(archive(), volumes=(Volume("scratch", DISK), Volume("fast", MEMORY, inside=True)))
    of_criu = {"containers/web/config.dump", "containers/web/checkpoint/inventory.img", "volumes/scratch.tar"}
    assert lacking(made, of_criu) == ["volumes/fast.tar"]  # which is in no sandbox's images
    assert lacking(made, {*of_criu, "volumes/fast.tar"}) == []
    for one in of_criu:
        assert lacking(made, {*of_criu, "volumes/fast.tar"} - {one}) == [one]
    of_sandbox = {"containers/web/config.dump", "sandbox/checkpoint/checkpoint.img", "volumes/scratch.tar"}
    assert lacking(made, of_sandbox) == []
    assert lacking(made, of_sandbox - {"volumes/scratch.tar"}) == ["volumes/scratch.tar"]
