"""F31: the agent is killed at every step of making a pod and its volumes, finding them again, and taking them down.

The pod has a volume of every kind, and in those that are its own somebody has mounted what is not. Each crash point
below src/holdfast/agent is passed by one of five operations. CI plays a sample of them in the lives of two
pods; `make soak` plays each point, at the first, a middle and the last time, with the agent alone and with the daemon
killed. A failure names the combination: replay it, or the sample, with

    HOLDFAST_CRASH='down:volume.discarded:1:both' (or patterns of such, with -m soak)       HOLDFAST_SEED=1f00ba44
"""

import contextlib
import os
import signal
import zlib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from kit import disk
from kit.agent import IMAGE, Agent, running_agent
from kit.crash import Combination, every_agent_point, shuffled
from kit.node import Node, until
from shares import digest

from holdfast.agent.volumes.paths import Paths
from holdfast.linux import loop, mount, process

SEED = os.environ.get("HOLDFAST_SEED", "1")
ONLY = os.environ.get("HOLDFAST_CRASH", "*")
SAMPLE = 3  # points of an operation that CI plays
QUIET_SECONDS = 2.5  # no point is passed for so long: the operation is over
OWN = ("plain", "sized", "memory")  # volumes that are the pod's own
QUOTAS = frozenset({"volume.limited"})  # points that only an agent passes whose root has project quotas
ELSEWHERE = ("agent.log.", "agent.checkpoint")  # of logs' rotation and of checkpoints, which have tests of their own

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, uid: NAME-uid, labels: {app: NAME}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 12345}
  containers:
  - name: NAME
    image: IMAGE
    command: [sh, -c, "trap 'exit 0' TERM; while sleep 0.1; do :; done"]
    env: [{name: SAID, valueFrom: {configMapKeyRef: {name: NAME, key: said}}}]
    volumeMounts:
    - {name: plain, mountPath: /plain}
    - {name: plain, mountPath: /plain-part, subPath: a/b}
    - {name: sized, mountPath: /sized}
    - {name: sized, mountPath: /sized-part, subPathExpr: $(SAID)}
    - {name: memory, mountPath: /memory}
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /conf-part, subPath: said}
    - {name: key, mountPath: /key}
    - {name: all, mountPath: /all}
    - {name: me, mountPath: /me}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /host-part, subPath: part}
    - {name: image, mountPath: /image, readOnly: true}
  volumes:
  - {name: plain, emptyDir: {}}
  - {name: sized, emptyDir: {sizeLimit: 4Mi}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: conf, configMap: {name: NAME}}
  - {name: key, secret: {secretName: NAME}}
  - name: all
    projected:
      sources:
      - {configMap: {name: NAME}}
      - {secret: {name: NAME}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: me, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: host, hostPath: {path: HOST, type: DirectoryOrCreate}}
  - {name: image, image: {reference: IMAGE}}
