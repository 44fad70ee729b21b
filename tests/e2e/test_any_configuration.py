"""Whatever a kubelet puts into its configurations: it works or is refused in words, and nothing else is touched.

One daemon gets hundreds of generated pods and containers, sound ones and senseless ones, each run as far as it goes.
HOLDFAST_SEED plays others than CI does; the seed is printed.
"""

import contextlib
import os
import random
import re
import socket
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kit import configurations
from kit.configurations import Example, Surroundings
from kit.fields import named_field
from kit.invariants import check
from kit.node import Node, node

from holdfast.proto import runtime_v1_pb2 as pb

SEED = int(os.environ.get("HOLDFAST_SEED", "") or "20261121", 16)
BATCH = 25  # after so many, which begin with other fields than the rest, the node is looked over
KEPT = 20  # containers that one kept pod has, before it makes place for another
COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
}
# What only the kernel can judge (a limit that it does not take, a program that is none) the OCI runtime finds out.
BY_THE_RUNTIME = REFUSED | {grpc.StatusCode.UNKNOWN}
NAMES_ANOTHER_THING = re.compile(r"runtime_handler: |image: |cannot \w+ .+: ")
UNFORESEEN = re.compile(r"\b\w*(Error|Exception|Expired|Interrupt): |\[Errno ")
# Of /proc/sys what nobody sets: counters, and what is another one each time it is read.
COUNTERS = re.compile(r"random/|ns_last_pid|(dentry|inode)-|inode-nr|file-nr|aio-nr|pty/nr|nf_conntrack_count|cpu_freq")


@pytest.mark.timeout(1500)  # one after the other, they take three minutes of a machine that does nothing else
def test_500_configurations() -> None:
    play(500)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_5000_configurations(runtime: str) -> None:
    play(5000, runtime)


def play(count: int, runtime: str = "crun") -> None:
    print(f"HOLDFAST_SEED={SEED:x}")
    base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
    with (
        node(runtime, base, seccomp_root=str(base), cdi_spec_dirs=[str(base / "cdi")]) as one,
        bystander(one) as stranger,
    ):
        around = Surroundings(base / "around", one.cgroup, stranger)
        around.prepare()
        before, trial = host(), Trial(one, around)
        batches = count // BATCH
        fields = sorted(configurations.FIELDS)
        random.Random(SEED).shuffle(fields)
        for number in range(batches):
            batch(trial, configurations.examples(around, fields[number % len(fields) :: batches]), SEED + number)
            trial.look_over()
        print(trial.summary())
        assert trial.played >= count
        assert trial.outcomes["ran"] >= count // 10
        assert len(trial.touched) > 0.9 * len(fields)
        assert host() == before


