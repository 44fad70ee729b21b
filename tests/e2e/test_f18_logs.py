"""F18: a log that cannot be written is no reason to wait. Nobody stalls, every line is in the log or counted in it."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from kit import disk
from kit.node import SECONDS, Node, until

from holdfast.linux import mount
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

PAD = "x" * 1000  # so that a second without a reader fills the pipe
PRINTER = f"""
i=0
while [ ! -e /beat/stop ]; do
    while [ -e /beat/pause ]; do touch /beat/$1.paused; usleep 10000; done
    k=0
    while [ $k -lt 9 ]; do k=$((k+1)); i=$((i+1)); echo $i {PAD}; done
    i=$((i+1)); echo $i {PAD} >&2
    echo $i > /beat/$1.new; mv /beat/$1.new /beat/$1
    usleep 6000
done
"""
RECORD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) F (.*)")
LOST = re.compile(r"(\d+) log lines \((\d+) bytes\) of (stdout|stderr)")
STALL = 2000  # lines of one while the other prints none: about two seconds
PIPE = 1 << 20
LATE = 8.0  # seconds by which even a busy machine has done what takes a moment


@pytest.fixture
def place(life: Node) -> Iterator[Path]:
    """Where a sick log is: a small filesystem of its own."""
    directory = life.base / "disk"
    directory.mkdir()
    with disk.small("ext4", directory) as one:
        yield one
    (directory / "mounted").rmdir()
    (directory / "disk").unlink()
    directory.rmdir()


@dataclass
class Pod:
    """A pod with the log of "sick" on the small filesystem, and that of "well" on another."""

    node: Node
    id: str
    logs: Path
    beats: Path
    sick: Path

    def run(self, script: str, name: str) -> str:
        mounts = [pb.Mount(host_path=str(self.beats), container_path="/beat")]
        config = self.node.container_config(["/bin/sh", "-c", script, "sh", name], name, mounts=mounts)
        config.log_path = f"{name}/0.log"
        container_id = self.node.create(self.id, config)
        self.node.start_container(container_id)
        return container_id

    def count(self, name: str) -> int:
        """The heartbeat: how many lines it has printed."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.beats / name).read_text())
        return 0

    def watch(self, seconds: float) -> int:
        """The most that one of them has printed while the other did not print, on the way.

        A slow machine gets more time for "sick" to print what a pipe does not hold.
        """
        began, enough = time.monotonic(), self.count("sick") + PIPE // len(PAD) + 1
        pairs = (("sick", "well"), ("well", "sick"))
        seen = {name: (self.count(name), self.count(other)) for name, other in pairs}
        longest = 0
        while (took := time.monotonic() - began) < seconds or (self.count("sick") < enough and took < SECONDS):
            for name, other in pairs:
                count, others = self.count(name), self.count(other)
                if count != seen[name][0]:
                    seen[name] = count, others
                longest = max(longest, others - seen[name][1])
            time.sleep(0.01)
        return longest

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody prints, and what was printed is in the logs and on their disks."""
        (self.beats / "pause").touch()
        until(lambda: (self.beats / "sick.paused").exists() and (self.beats / "well.paused").exists(), "a pause")
        until(lambda: f" {self.count('sick')} ".encode() in self.sick.read_bytes(), "the log to be complete")
        os.sync()
        yield
        (self.beats / "pause").unlink()


@pytest.fixture
def pod(life: Node, place: Path) -> Iterator[Pod]:
    config = life.pod_config()
    logs, beats = Path(config.log_directory), place.parent / "beats"
    beats.mkdir()
    logs.mkdir(parents=True)
    (logs / "sick").symlink_to(place)
    made = Pod(life, life.run_pod(config), logs, beats, place / "0.log")
    yield made
    if life.process is not None and life.process.poll() is not None:
        life.start()
    life.remove_pod(made.id)
    subprocess.run(["rm", "-r", str(beats)], check=True)
    until(lambda: not _others(life.leftovers()), f"nothing to be left, but there is {life.leftovers()}")


def _others(left: list[str]) -> list[str]:
    return [one for one in left if not one.endswith("/mounted")]


def _numbers(log: Path) -> tuple[dict[str, list[int]], dict[str, tuple[int, int]], list[str]]:
    """Of each stream what was printed, and what was counted in how many lines and bytes; and the markers."""
    numbers: dict[str, list[int]] = {"stdout": [], "stderr": []}
    lost = {"stdout": (0, 0), "stderr": (0, 0)}
    markers = []
    text = log.read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        found = RECORD.fullmatch(line)
        assert found, f"not a whole record: {line[:100]!r}"
        _, stream, said = found.groups()
        if said.startswith("holdfast: lost "):
            markers.append(said)
            for lines, size, whose in LOST.findall(said):
                lost[whose] = lost[whose][0] + int(lines), lost[whose][1] + int(size)
        else:
            number, pad = said.split(" ")
            assert pad == PAD
            numbers[stream].append(int(number))
    return numbers, lost, markers


def assert_every_line_is_there_or_counted(log: Path, last: int) -> list[str]:
    """A shim that is slow completes its log when the end is known. Returns the markers."""
    deadline = time.monotonic() + LATE
    while True:
        try:
            return _all_there_or_counted(log, last)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _all_there_or_counted(log: Path, last: int) -> list[str]:
    numbers, lost, markers = _numbers(log)
    for stream, found in numbers.items():
        printed = [number for number in range(1, last + 1) if (number % 10 == 0) is (stream == "stderr")]
        assert found == sorted(set(found))
        missing = set(printed) - set(found)
        assert lost[stream] == (len(missing), sum(len(f"{number} {PAD}\n") for number in missing)), stream
        assert len(found) + len(missing) == len(printed)
    return markers


# -- what may befall the filesystem of a log: a context in which it has


@contextlib.contextmanager
def full(pod: Pod) -> Iterator[None]:
    disk.fill(pod.sick.parent)
    yield
    (pod.sick.parent / "hog").unlink()


@contextlib.contextmanager
def immutable(pod: Pod) -> Iterator[None]:
    """As in containerd#12462."""
    subprocess.run(["chattr", "+i", pod.sick], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", pod.sick], check=True)


@contextlib.contextmanager
def read_only(pod: Pod) -> Iterator[None]:
    """K5: the kernel has found an error and writes no more. What comes back is the disk, repaired and mounted anew."""
    place = pod.sick.parent
    image = place.parent / "disk"
    mount.mount("", place, "", mount.MS_REMOUNT, "errors=remount-ro")
    source = next(entry.source for entry in mount.mountinfo() if entry.target == str(place))
    with pod.paused():
        Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error").write_text("1")
    yield
    subprocess.run(["umount", "--lazy", place], check=True)
    copy = image.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    subprocess.run(["e2fsck", "-fy", copy], check=False, capture_output=True)
    copy.rename(image)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)


