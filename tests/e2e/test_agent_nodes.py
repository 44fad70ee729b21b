"""What the agent does with the machine: weights and limits of cgroups, users of pods, and a reboot."""

import signal
from pathlib import Path

from kit.agent import IMAGE, Agent, running_agent
from kit.boot import reboot
from kit.node import Node, until

from holdfast.agent.sync import users
from holdfast.agent.sync.convert import USERS
from holdfast.lifecycle.facts import detect
from holdfast.linux import cgroup, mount
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
SLEEP = 'command: [sh, -c, "trap exit TERM; while sleep 0.1; do :; done"]'


def manifest(name: str, containers: str, more: str = "hostNetwork: true") -> str:
    """Of YAML flow mappings."""
    spec = f"terminationGracePeriodSeconds: 1, {more}, containers: [{containers}]"
    return f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, uid: {name}}}, spec: {{{spec}}}}}"


def container(name: str, more: str = "") -> str:
    return f"{{name: {name}, image: '{IMAGE}', {SLEEP}, {more}}}"


def ready(there: Agent, *names: str) -> None:
    for name in names:
        there.until(lambda name=name: there.phase(name) == "Running", f"pod {name} to run")


def delete(there: Agent, *names: str) -> None:
    for name in names:
        (there.manifests / f"{name}.yaml").unlink()
    there.until(lambda: not there.left(), f"nothing to be left, but there is {there.left()}")


def value(path: str, controller: str, name: str) -> str:
    return (cgroup.read(path, controller, name) or "").strip()