def batch(trial: "Trial", examples: st.SearchStrategy[Example], number: int) -> None:
    """So many examples. What fails is told as it is: to find a smaller one would take more pods than it is worth."""

    @seed(number)
    @settings(max_examples=BATCH, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(example=examples)
    def any_configuration(example: Example) -> None:
        trial.play(example)

    any_configuration()


@contextlib.contextmanager
def bystander(one: Node) -> Iterator[str]:
    """The id of a container that counts, and must not notice anything."""
    pod_id = one.run_pod(one.pod_config("bystander", network=pb.POD))
    container_id = one.run(pod_id, COUNT, network=pb.POD)
    before, pid = one.status(container_id), one.pid(container_id)
    yield container_id
    assert (one.status(container_id), one.pid(container_id)) == (before, pid)
    numbers = [int(line.split()[3]) for line in one.container_log(container_id).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    one.remove_pod(pod_id)


def host() -> dict[str, object]:
    """What of this host no pod may change: its names, parameters, mounts and devices."""
    return {"name": (socket.gethostname(), os.uname().nodename)} | parameters() | mounts() | devices()


def parameters() -> dict[str, object]:
    found: dict[str, object] = {}
    for path in Path("/proc/sys").rglob("*"):
        if not path.is_dir() and path.stat().st_mode & stat.S_IWUSR and not COUNTERS.search(str(path)):
            with contextlib.suppress(OSError):  # some can only be written, others want more than being root
                found[str(path)] = path.read_bytes()
    return found


def mounts() -> dict[str, object]:
    """Those of this test are looked at by the node itself, others' come and go."""
    lines = map(os.fsdecode, Path("/proc/self/mountinfo").read_bytes().splitlines())
    ours = [line for line in lines if not re.search(r"/(hf-|holdfast-|pytest-of-)", line)]
    return {f"mount {line.split()[4]}": line.split()[2:] for line in ours}


def devices() -> dict[str, object]:
    found: dict[str, object] = {}
    for name in os.listdir("/dev"):
        if not name.startswith(("loop", "pts", "shm")):
            status = os.lstat(f"/dev/{name}")
            found[f"/dev/{name}"] = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
    return found


class Trial:
    """Plays examples on a node, and counts what has become of them."""

    def __init__(self, one: Node, around: Surroundings) -> None:
        self.node = one
        self.around = around
        self.resting = sorted(one.leftovers())  # what the bystander needs
        self.played = 0
        self.touched: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self._kept: dict[str, tuple[str, pb.PodSandboxConfig, int]] = {}
        self._daemon = one.process

    def play(self, example: Example) -> None:
        self.played += 1
        self.touched.update(path for path, _ in (*example.pod_changes, *example.changes))
        try:
            if example.pod == "own":
                self._with_own_pod(example)
            else:
                self._with_kept_pod(example)
        except Over as over:
            self.outcomes[over.args[0]] += 1
        else:
            self.outcomes["ran"] += 1
        assert self.node.process is self._daemon
        assert self._daemon is not None and self._daemon.poll() is None, "the daemon has ended"

    def _with_own_pod(self, example: Example) -> None:
        config = configurations.pod_config(self.around, "plain", self.played)
        for path, new in example.pod_changes:
            configurations.change(config, path, new, self.around)
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=example.handler)
        pod_id = self._may_refuse("run", lambda: self.node.call("RunPodSandbox", request).pod_sandbox_id, config)
        try:
            self._container(pod_id, config, example)
        finally:
            self.node.remove_pod(pod_id)

    def _with_kept_pod(self, example: Example) -> None:
        if example.pod not in self._kept:
            config = configurations.pod_config(self.around, example.pod, self.played)
            self._kept[example.pod] = self.node.run_pod(config), config, 0
        pod_id, config, used = self._kept[example.pod]
        self._kept[example.pod] = pod_id, config, used + 1
        try:
            self._container(pod_id, config, example)
            assert self.ready(pod_id), "the pod has not outlived it"
        finally:
            if used + 1 >= KEPT or not self.ready(pod_id):
                self.node.remove_pod(pod_id)
                del self._kept[example.pod]

    def ready(self, pod_id: str) -> bool:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        return bool(self.node.call("PodSandboxStatus", request).status.state == pb.SANDBOX_READY)

    def _container(self, pod_id: str, pod: pb.PodSandboxConfig, example: Example) -> None:
        config = configurations.container_config(pod, self.played)
        for path, new in example.changes:
            configurations.change(config, path, new, self.around)
        container_id = self._may_refuse("create", lambda: self.node.create(pod_id, config), config)
        try:
            self._life(container_id)
        finally:
            self.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))

    def _life(self, container_id: str) -> None:
        """Start, look, execute, stop."""
        assert self.node.status(container_id).state == pb.CONTAINER_CREATED
        try:
            self._may_refuse("start", lambda: self.node.start_container(container_id), None)
        except Over:
            status = self.node.status(container_id)
            assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
            raise
        assert self.node.status(container_id).state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)
        with contextlib.suppress(Over):  # it may have ended, or have no such program in reach
            self._may_refuse("exec", lambda: self.node.exec(container_id, ["/bin/true"]), None)
        self.node.stop_container(container_id)
        assert self.node.status(container_id).state == pb.CONTAINER_EXITED

    def _may_refuse(self, verb: str, act: Callable[[], Any], config: Any) -> Any:
        """Do it; raises Over when it is refused as it may be."""
        try:
            return act()
        except grpc.RpcError as failure:
            code, text = failure.code(), failure.details()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:  # who hangs is gone when somebody looks
            print(
                subprocess.run(
                    ["ps", "-eo", "pid,ppid,stat,wchan:32,args", "--forest"], capture_output=True, text=True
                ).stdout
            )
        before = verb in ("run", "create")
        assert code in (REFUSED if before else BY_THE_RUNTIME), f"{verb}: {code.name}: {text}"
        assert not UNFORESEEN.search(text), f"{verb}: {code.name}: {text}"
        if before:
            named = named_field(text, config.DESCRIPTOR) or NAMES_ANOTHER_THING.match(text)
            assert named, f"{verb}: it does not say what is wrong: {text}"
        else:
            assert len(text) > 10, f"{verb}: it does not say what is wrong: {text}"
        raise Over(f"{verb}: {code.name}")

    def look_over(self) -> None:
        """Nothing is left but the bystander, and nobody owns what should not be."""
        for pod_id, _, _ in self._kept.values():
            self.node.remove_pod(pod_id)
        self._kept.clear()
        check(self.node)
        assert sorted(self.node.leftovers()) == self.resting
        assert len(self.node.pods()) == len(self.node.containers()) == 1
        assert self.node.works(self.around.stranger)

    def summary(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.outcomes.most_common())
        return f"{self.played} configurations, {len(self.touched)} of {len(configurations.FIELDS)} fields: {counts}"


class Over(Exception):
    """An example that was refused, and how."""
