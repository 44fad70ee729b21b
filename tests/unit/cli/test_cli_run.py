"""run: what it asks for, shows and cleans up."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb

Run = Callable[..., tuple[int, str, str]]


def asked(fake: Any, holdfast: Run, *arguments: str) -> pb.CreateContainerRequest:
    status, _, err = holdfast("run", "-d", *arguments)
    assert status == 0, err
    return fake.last(pb.CreateContainerRequest)


def test_options_become_the_request(fake, holdfast: Run) -> None:
    request = asked(
        fake, holdfast, "--name", "web", "-e", "A=1", "-e", "B=x=y", "-v", "/a:/b:ro", "-v", "/c:/d", "--mount",
        "type=bind,source=/e,target=/f,readonly", "-w", "/w", "-u", "1000:2000", "-m", "64m", "--cpus", "0.5",
        "--read-only", "--privileged", "-l", "k=v", "--stop-signal", "int", "--hostname", "h", "--network", "host",
        "--pid", "pod", "-t", "busybox", "ls", "-l", "--name",
    )  # fmt: skip
    config, pod = request.config, request.sandbox_config
    assert [(one.key, one.value) for one in config.envs] == [("A", "1"), ("B", "x=y")]
    mounts = [(one.host_path, one.container_path, one.readonly) for one in config.mounts]
    assert mounts == [("/a", "/b", True), ("/c", "/d", False), ("/e", "/f", True)]
    assert list(config.args) == ["ls", "-l", "--name"]
    context = config.linux.security_context
    assert (context.run_as_user.value, context.run_as_group.value) == (1000, 2000)
    assert (context.privileged, context.readonly_rootfs, config.tty) == (True, True, True)
    resources = config.linux.resources
    assert (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period) == (64 << 20, 50_000, 100_000)
    assert (config.working_dir, config.stop_signal, dict(config.labels)) == ("/w", pb.SIGINT, {"k": "v"})
    assert (pod.hostname, pod.metadata.name, pod.metadata.namespace) == ("h", "web", "default")
    assert pod.log_directory == f"{fake.directory}/default_web_{pod.metadata.uid}"
    namespaces = pod.linux.security_context.namespace_options
    assert (namespaces.network, namespaces.pid) == (pb.NODE, pb.POD)


def test_an_environment_variable_may_come_from_ours(fake, holdfast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "value")
    request = asked(fake, holdfast, "-e", "OURS", "-u", "nobody", "busybox")
    assert request.config.envs[0].value == "value"
    assert request.config.linux.security_context.run_as_username == "nobody"
    assert request.config.metadata.name.startswith("busybox-")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-v", "nonsense"), ("-v", "/a:/b:rx"), ("--mount", "type=tmpfs,target=/x"), ("-m", "lots"), ("-u", "a:b"),
        ("-e", "=x"), ("--stop-signal", "NOPE"), ("--name", "a/../b"), ("-i",), ("-it",), ("-d", "--rm"),
        ("--network", "moon"), ("--cpus", "many"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(fake, holdfast: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = holdfast("run", *arguments, "busybox")
    assert (status, out, err.count("\n")) == (125, "", 1)
    assert err.startswith("holdfast: ")
    assert not fake.pods


def test_the_foreground_shows_the_log_and_ends_with_its_status(fake, holdfast: Run) -> None:
    fake.exit_on_start = 3
    assert holdfast("run", "--name", "x", "busybox") == (3, "hello\n", "")
    assert list(fake.pods) == ["a" * 64]


def test_rm_takes_pod_and_logs_along(fake, holdfast: Run) -> None:
    fake.exit_on_start = 0
    assert holdfast("run", "--rm", "--name", "x", "busybox").status == 0
    assert not fake.pods
    assert not list(fake.directory.glob("default_x_*"))


def test_a_detached_run_is_removed_by_rmp_with_its_logs(fake, holdfast: Run) -> None:
    assert holdfast("run", "-d", "--name", "x", "busybox").out == f"{'b' * 64}\n"
    assert list(fake.directory.glob("default_x_*"))
    assert holdfast("rmp", "-f", "x").out == "x\n"
    assert not list(fake.directory.glob("default_x_*"))


def test_logs_of_others_are_left_alone(fake, holdfast: Run) -> None:
    fake.add("1", "theirs")
    logs = fake.directory / "default_theirs_uid-theirs"
    logs.mkdir()
    holdfast("rmp", "-f", "theirs")
    assert logs.exists()


@pytest.mark.parametrize("method", ["RunPodSandbox", "CreateContainer", "StartContainer"])
def test_what_fails_is_undone(fake, holdfast: Run, method: str) -> None:
    fake.fail[method] = (grpc.StatusCode.INVALID_ARGUMENT, "cannot do it: no")
    assert holdfast("run", "-d", "busybox") == (125, "", "holdfast: cannot do it: no\n")
    assert not fake.pods


def test_a_missing_image_is_pulled(fake, holdfast: Run) -> None:
    asked(fake, holdfast, "other/image")
    assert fake.last(node_pb2.NodePullRequest).image == "other/image"
    fake.asked.clear()
    asked(fake, holdfast, "busybox")
    assert not any(isinstance(one, node_pb2.NodePullRequest) for one in fake.asked)
    status, _, err = holdfast("run", "--pull", "never", "other/image")
    assert (status, "--pull=never" in err) == (125, True)
