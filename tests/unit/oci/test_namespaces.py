"""User namespaces in the CRI's words: what is refused, and what the OCI runtime is told."""

from collections.abc import Callable

import pytest
from test_build import container, image, pod, request

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.userns import UserNamespace
from holdfast.oci.build import build
from holdfast.oci.namespaces import user_namespace
from holdfast.oci.request import SpecRequest
from holdfast.oci.users import ResolvedUser
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb

FIELD = r"config\.linux\.security_context\.namespace_options"


def mapped(uid: int = 65536, gid: int = 131072, uids: int = 65536, gids: int = 65536) -> pb.NamespaceOption:
    users = pb.UserNamespace(
        mode=pb.POD,
        uids=[pb.IDMapping(host_id=uid, container_id=0, length=uids)],
        gids=[pb.IDMapping(host_id=gid, container_id=0, length=gids)],
    )
    return pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD, userns_options=users)


def pod_with(options: pb.NamespaceOption) -> pb.PodSandboxConfig:
    return pod(security_context=pb.LinuxSandboxSecurityContext(namespace_options=options))


def container_with(options: pb.NamespaceOption) -> pb.ContainerConfig:
    context = pb.LinuxContainerSecurityContext(namespace_options=options)
    return container(linux=pb.LinuxContainerConfig(security_context=context))


def test_a_pod_and_its_container_with_the_same_mappings() -> None:
    validate_pod(pod_with(mapped()))
    validate_container(container_with(mapped()), pod_with(mapped()))
    assert user_namespace(mapped()) == UserNamespace(65536, 131072, 65536, 65536)


def test_the_users_of_the_host_however_that_is_said() -> None:
    node = pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.NODE))
    for options in (node, pb.NamespaceOption()):
        validate_pod(pod_with(options))
        validate_container(container_with(node), pod_with(options))
        assert user_namespace(options) is None
        assert "uidMappings" not in build(request(container_with(options), pod=pod_with(options)))["linux"]


def clear(name: str) -> Callable[[pb.UserNamespace], None]:
    return lambda users: users.ClearField(name)  # type: ignore[arg-type]


def change(name: str, **values: int) -> Callable[[pb.UserNamespace], None]:
    def apply(users: pb.UserNamespace) -> None:
        for key, value in values.items():
            setattr(getattr(users, name)[0], key, value)

    return apply


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (clear("uids"), "uids"),
        (clear("gids"), "gids"),
        (lambda users: users.uids.add(container_id=65536, host_id=500000, length=1), "uids"),
        (lambda users: users.gids.add(container_id=65536, host_id=500000, length=1), "gids"),
        (change("uids", length=0), r"uids\[0\]\.length"),
        (change("gids", container_id=1), r"gids\[0\]\.container_id"),
        (change("uids", host_id=0), r"uids\[0\]\.host_id"),
        (change("gids", host_id=2**32 - 65536), r"gids\[0\]\.host_id"),
        (change("uids", length=2**32 - 1), r"uids\[0\]\.host_id"),
        (lambda users: setattr(users, "mode", pb.NODE), "uids"),
        (lambda users: setattr(users, "mode", pb.CONTAINER), "mode"),
        (lambda users: setattr(users, "mode", pb.TARGET), "mode"),
    ],
)
def test_mappings_that_are_none(spoil: Callable[[pb.UserNamespace], None], field: str) -> None:
    options = mapped()
    spoil(options.userns_options)
    with pytest.raises(InvalidArgument, match=rf"{FIELD}\.userns_options\.{field}:"):
        validate_pod(pod_with(options))


def test_the_largest_mapping() -> None:
    validate_pod(pod_with(mapped(uid=1, uids=2**32 - 2)))


@pytest.mark.parametrize("name", ["pid", "ipc"])
def test_the_hosts_processes_and_ipc_are_not_for_other_users(name: str) -> None:
    options = mapped()
    setattr(options, name, pb.NODE)
    with pytest.raises(InvalidArgument, match=rf"{FIELD}\.{name}: NODE is not possible in a user namespace"):
        validate_pod(pod_with(options))
    with pytest.raises(InvalidArgument, match=rf"{FIELD}\.{name}: NODE is not possible in a user namespace"):
        validate_container(container_with(options), pod_with(mapped()))


def test_the_hosts_network_and_privileges_go_with_users_of_ones_own() -> None:
    options = mapped()
    options.network = pb.NODE
    validate_pod(pod_with(options))
    sandbox = pod_with(mapped())
    sandbox.linux.security_context.privileged = True
    validate_pod(sandbox)
    one = container_with(mapped())
    one.linux.security_context.privileged = True
    validate_container(one, sandbox)


@pytest.mark.parametrize(
    ("of_pod", "of_container"),
    [
        (mapped(), pb.NamespaceOption()),
        (pb.NamespaceOption(), mapped()),
        (mapped(), mapped(uid=100000)),
        (mapped(), mapped(gids=65535)),
        (mapped(), pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.NODE))),
    ],
)
def test_a_container_has_the_users_of_its_pod(of_pod: pb.NamespaceOption, of_container: pb.NamespaceOption) -> None:
    with pytest.raises(InvalidArgument, match=rf"{FIELD}\.userns_options: they are not those of the pod"):
        validate_container(container_with(of_container), pod_with(of_pod))


ROOT = ResolvedUser(0, 0, (0,), "/root")


def inside(user: ResolvedUser = ROOT) -> SpecRequest:
    found = {"user": "/run/ns/user", "net": "/run/ns/net"}
    return request(container_with(mapped(uids=1000)), pod=pod_with(mapped(uids=1000)), user=user, namespaces=found)


def test_the_runtime_is_told_the_path_and_the_mappings() -> None:
    linux = build(inside())["linux"]
    assert {"type": "user", "path": "/run/ns/user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 65536, "size": 1000}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 131072, "size": 65536}]


def test_never_as_a_user_of_the_host_when_the_namespace_is_gone() -> None:
    with pytest.raises(FailedPrecondition, match="user namespace of the pod sandbox is gone"):
        build(request(container_with(mapped()), pod=pod_with(mapped())))


@pytest.mark.parametrize(
    ("user", "field"),
    [
        (ResolvedUser(1000, 0), "run_as_user: 1000"),
        (ResolvedUser(999, 65536), "run_as_group: 65536"),
        (ResolvedUser(0, 0, (0, 70000)), "supplemental_groups: 70000"),
    ],
)
def test_who_has_no_id_there_cannot_run(user: ResolvedUser, field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"config\.linux\.security_context\.{field} has no id"):
        build(inside(user))


def test_the_sysfs_of_the_hosts_network_is_the_hosts() -> None:
    options = mapped()
    options.network = pb.NODE
    one = request(container_with(options), pod=pod_with(options), namespaces={"user": "/run/ns/user"})
    (sys,) = [mount for mount in build(one)["mounts"] if mount["destination"] == "/sys"]
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert {"rbind", "ro", "nosuid", "noexec", "nodev"} <= set(sys["options"])


def test_nothing_else_of_the_spec_changes() -> None:
    plain = build(request(container(), image=image(), namespaces={"net": "/run/ns/net"}))
    users = build(inside())
    for part in ("process", "mounts", "root"):
        assert users[part] == plain[part]
