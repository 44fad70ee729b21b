"""The command line and image pulls, against a real daemon and a real registry."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from image import build_busybox_image
from kit.node import BIN, IMAGE, Node, until
from kit.registry import push, registry

from holdfast.proto import runtime_v1_pb2 as pb


@pytest.fixture(autouse=True)
def clean(life: Node) -> Iterator[None]:
    yield
    for pod in life.pods():
        life.remove_pod(pod.id)


def test_run_in_the_foreground_ends_with_the_commands_status(life: Node) -> None:
    done = life.cli("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert not life.pods()
    assert not life.leftovers()


def test_run_with_its_options(life: Node) -> None:
    (life.base / "volume").mkdir(exist_ok=True)
    volume = f"{life.base}/volume"
    done = life.cli(
        "run", "--rm", "--name", "all", "-e", "A=1", "-v", f"{volume}:/v",
        "--mount", f"type=bind,source={volume},target=/w,readonly", "-w", "/tmp", "-u", "1000:1000",
        "--hostname", "inside", "--read-only", "-m", "64MiB", "--cpus", "0.5",
        IMAGE, "sh", "-c", "echo $A $(id -u) $(hostname) $(pwd); ls -d /v /w",
    )  # fmt: skip
    assert done.stdout == "1 1000 inside /tmp\n/v\n/w\n"


def test_detached_through_its_life(life: Node) -> None:
    container_id = life.cli("run", "-d", "--name", "web", "-l", "tier=front", IMAGE, "sh", "-c", COUNT).stdout.strip()
    assert life.cli("ps", "-q").stdout.strip() == container_id
    listing = life.cli("ps").stdout.splitlines()
    assert listing[0].split() == ["CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD", "ID", "POD"]
    assert "Running" in listing[1] and "web" in listing[1]
    assert json.loads(life.cli("ps", "-o", "json").stdout)["containers"][0]["id"] == container_id
    assert yaml.safe_load(life.cli("pods", "-o", "yaml").stdout)["items"][0]["metadata"]["name"] == "web"
    until(lambda: "2\n" in life.cli("logs", "web").stdout)
    assert life.cli("logs", "--tail", "1", "web").stdout.count("\n") == 1
    assert life.cli("exec", "web", "echo", "hi").stdout == "hi\n"
    assert life.cli("exec", container_id[:12], "sh", "-c", "exit 9", check=False).returncode == 9
    assert json.loads(life.cli("inspect", "web").stdout)["status"]["labels"] == {"tier": "front"}
    assert life.cli("rm", "web", check=False).stderr.count("hint") == 1
    assert life.cli("stop", "-t", "0", "web").stdout == "web\n"
    assert "Exited" in life.cli("ps", "-a").stdout
    assert life.cli("ps").stdout.count("\n") == 1
    life.cli("rm", "web")
    life.cli("stopp", "web")
    assert "NotReady" in life.cli("pods").stdout
    life.cli("rmp", "web")
    assert life.cli("pods").stdout.count("\n") == 1


COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"


def test_logs_are_followed_to_the_end(life: Node) -> None:
    life.cli("run", "-d", "--name", "short", IMAGE, "sh", "-c", "for n in 1 2 3; do echo $n; sleep 0.2; done")
    assert life.cli("logs", "-f", "short").stdout == "1\n2\n3\n"


def background(life: Node, *arguments: str) -> subprocess.Popen[str]:
    command = life.command(*arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_interrupt_stops_a_foreground_run(life: Node) -> None:
    script = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
    with background(life, "run", "--rm", IMAGE, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert (process.stdout.read(), process.wait()) == ("bye\n", 4)
    assert not life.pods()


def test_following_goes_on_when_the_daemon_is_killed(life: Node) -> None:
    life.cli("run", "-d", "--name", "count", IMAGE, "sh", "-c", COUNT)
    with background(life, "logs", "-f", "count") as process:
        assert process.stdout is not None
        numbers = [int(process.stdout.readline())]
        life.restart()
        numbers.append(int(process.stdout.readline()))
        life.cli("stop", "-t", "0", "count")
        numbers += map(int, process.stdout.read().split())
        assert process.wait() == 0
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == life.container_log(life.containers()[0].id).count(b"\n")


def test_rmp_takes_the_logs_of_run_along(life: Node) -> None:
    life.cli("run", "-d", "--name", "logged", IMAGE, "sleep", "100")
    directory = Path(life.status(life.containers()[0].id).log_path).parent
    assert directory.is_dir()
    life.cli("rmp", "-f", "logged")
    assert not directory.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("start", "nobody"), 1, "holdfast: cannot find container 'nobody': there is none\n"),
        (("inspect", "nobody"), 1, "holdfast: cannot find 'nobody'"),
        (("image", "rm", "no/such"), 1, "holdfast: cannot remove image 'no/such'"),
        (("run", "--pull", "never", "no/such"), 125, "holdfast: cannot run 'no/such'"),
        (("run", "-v", "nonsense", IMAGE), 125, "holdfast: cannot use --volume 'nonsense'"),
    ],
)
def test_errors_are_one_line(life: Node, arguments: tuple[str, ...], status: int, text: str) -> None:
    done = life.cli(*arguments, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(text)


def test_without_a_daemon() -> None:
    command = [str(BIN / "holdfast"), "--socket", "/nonexistent.sock", "ps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "holdfast: cannot reach the daemon at /nonexistent.sock (hint: is holdfastd running?)\n"


def test_node_verbs(life: Node) -> None:
    assert "RuntimeReady" in life.cli("info").stdout
    assert f'cgroup_root = "{life.cgroup}"' in life.cli("config", "show").stdout
    assert "Daemon:" in life.cli("version").stdout
    assert "pods and" in life.cli("recovery").stdout
    assert "_HOLDFAST_COMPLETE" in life.cli("completion", "bash").stdout


def test_names_are_completed(life: Node) -> None:
    life.cli("run", "-d", "--name", "complete-me", IMAGE, "sleep", "100")
    environment = {
        **os.environ,
        "_HOLDFAST_COMPLETE": "bash_complete",
        "COMP_WORDS": "holdfast stop comp",
        "COMP_CWORD": "2",
    }
    environment["HOLDFAST_SOCKET"] = str(life.socket)

    def completed() -> str:
        command = [str(BIN / "holdfast")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    until(lambda: "complete-me" in completed(), "the name: a shell waits for it for no longer than a second")


def test_images(life: Node) -> None:
    listing = life.cli("image", "ls").stdout
    assert "docker.io/test/busybox" in listing
    image_id = json.loads(life.cli("image", "inspect", IMAGE).stdout)["status"]["id"]
    assert life.cli("image", "ls", "-q").stdout.strip() == image_id
    usage = life.images("ImageFsInfo", pb.ImageFsInfoRequest()).image_filesystems[0]
    assert usage.used_bytes.value > 1 << 20
    assert usage.inodes_used.value > 100


def test_pull_run_and_remove(life: Node, tmp_path: Path) -> None:
    with registry() as host:
        digest = push(
            host, "some/app", "v1", build_busybox_image(tmp_path, "x/app:v1", Cmd=["/bin/echo", "from the registry"])
        )
        name = f"{host}/some/app"
        assert life.cli("image", "pull", f"{name}:v1").stdout.strip() == f"{name}:v1"
        assert life.cli("run", "--rm", f"{name}:v1").stdout == "from the registry\n"
        by_digest = pb.PullImageRequest(image=pb.ImageSpec(image=f"{name}@{digest}"))
        image_id = life.images("PullImage", by_digest).image_ref
        status = life.images("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image=f"{name}:v1"))).image
        assert (status.id, list(status.repo_digests)) == (image_id, [f"{name}@{digest}"])
        missing = life.cli("image", "pull", f"{name}:no-such-tag", check=False)
        assert missing.returncode == 1
        assert "does not have it" in missing.stderr
        life.restart()
        assert life.cli("run", "--rm", f"{name}:v1").stdout == "from the registry\n"
        life.cli("image", "rm", f"{name}:v1")
        assert name not in life.cli("image", "ls").stdout


def test_an_image_in_use_may_be_removed_and_its_container_goes_on(life: Node, tmp_path: Path) -> None:
    life.import_image(build_busybox_image(tmp_path, "test/used:1", Env=["PATH=/bin", "X=1"]))
    container_id = life.cli("run", "-d", "--name", "user", "test/used:1", "sleep", "1000").stdout.strip()
    life.cli("image", "rm", "test/used:1")
    assert life.exec(container_id, ["/bin/echo", "still here"]).stdout == b"still here\n"
    life.restart()
    assert life.exec(container_id, ["/bin/echo", "still here"]).stdout == b"still here\n"


def test_ps_starts_quickly_and_imports_little(life: Node) -> None:
    """What a listing must not load; the time itself is a matter for bench/."""
    code = (
        "import sys; from holdfast.cli.main import root\n"
        f"root.main(['--socket', {str(life.socket)!r}, 'ps'], standalone_mode=False)\n"
        "bad = {'httpx', 'apsw', 'rich.progress', 'yaml', 'google.protobuf.json_format'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    nothing = [sys.executable, "-c", "import grpc, click"]
    best, least = (min(timed(command) for _ in range(5)) for command in (life.command("ps"), nothing))
    assert best < 4 * least, (best, least)  # a bound for a broken import only


def timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return time.monotonic() - began