def test_classes_weigh_what_their_pods_request(there: Agent) -> None:
    half = container("a", "resources: {requests: {cpu: 500m, memory: 16Mi}, limits: {cpu: 1, memory: 64Mi}}")
    whole = container("b", "resources: {limits: {cpu: 250m, memory: 32Mi}}")
    there.write("some.yaml", manifest("some", half))
    there.write("none.yaml", manifest("none", container("c")))
    there.write("all.yaml", manifest("all", whole))
    ready(there, "some", "none", "all")
    root = there.cgroup
    weight = lambda path: value(path, "cpu", "cpu.shares")  # noqa: E731
    until(lambda: weight(f"{root}/burstable") == "512", "the burstable class to weigh half a processor")
    until(lambda: weight(f"{root}/besteffort") == "2", "the class of the others to weigh nothing")
    assert weight(f"{root}/burstable/podsome") == "512"
    assert value(f"{root}/burstable/podsome", "cpu", "cpu.cfs_quota_us") == "100000"
    assert value(f"{root}/burstable/podsome", "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert weight(f"{root}/podall") == "256"
    assert weight(f"{root}/besteffort/podnone") == "2"
    scores = {name: Path(f"/proc/{there.node.pid(there.running(name))}/oom_score_adj").read_text() for name in "abc"}
    assert (int(scores["b"]), int(scores["c"])) == (max(-997, detect(1024).oom_score_adj_min), 1000)
    assert 2 < int(scores["a"]) < 1000
    there.write("more.yaml", manifest("more", half.replace("name: a", "name: d")))
    until(lambda: weight(f"{root}/burstable") == "1024", "another one to add its weight")
    (there.manifests / "some.yaml").unlink()
    until(lambda: weight(f"{root}/burstable") == "512", "the weight to go with its pod")
    delete(there, "none", "all", "more")


OWN = """hostUsers: false, securityContext: {runAsUser: 1000, fsGroup: 2000}, volumes: [{name: d, emptyDir: {}},
  {name: m, emptyDir: {medium: Memory}}, {name: s, secret: {secretName: s, defaultMode: 256}}]"""
MOUNTS = "volumeMounts: [{name: d, mountPath: /d}, {name: m, mountPath: /m}, {name: s, mountPath: /s}]"
SECRET = "---\n{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {key: word}}\n"


def first_of(there: Agent, name: str) -> int:
    """The first of the ids that a container has of its own, as the kernel says."""
    line = Path(f"/proc/{there.node.pid(there.running(name))}/uid_map").read_text().split()
    assert (line[0], line[2]) == ("0", str(USERS))
    return int(line[1])


def test_pods_with_users_of_their_own(there: Agent) -> None:
    for name in ("a", "b"):
        there.write(f"{name}.yaml", manifest(name, container(name, MOUNTS), OWN) + f"\n{SECRET if name == 'a' else ''}")
    ready(there, "a", "b")
    ranges = {name: first_of(there, name) for name in ("a", "b")}
    assert sorted(ranges.values()) == [users.FIRST, users.FIRST + USERS]
    script = "id -u; cat /s/key; echo; for x in d m; do echo k > /$x/file || exit 1; stat -c %u:%g /$x/file /$x; done"
    said = there.node.exec(there.running("a"), ["/bin/sh", "-c", f"{script}; stat -c %u:%g /etc/hosts"])
    assert said.stdout.split() == [
        *(b"1000", b"word", b"1000:2000", b"0:2000", b"1000:2000", b"0:2000", b"0:0"),
    ], said.stderr
    (disk,) = there.root.glob("pods/a/volumes/*/d/file")
    assert (disk.stat().st_uid, disk.stat().st_gid) == (1000, 2000), "on the disk they are what they are inside"
    there.restart()
    ready(there, "a", "b")
    there.write("c.yaml", manifest("c", container("c"), "hostUsers: false"))
    ready(there, "c")
    assert {name: first_of(there, name) for name in ("a", "b")} == ranges
    assert first_of(there, "c") == users.FIRST + 2 * USERS
    (there.manifests / "a.yaml").unlink()
    until(lambda: not (there.root / "pods" / "a").exists(), "the first to be gone")
    there.write("e.yaml", manifest("e", container("e"), "hostUsers: false"))
    ready(there, "e")
    assert first_of(there, "e") == ranges["a"], "what is released is given out again"
    delete(there, "b", "c", "e")


BOOTS = """
apiVersion: v1
kind: Pod
metadata: {name: boots, uid: boots}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: IMAGE
    command: [sh, -c, "echo first >> /d/told"]
    volumeMounts: &mounts
    - {name: d, mountPath: /d}
    - {name: l, mountPath: /l}
    - {name: m, mountPath: /m}
  - {name: beside, image: IMAGE, restartPolicy: Always, SLEEP}
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "for x in d l m; do echo main >> /$x/told; done; trap exit TERM; while sleep 0.1; do :; done"]
    volumeMounts: *mounts
  volumes:
  - {name: d, emptyDir: {}}
  - {name: l, emptyDir: {sizeLimit: 8Mi}}
  - {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
""".replace("IMAGE", IMAGE).replace("SLEEP", SLEEP)


def words(there: Agent, volume: str) -> list[str]:
    return [
        word for told in there.root.glob(f"pods/boots/volumes/*/{volume}/told") for word in told.read_text().split()
    ]


def test_a_reboot(shared: Node) -> None:
    """Each container is started again once; what was on disk is kept, what was in memory is fresh."""
    with running_agent(shared) as there:
        there.write("boots.yaml", BOOTS)
        there.until(lambda: there.running("main") and words(there, "m") == ["main"], "the pod to run")
        there.end(signal.SIGKILL)
        reboot(shared)
        for entry in sorted(mount.mountinfo(), key=lambda entry: entry.target, reverse=True):
            if Path(entry.target).is_relative_to(there.root):
                mount.detach(entry.target)
        there.start()
        there.until(lambda: there.told("boots"), "the agent to be there before its runtime")
        shared.start()
        there.until(lambda: there.phase("boots") == "Running", "the pod to run again")
        there.until(lambda: words(there, "d") == ["first", "main"] * 2, "what was on disk to be kept")
        there.until(lambda: words(there, "l") == ["main"] * 2, "what has a limit, too")
        there.until(lambda: words(there, "m") == ["main"], "what was in memory to be fresh")
        for name in ("first", "beside", "main"):
            again = lambda name=name: there.container("boots", name)["restartCount"] == 1  # noqa: E731
            there.until(again, f"the agent to have seen the second run of {name}")
        last = there.container("boots", "main")["lastState"]["terminated"]
        assert (last["reason"], last["exitCode"]) == ("NodeRebooted", 255)
        assert len([one for one in shared.pods() if one.state == pb.SANDBOX_READY]) == 1
        delete(there, "boots")