@pytest.mark.parametrize(
    ("befalls", "seconds", "daemon"),
    [(full, 5.0, "up"), (full, 5.0, "dead"), (read_only, 2.0, "up"), (immutable, 2.0, "up")],
    ids=["full", "full-and-no-daemon", "read-only", "immutable"],
)
def test_f18_a_container_never_waits_for_its_log(
    pod: Pod, befalls: Callable[[Pod], contextlib.AbstractContextManager[None]], seconds: float, daemon: str
) -> None:
    containers = [pod.run(PRINTER, name) for name in ("sick", "well")]
    until(lambda: min(pod.count("sick"), pod.count("well")) > 500, "them to print")
    if daemon == "dead":
        pod.node.kill()
    with befalls(pod):
        before = pod.count("sick")
        stalled = pod.watch(seconds)
        during = pod.count("sick") - before
    until(lambda: b"holdfast: lost" in pod.sick.read_bytes(), "the log to go on", LATE)
    after = pod.count("sick")
    until(lambda: pod.count("sick") > after + 500, "more")
    (pod.beats / "stop").touch()
    if daemon == "dead":
        pod.node.start()
    assert [pod.node.exited(one).exit_code for one in containers] == [0, 0]
    markers = assert_every_line_is_there_or_counted(pod.sick, pod.count("sick"))
    assert not assert_every_line_is_there_or_counted(pod.logs / "well/0.log", pod.count("well"))
    assert stalled < STALL
    assert during * len(PAD) > PIPE, "too few lines to show anything"
    assert befalls is full or len(markers) == 1  # a disk that fills up has room for a marker here and there


