"""The main job on real input: containers outlive a SIGKILL of their daemon and are found exactly as they were.

One pod, three containers: A created, B running (prints a counter every 100 ms and touches a heartbeat file), C exited
with 7. The daemon is killed, stays away for three seconds and is started again. Needs root; no network. Exits
non-zero unless every claim it prints was checked.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from holdfast.linux import cgroup, files, mount
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

sys.path.insert(0, str(Path(__file__).parent))
from image import build_busybox_image

BIN = Path(sys.executable).parent
OUTAGE_SECONDS = 3.0
COUNT = 'n=0; while :; do n=$((n+1)); echo "count $n"; date +%s.%N > /data/heartbeat; sleep 0.1; done'
STATES = {0: "CREATED", 1: "RUNNING", 2: "EXITED", 3: "UNKNOWN"}
console = Console(width=110, highlight=False)


class Failed(Exception):
    """A claim that did not hold."""


def claim(holds: bool, text: str) -> None:
    if not holds:
        raise Failed(text)
    console.print(f"  [green]ok[/green]  {text}")


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)


@dataclass
class Demo:
    """A daemon in a directory of its own."""

    base: Path
    cgroup_root: str
    settings: str = ""  # more lines of its configuration
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.base / "holdfast.sock"

    def start(self) -> float:
        """Start the daemon as a user would. Returns the seconds until it lists containers."""
        config = self.base / "config.toml"
        config.write_text(f'cgroup_root = "{self.cgroup_root}"\nlog_root = "{self.base}/logs"\n{self.settings}')
        command = [str(BIN / "holdfastd"), "--root", f"{self.base}/root", "--state", f"{self.base}/state"]
        command += ["--socket", str(self.socket), "--config", str(config)]
        began = time.monotonic()
        with open(self.base / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self.answers, "the daemon to answer")
        return time.monotonic() - began

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Failed(f"holdfastd ended with {self.process.returncode}: {self.log_tail()}")
        try:
            with self.stub() as stub:
                stub.ListContainers(pb.ListContainersRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return True

    @contextlib.contextmanager
    def stub(self) -> Iterator[RuntimeServiceStub]:
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield RuntimeServiceStub(channel)

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=20)

    def log_tail(self) -> str:
        return (self.base / "daemon.log").read_text(errors="replace")[-2000:]


def statuses(demo: Demo, ids: dict[str, str]) -> dict[str, dict[str, str]]:
    """State, pid, exit code and times of each container, as the CRI tells them."""
    import json

    found = {}
    with demo.stub() as stub:
        for name, container_id in ids.items():
            reply = stub.ContainerStatus(pb.ContainerStatusRequest(container_id=container_id, verbose=True), timeout=15)
            status, info = reply.status, json.loads(reply.info["info"])
            over = status.state == pb.CONTAINER_EXITED
            found[name] = {
                "state": STATES[status.state],
                "pid": str(info["pid"] or "-"),
                "exit code": str(status.exit_code) if over else "-",
                "started": str(status.started_at or "-"),
                "finished": str(status.finished_at or "-"),
            }
    return found


def show(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> None:
    table = Table(title="before the SIGKILL, and after the restart")
    for column in ("container", "when", *next(iter(before.values()))):
        table.add_column(column)
    for name in before:
        table.add_row(name, "before", *before[name].values())
        table.add_row("", "after", *after[name].values(), end_section=True)
    console.print(table)


def make_containers(demo: Demo, pod: pb.PodSandboxConfig) -> tuple[str, dict[str, str]]:
    """The pod and its three containers: A created, B running, C exited with 7."""
    data = demo.base / "data"
    data.mkdir()
    commands = {"A": "echo A runs; sleep 1000", "B": COUNT, "C": "exit 7"}
    ids = {}
    with demo.stub() as stub:
        pod_id = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=pod), timeout=30).pod_sandbox_id
        for name, script in commands.items():
            config = pb.ContainerConfig(
                metadata=pb.ContainerMetadata(name=name),
                image=pb.ImageSpec(image="demo/busybox:latest"),
                command=["/bin/sh", "-c", script],
                log_path=f"{name}.log",
                mounts=[pb.Mount(container_path="/data", host_path=str(data))],
            )
            request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
            ids[name] = stub.CreateContainer(request, timeout=30).container_id
        for name in ("B", "C"):
            stub.StartContainer(pb.StartContainerRequest(container_id=ids[name]), timeout=30)
    until(lambda: statuses(demo, ids)["C"]["state"] == "EXITED", "C to exit")
    until(lambda: (data / "heartbeat").exists() and len(counts(demo.base / "logs" / "B.log")) >= 10, "B to count to 10")
    return pod_id, ids


def counts(log: Path) -> list[int]:
    """The numbers that B printed, from its CRI log."""
    return [int(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines() if " count " in line]


def check_recovered(demo: Demo, before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    """How many containers are exactly as they were."""
    recovered = [name for name in before if before[name] == after[name]]
    claim(after["B"]["pid"] == before["B"]["pid"], f"B kept its pid, {after['B']['pid']}")
    claim(after["C"]["exit code"] == "7", "C still says 7")
    return len(recovered)


def check_log(demo: Demo, at_kill: int) -> None:
    log = demo.base / "logs" / "B.log"
    seen = counts(log)
    until(lambda: counts(log)[-1] > seen[-1], "B to go on printing")
    numbers = counts(log)
    claim(numbers == list(range(1, len(numbers) + 1)), f"B's log has every number from 1 to {len(numbers)}, no gap")
    expected = at_kill + int(OUTAGE_SECONDS / 0.1 * 0.5)
    claim(len(numbers) > expected, f"B went on printing while the daemon was away ({at_kill} lines at the kill)")


def check_start(demo: Demo, ids: dict[str, str]) -> None:
    with demo.stub() as stub:
        stub.StartContainer(pb.StartContainerRequest(container_id=ids["A"]), timeout=30)
    claim(statuses(demo, ids)["A"]["state"] == "RUNNING", "A, created before the kill, was started after it")


def run(demo: Demo) -> int:
    image = build_busybox_image(demo.base, "demo/busybox:latest")
    demo.start()
    subprocess.run(
        [str(BIN / "holdfast"), "--socket", str(demo.socket), "image", "import", str(image)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    pod = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="demo", namespace="default", uid="demo-uid"),
        log_directory=str(demo.base / "logs"),
        linux=pb.LinuxPodSandboxConfig(),
    )
    pod_id, ids = make_containers(demo, pod)
    before = statuses(demo, ids)
    at_kill = len(counts(demo.base / "logs" / "B.log"))
    console.print(
        f"SIGKILL to holdfastd (pid {demo.process.pid if demo.process else 0}); {OUTAGE_SECONDS:g} s without it"
    )
    demo.end(signal.SIGKILL)
    time.sleep(OUTAGE_SECONDS)
    seconds = demo.start()
    console.print(f"holdfastd is back and lists its containers {seconds * 1000:.0f} ms after exec")
    after = statuses(demo, ids)
    show(before, after)
    recovered = check_recovered(demo, before, after)
    check_log(demo, at_kill)
    check_start(demo, ids)
    with demo.stub() as stub:
        stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)
        stub.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)
        claim(not stub.ListContainers(pb.ListContainersRequest(), timeout=10).containers, "all of it was removed")
    return recovered


def leftovers(demo: Demo) -> list[str]:
    """Processes, mounts, namespaces and cgroups that still belong to the demo."""
    left = [f"mount {entry.target}" for entry in mount.mountinfo() if str(demo.base) in str(entry.target)]
    left += [f"cgroup {demo.cgroup_root}"] if cgroup.exists(demo.cgroup_root) else []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(demo.base) in (entry / "cmdline").read_text():
                left.append(f"process {entry.name}: {(entry / 'cmdline').read_text().replace(chr(0), ' ').strip()}")
    return left


def end_keeper(demo: Demo) -> None:
    """The keeper outlives its daemons on purpose; a demo ends it too."""
    from holdfast.runtime.keeper import shut_down

    shut_down(demo.base / "state")


def main() -> int:
    if os.geteuid() != 0:
        print("demo: needs root", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="hf-demo-"))
    demo = Demo(base, f"/{base.name}")
    try:
        recovered = run(demo)
        demo.end(signal.SIGTERM)
        end_keeper(demo)
        until(lambda: not leftovers(demo), "processes, mounts and cgroups to be gone")
        claim(not leftovers(demo), "no process, mount, namespace or cgroup is left")
    except (Failed, grpc.RpcError, subprocess.SubprocessError) as exc:
        print(f"demo: FAILED: {exc}\nleft: {leftovers(demo)}\n{demo.log_tail()}", file=sys.stderr)
        print(f"demo: kept for you to look at: {base}", file=sys.stderr)
        return 1
    files.remove_tree(base)
    print(f"demo: {recovered} of 3 containers recovered")
    return 0 if recovered == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
