"""What is malformed is refused with the field's name, and leaves nothing behind."""

from collections.abc import Callable, Iterator

import grpc
import pytest
from kit.node import IMAGE, Node

from holdfast.proto import runtime_v1_pb2 as pb

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
Change = Callable[[pb.ContainerConfig], object]
User = pb.LinuxContainerSecurityContext


@pytest.fixture(scope="module")
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)


def inventory(life: Node) -> list[str]:
    """Everything a failed creation could leave: rows, bundles, snapshots, mounts."""
    rows = [one.id for one in life.containers()] + [one.id for one in life.pods()]
    snapshots = sorted(path.name for path in (life.root / "snapshots").iterdir())
    return rows + snapshots + life.leftovers()


def user(**fields: int) -> Change:
    def change(config: pb.ContainerConfig) -> None:
        for name, value in fields.items():
            getattr(config.linux.security_context, name).value = value

    return change


CASES: dict[str, tuple[Change, grpc.StatusCode, str]] = {
    "no metadata": (lambda c: c.ClearField("metadata"), INVALID, "metadata"),
    "no name": (lambda c: c.metadata.ClearField("name"), INVALID, "metadata.name"),
    "no image": (lambda c: c.ClearField("image"), INVALID, "image.image"),
    "unknown image": (lambda c: setattr(c.image, "image", "no/such:image"), MISSING, "no/such:image"),
    "malformed image": (lambda c: setattr(c.image, "image", "UPPER//case"), MISSING, "UPPER//case"),
    "relative mount": (
        lambda c: c.mounts.add(host_path="/tmp", container_path="tmp"), INVALID, "mounts[0].container_path",
    ),
    "relative source": (lambda c: c.mounts.add(host_path="tmp", container_path="/tmp"), INVALID, "mounts[0].host_path"),
    "mount over root": (
        lambda c: c.mounts.add(host_path="/tmp", container_path="/"), INVALID, "mounts[0].container_path",
    ),
    "uid too large": (user(run_as_user=2**32), INVALID, "run_as_user"),
    "uid wraps": (user(run_as_user=2**31), INVALID, "run_as_user"),
    "uid negative": (user(run_as_user=-1), INVALID, "run_as_user"),
    "group without user": (user(run_as_group=1), INVALID, "run_as_group"),
    "unknown user": (
        lambda c: setattr(c.linux.security_context, "run_as_username", "nobody-knows"), INVALID, "run_as_username",
    ),
    "log path climbs": (lambda c: setattr(c, "log_path", "../../etc/cron.d/x"), INVALID, "log_path"),
    "log path absolute": (lambda c: setattr(c, "log_path", "/etc/cron.d/x"), INVALID, "log_path"),
    "bad capability": (
        lambda c: c.linux.security_context.capabilities.add_capabilities.append("FLY"), INVALID, "add_capabilities",
    ),
    "negative memory": (
        lambda c: setattr(c.linux.resources, "memory_limit_in_bytes", -5), INVALID, "memory_limit_in_bytes",
    ),
    "bad variable": (lambda c: c.envs.add(key="A=B", value="x"), INVALID, "envs[0].key"),
    "NUL": (lambda c: c.command.append("a\0b"), INVALID, "command"),
    "unknown device": (
        lambda c: c.devices.add(host_path="/dev/nothing", container_path="/dev/x"), INVALID, "devices[0].host_path",
    ),
    "privileged in a plain pod": (
        lambda c: setattr(c.linux.security_context, "privileged", True), INVALID, "privileged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_container(life: Node, pod: str, case: str) -> None:
    change, code, field = CASES[case]
    config = life.container_config("exit 0", "bad")
    change(config)
    before = inventory(life)
    with pytest.raises(grpc.RpcError) as failure:
        life.create(pod, config)
    assert failure.value.code() is code, failure.value.details()
    assert field in failure.value.details()
    assert inventory(life) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c.ClearField("metadata"), "metadata"),
        (lambda c: c.metadata.ClearField("uid"), "metadata.uid"),
        (lambda c: setattr(c, "hostname", "x" * 65), "hostname"),
        (lambda c: setattr(c, "log_directory", "logs"), "log_directory"),
        (lambda c: setattr(c.linux, "cgroup_parent", "/../.."), "cgroup_parent"),
        (lambda c: c.dns_config.servers.append("192.0.2.1\noptions evil"), "dns_config.servers[0]"),
        (lambda c: setattr(c.metadata, "name", "a/b"), "metadata.name"),
    ],
)
def test_pod(life: Node, pod: str, change: Callable[[pb.PodSandboxConfig], object], field: str) -> None:
    config = life.pod_config()
    change(config)
    before = inventory(life)
    with pytest.raises(grpc.RpcError) as failure:
        life.run_pod(config)
    assert failure.value.code() is INVALID
    assert field in failure.value.details()
    assert inventory(life) == before


@pytest.mark.parametrize("long", ["x" * 70000, "\U0001f600" * 20000])
def test_an_error_about_a_long_value_is_heard(life: Node, pod: str, long: str) -> None:
    config = life.container_config("exit 0", envs=[pb.KeyValue(key=f"{long}=", value="")])
    with pytest.raises(grpc.RpcError) as failure:
        life.create(pod, config)
    assert failure.value.code() is INVALID
    assert failure.value.details().startswith("config.envs[0].key: ")
    assert failure.value.details().endswith("=' is not a name")


def test_unknown_runtime_handler(life: Node) -> None:
    request = pb.RunPodSandboxRequest(config=life.pod_config(), runtime_handler="no-such")
    with pytest.raises(grpc.RpcError) as failure:
        life.call("RunPodSandbox", request)
    assert failure.value.code() is INVALID
    assert "no-such" in failure.value.details()


def test_a_name_is_taken_once(life: Node, pod: str) -> None:
    first = life.create(pod, life.container_config("exit 0", "twin"))
    with pytest.raises(grpc.RpcError) as failure:
        life.create(pod, life.container_config("exit 1", "twin"))
    assert failure.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert first in failure.value.details()
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=first))
    again = life.create(pod, life.container_config("exit 0", "twin"))
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=again))


def test_status_of_what_does_not_exist(life: Node) -> None:
    for method, request in [
        ("ContainerStatus", pb.ContainerStatusRequest(container_id="f" * 64)),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id="f" * 64)),
        ("StartContainer", pb.StartContainerRequest(container_id="f" * 64)),
    ]:
        with pytest.raises(grpc.RpcError) as failure:
            life.call(method, request)
        assert failure.value.code() is MISSING
    reply = life.images("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image="no/such")))
    assert not reply.HasField("image")


def test_an_archive_that_is_none(life: Node) -> None:
    nonsense = life.base / "nonsense.tar"
    nonsense.write_bytes(b"not an archive" * 1000)
    done = life.cli("image", "import", str(nonsense), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("holdfast: archive: ")
    assert done.stderr.count("\n") == 1
    assert IMAGE.partition(":")[0] in life.cli("image", "ls").stdout