def test_f18_the_end_of_a_container_is_not_delayed_and_its_marker_comes_later(pod: Pod) -> None:
    """Its task is gone by then; the shim that is there for the pod says what there is to say."""
    one = pod.run(f"{PRINTER} exit 7", "sick")
    until(lambda: pod.count("sick") > 100, "it to print")
    with full(pod):
        before = pod.count("sick")
        until(lambda: pod.count("sick") > before + 100, "it to print in vain")
        (pod.beats / "stop").touch()
        began = time.monotonic()
        assert pod.node.exited(one).exit_code == 7
        took = time.monotonic() - began
        assert f" {pod.count('sick')} x" not in pod.sick.read_text()
    until(lambda: pod.sick.read_text().rstrip().endswith("No space left on device"), "the marker")
    assert_every_line_is_there_or_counted(pod.sick, pod.count("sick"))
    assert took < LATE
    (worker,) = (worker for worker in keeper.workers(pod.node.state) if worker.id == pod.id)
    until(lambda: str(pod.sick) not in _open_files(worker.pid), "the log to be let go of")


def _open_files(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by now
            found.add(os.readlink(path))
    return found


def test_f18_a_pod_that_ends_meanwhile_says_elsewhere_what_its_log_lacks(pod: Pod) -> None:
    pod.run(PRINTER, "sick")
    until(lambda: pod.count("sick") > 100, "it to print")
    with immutable(pod):
        before = pod.count("sick")
        until(lambda: pod.count("sick") > before + 100, "it to print in vain")
        pod.node.remove_pod(pod.id)
    said = (pod.node.state / "keeper.log").read_text()
    assert re.search(rf"{pod.logs}/sick/0.log: .* holdfast: lost \d+ log lines", said)


def test_f18_a_log_that_cannot_be_reopened_is_reopened_when_it_can_be(pod: Pod) -> None:
    one = pod.run(PRINTER, "sick")
    until(lambda: pod.count("sick") > 100, "it to print")
    rotated = pod.sick.with_suffix(".old")
    pod.sick.rename(rotated)
    with full(pod):
        with pytest.raises(grpc.RpcError) as refused:
            pod.node.call("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=one))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "No space left on device" in refused.value.details()
        before = pod.count("sick")
        until(lambda: pod.count("sick") > before + 100, "it to print in vain")
        assert not pod.sick.exists()
        for path in pod.sick.parent.glob("inode-*"):
            path.unlink()
    until(lambda: pod.sick.exists() and pod.sick.stat().st_size > PIPE, "the log to go on")
    (pod.beats / "stop").touch()
    assert pod.node.exited(one).exit_code == 0
    with rotated.open("ab") as both:
        both.write(pod.sick.read_bytes())
    assert_every_line_is_there_or_counted(rotated, pod.count("sick"))


def test_f18_a_frozen_disk_is_waited_for_by_the_pipe(pod: Pod) -> None:
    """Nobody can be spared a write that the kernel does not end, but a container has its megabyte."""
    one = pod.run(f"{PRINTER}", "sick")
    until(lambda: pod.count("sick") > 100, "it to print")
    subprocess.run(["fsfreeze", "-f", pod.sick.parent], check=True)
    try:
        before = pod.count("sick")
        until(lambda: pod.count("sick") > before + 500, "it to go on")
    finally:
        subprocess.run(["fsfreeze", "-u", pod.sick.parent], check=True)
    (pod.beats / "stop").touch()
    assert pod.node.exited(one).exit_code == 0
    assert not assert_every_line_is_there_or_counted(pod.sick, pod.count("sick"))