---
{kind: ConfigMap, metadata: {name: NAME}, data: {said: SAYS}}
---
{kind: Secret, metadata: {name: NAME}, stringData: {hidden: secret}}
"""
LOOK = """
set -e
for d in plain plain-part sized sized-part memory host host-part; do test -d /$d; done
for d in plain plain-part sized sized-part memory; do : > /$d/probe; rm /$d/probe; done
cat /conf/said /all/said /key/hidden /all/hidden /all/labels /me/name
test -f /conf-part -a -x /image/bin/busybox
"""


class Stage:
    """One pod "every" that is made and ended again and again, and one, "other", that is never to notice anything."""

    def __init__(self, agent: Agent, base: Path) -> None:
        self.agent = agent
        self.paths = Paths(agent.root)
        self.host, self.canary = base / "host", base / "canary"
        self.canary.mkdir()
        for number in range(10):
            (self.canary / f"d{number % 2}").mkdir(exist_ok=True)
            (self.canary / f"d{number % 2}" / f"file-{number}").write_text(f"{number} of somebody else\n")
        self.whole = digest(self.canary)
        self.says = "v1"
        self.marked = False
        self.write("other", "v1")
        self.other = self.agent.until(lambda: agent.running("other"), "the other pod")
        self.other_pid = agent.node.pid(self.other)

    def write(self, name: str, says: str) -> None:
        text = MANIFEST.replace("NAME", name).replace("IMAGE", IMAGE).replace("HOST", f"{self.host}/{name}")
        self.agent.write(f"{name}.yaml", text.replace("SAYS", says))

    # -- operations: each is begun, and is over when it is as it should be

    def begin(self, operation: str) -> None:
        match operation:
            case "up":
                self.write("every", self.says)
            case "again":
                self.agent.start()
            case "change":
                self.says = f"v{int(self.says[1:]) + 1}"
                self.write("every", self.says)
            case "crash":
                run = self.agent.running("every")
                os.kill(self.agent.node.pid(run), signal.SIGKILL)
                self.agent.until(lambda: self.agent.running("every") != run, "its end")
            case "down":
                (self.agent.manifests / "every.yaml").unlink()

    def prepare(self, operation: str) -> None:
        """The state that an operation begins from."""
        if operation == "up" or (operation == "crash" and self.is_there()):  # a new pod: no backoff
            self.see_down()
        if operation != "up":
            self.see_up()
        if operation == "again":
            self.agent.end()

    def is_there(self) -> bool:
        return (self.agent.manifests / "every.yaml").exists()

    def see_up(self) -> None:
        """It runs once, with all that it is to have, and with what was in its volumes."""
        if not self.is_there():
            self.begin("up")
            self.marked = False
        run = self.agent.until(lambda: self.agent.running("every"), "the pod")
        self.agent.until(lambda: self.agent.shown("every")[2:] == ["1/1", "Running"], "the pod to be shown as it is")
        assert self.agent.running("every") == run
        said = f'{self.says}{self.says}secretsecretapp="every"every'

        def sees() -> bool:
            done = self.agent.node.exec(run, ["/bin/sh", "-c", LOOK])
            return bool((done.stdout.decode(), done.exit_code) == (said, 0))

        self.agent.until(sees, "all volumes to be as they should")
        assert len(self.agent.runs("every")) <= 2
        assert len([one for one in self.agent.node.pods() if one.metadata.name == "every"]) == 1
        targets = [one.target for one in mount.mountinfo() if one.target.startswith(f"{self.paths.pod('every-uid')}/")]
        canaries = {f"{place}/in" for place in self.own()}
        assert [one for one, many in Counter(targets).items() if many > 1 and one not in canaries] == []
        for place in self.own():
            if self.marked:
                assert (place / "mark").read_text() == place.name
            (place / "mark").write_text(place.name)
            assert (place.stat().st_gid, place.stat().st_mode & 0o2777) == (12345, 0o2777)
        self.marked = True
        self.mount_canaries()

    def see_down(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.begin("down")
        self.agent.until(lambda: not self.left(), "nothing to be left")
        assert loop.device_of(self.paths.image("every-uid", "sized")) is None
        assert (self.host / "every/part").is_dir() or not self.host.joinpath("every").exists(), "the host's stays"
        self.marked = False

    def see(self, operation: str) -> None:
        (self.see_down if operation == "down" else self.see_up)()
        self.nothing_is_harmed()

    def own(self) -> list[Path]:
        """Places of the pod's own volumes, as far as they are there."""
        uid = "every-uid"
        found = [self.paths.volume(uid, "empty-dir", name) for name in OWN] + [self.paths.sized(uid, "sized")]
        return [place for place in found if place.is_dir()]

    def left(self) -> list[str]:
        node, ours = self.agent.node, "every"
        left = [f"pod {one.id}" for one in node.pods() if one.metadata.name == ours]
        left += [f"container {one.id}" for one in node.containers() if one.metadata.name == ours]
        left += [f"mount {one.target}" for one in mount.mountinfo() if f"{self.agent.root}/pods/every" in one.target]
        left += [f"mount {one.target}" for one in mount.mountinfo() if f"{self.agent.root}/trash" in one.target]
        for place in (self.paths.pods, self.paths.trash, self.agent.logs):
            with contextlib.suppress(FileNotFoundError):
                left += [os.fspath(path) for path in place.iterdir() if "other-uid" not in path.name]
        return left

    # -- what others do, and what is not to happen to them

    def mount_canaries(self) -> None:
        """In each of the pod's own volumes, and in whatever is on its way out, somebody mounts what is his."""
        trash = list(self.paths.trash.iterdir()) if self.paths.trash.is_dir() else []
        mounted = {one.target for one in mount.mountinfo()}
        for place in (*self.own(), *trash):
            if f"{place}/in" not in mounted:
                with contextlib.suppress(OSError):  # what is being deleted may go at this very moment
                    (place / "in").mkdir(exist_ok=True)
                    mount.bind(self.canary, place / "in")

    def nothing_is_harmed(self) -> None:
        assert digest(self.canary) == self.whole
        assert self.agent.running("other") == self.other
        assert self.agent.node.pid(self.other) == self.other_pid
        assert process.state(self.other_pid) not in ("", "Z")

    # -- killing

    def trace(self, operation: str) -> Counter[str]:
        """The crash points that it passes, and how often."""
        self.prepare(operation)
        trace = self.agent.inject / "trace"
        trace.write_text("")
        self.begin(operation)
        self.see(operation)
        size = [0, 0.0]

        def is_quiet() -> bool:
            now = trace.stat().st_size
            clock = os.times().elapsed
            if now != size[0]:
                size[:] = [now, clock]
            return clock - size[1] > QUIET_SECONDS

        if operation == "again":
            until(is_quiet, "quiet")
        lines = trace.read_text().splitlines()
        trace.unlink()
        return Counter(name for line in lines if not (name := line.split()[1]).startswith(("fail-", "hang-")))

    def kill_at(self, one: Combination) -> bool:
        """Whether it came to that point. In the end it is as if nobody had been killed."""
        self.prepare(one.operation)
        armed, hit = (self.agent.inject / f"{one.point}{suffix}" for suffix in ("", ".hit"))
        armed.write_text(str(one.count))
        try:
            self.begin(one.operation)
            with contextlib.suppress(AssertionError):
                until(hit.exists, str(one), 15)
            was_hit = hit.exists()
            armed.unlink(missing_ok=True)
            if was_hit:
                self.strike(one.victim)
        finally:
            for path in (armed, hit):
                path.unlink(missing_ok=True)
        self.see(one.operation)
        return was_hit

    def strike(self, victim: str) -> None:
        self.agent.end(signal.SIGKILL)
        if victim == "both":
            self.agent.node.end(signal.SIGKILL)
        self.mount_canaries()
        if victim == "both":
            self.agent.node.start()
        self.agent.start()

    def die_at(self, operation: str, points: dict[str, int]) -> set[str]:
        """At each of some points in turn, at its n-th time, within one operation. Returns those that it came to."""
        self.prepare(operation)
        for point, count in points.items():
            (self.agent.inject / point).write_text(str(count))
        self.begin(operation)
        left, died = set(points), set()
        while left:
            hits = [point for point in left if (self.agent.inject / f"{point}.hit").exists()]
            if not hits and self.is_over(operation):
                break
            if hits:
                self.strike("agent" if len(died) % 2 else "both")
                died.update(hits)
                left.difference_update(hits)
        for point in left:
            (self.agent.inject / point).unlink(missing_ok=True)
        self.see(operation)
        return died

    def is_over(self, operation: str) -> bool:
        """As far as can be seen at a glance."""
        return not self.left() if operation == "down" else bool(self.agent.running("every"))


@pytest.fixture
def stage(shared: Node, tmp_path: Path) -> Iterator[Stage]:
    with running_agent(shared) as agent:
        yield Stage(agent, tmp_path)


@pytest.fixture
def stage_with_quotas(shared: Node, tmp_path: Path) -> Iterator[Stage]:
    image = disk.with_quotas("xfs", tmp_path)
    with disk.mounted(image, tmp_path / "root", "prjquota") as root, running_agent(shared, root) as agent:
        yield Stage(agent, tmp_path)


OPERATIONS = ("up", "again", "change", "crash", "down")


def test_f31_killed_at_a_sample_of_all_points(stage: Stage) -> None:
    passed = {operation: stage.trace(operation) for operation in OPERATIONS}
    assert {point for one in passed.values() for point in one} == {
        point for point in every_agent_point() - QUOTAS if not point.startswith(ELSEWHERE)
    }
    for operation in ("up", "down"):
        taken = shuffled(sorted(passed[operation]), f"{SEED}:{operation}")[:SAMPLE]
        points = {point: 1 + zlib.crc32(f"{SEED}:{point}".encode()) % passed[operation][point] for point in taken}
        died = stage.die_at(operation, points)
        print(operation, points, died)
        # What was done before another point is not done again: the n-th time may not come.
        assert died >= {point for point, count in points.items() if count == 1}
    stage.see_down()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_f31_killed_at_every_point(stage: Stage) -> None:
    hits, missed = 0, []
    for operation in OPERATIONS:
        passed = stage.trace(operation)
        for one in combinations(operation, passed):
            print(one, flush=True)
            was_hit = stage.kill_at(one)
            hits += was_hit
            missed += [] if was_hit else [str(one)]
    stage.see_down()
    print(f"killed {hits} times; not passed again: {missed}")
    assert hits > len(missed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_f31_killed_at_every_point_of_a_quota(stage_with_quotas: Stage) -> None:
    passed = stage_with_quotas.trace("up")
    assert set(passed) >= QUOTAS
    for point in sorted(QUOTAS):
        for victim in ("agent", "both"):
            assert stage_with_quotas.kill_at(Combination("up", point, 1, victim))
    for point in ("volume.released", "volume.unmade"):
        assert stage_with_quotas.kill_at(Combination("down", point, 2, "agent"))
    stage_with_quotas.see_down()


def combinations(operation: str, passed: Counter[str]) -> list[Combination]:
    found = []
    for point, many in sorted(passed.items()):
        found += [Combination(operation, point, count, "agent") for count in sorted({1, many // 2 + 1, many})]
        found.append(Combination(operation, point, 1, "both"))
    return [one for one in found if fnmatch(str(one), ONLY)]
