"""Every operation is stopped at every crash point; daemon, shim or both are killed there; then all must come right.

CI takes a sample that touches every point; `make soak` takes all. A failure names the combination: replay it with
HOLDFAST_CRASH=operation:point:count:victim (or patterns of such), or the whole sample with HOLDFAST_SEED.
"""

import contextlib
import errno
import gzip
import json
import os
import shutil
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import grpc
import pytest
from image import build_busybox_image
from kit import checkpoints, crash, images, invariants, streams
from kit.crash import Combination, Inject
from kit.node import IMAGE, Node, until
from kit.registry import push, registry
from kit.tools import CRIU

from holdfast.checkpoint import sealed
from holdfast.linux import cgroup, files, process
from holdfast.model.spec import new_id
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SEED = os.environ.get("HOLDFAST_SEED", "1")
HIT_SECONDS = 15.0
LATE_SECONDS = 2.0
ACT_SECONDS = 40.0
AGAIN_SECONDS = 40.0
LEAST = 60  # combinations in a sample

TRAP = "trap 'exit 3' TERM; > /ready; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; > /ready; while :; do sleep 0.02; done"
COUNT = "n=0; while :; do n=$((n+1)); echo $n >> /n; sleep 0.02; done"

FOREIGN = "runc-v2"

PLUGIN = """#!/bin/sh
case $CNI_COMMAND in
ADD) : > {held}/$CNI_CONTAINERID.{name}; echo '{{"cniVersion": "1.0.0", "interfaces": [], "ips": []}}';;
DEL) rm -f {held}/$CNI_CONTAINERID.{name};;
esac
"""


WANTED = 300  # cpu shares
HAS_CRIU = shutil.which(CRIU) is not None
OF_GVISOR = {"shim.forgetting"}  # see test_gvisor_crashes.py
OF_CRIU = (
    "checkpoint.*",
    "restore.*",
    "seal.*",
    "shim.dump*",
    "shim.fr[eo]*z*",
    "shim.restor*",
    "shim.held",
    "shim.revived",
)


def shares(path: str, otherwise: int) -> int:
    """What is in a cgroup of v1; with v2, where it is a weight, what it is hoped to be."""
    if (top := cgroup.hierarchies().get("cpu")) is None:
        return otherwise
    return int((top / path.strip("/") / "cpu.shares").read_text())


class Stage:
    """What the operations work on: a node with a pod that must never notice anything, and a registry."""

    def __init__(self, host: str) -> None:
        base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
        settings: dict[str, Any] = {"cni_conf_dir": str(base / "net.d"), "cni_bin_dirs": [str(base / "cni")]}
        settings |= {"runtimes": {FOREIGN: {"shim": "containerd-shim-runc-v2"}}, "checkpoints": True, "criu_path": CRIU}
        self.node = Node(base=base, inject=True, **settings)
        self.attached = self._network()
        self.node.start()
        self.node.busybox()
        self.inject = Inject(self.node)
        self.node.remove_pod(self.node.run_pod(handler=FOREIGN))  # what the first one makes for all of them is no trace
        if HAS_CRIU:  # and so of the first restore
            one = Restore().prepare(self)
            Restore().act(self, one)
            self.node.remove_pod(one.pod)
            files.unlink(Restore().archive(self))
        self.archive = self._extra_image(host)
        self.reference = f"{host}/crash:1"
        self.bystander = self.node.run_pod(self.node.pod_config("bystander"))
        self.witness = self.node.run(self.bystander, TRAP, "witness")
        self.pid = self.node.pid(self.witness)
        self.spared = self.inject.shims()

    def _network(self) -> Path:
        """Two plugins that attach nothing, but keep a file for each attachment. Returns where."""
        held = self.node.base / "attached"
        for place in (held, self.node.base / "net.d", self.node.base / "cni"):
            place.mkdir()
        for name in ("first", "second"):
            plugin = self.node.base / "cni" / name
            plugin.write_text(PLUGIN.format(held=held, name=name))
            plugin.chmod(0o755)
        chain = {"cniVersion": "1.0.0", "name": "crash", "plugins": [{"type": "first"}, {"type": "second"}]}
        (self.node.base / "net.d" / "10-crash.conflist").write_text(json.dumps(chain))
        return held

    def _extra_image(self, host: str) -> Path:
        """Busybox and one more layer, in the registry and as an archive; the layer is long enough to be cut."""
        layer = gzip.compress(images.tar([images.entry("extra", os.urandom(300_000))]), 1, mtime=0)
        (self.node.base / "extra").mkdir()
        archive = build_busybox_image(self.node.base / "extra", "test/crash:1", extra_layer=layer)
        push(host, "crash", "1", archive)
        return archive

    def unmoved(self) -> None:
        """The bystander runs on as if nothing had been."""
        status = self.node.status(self.witness)
        assert status.state == pb.CONTAINER_RUNNING, f"the bystander is {status}"
        assert self.node.pid(self.witness) == self.pid
        assert process.state(self.pid) not in ("", "Z")

    def clear(self) -> None:
        """Remove whatever the operation has left to be removed, and see that nothing else is left."""
        for pod in self.node.pods():
            if pod.id != self.bystander:
                patiently(lambda pod=pod: self.node.remove_pod(pod.id))  # type: ignore[misc]
        for image in self.node.images("ListImages", pb.ListImagesRequest()).images:
            if not any("busybox" in tag for tag in image.repo_tags):
                self.node.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=image.id)))

    def sessions(self) -> list[str]:
        return [one.id for one in keeper.workers(self.node.state) if one.kind == "streamer"]

    def leftovers(self) -> list[str]:
        pods = {pod.id for pod in self.node.pods()}
        attached = [name for name in os.listdir(self.attached) if name.partition(".")[0] not in pods]
        return attached + [
            one for one in self.node.leftovers() if self.bystander not in one and self.witness not in one
        ]

    def close(self) -> None:
        self.node.purge()


@dataclass
class Target:
    """One pod for one round, with a container in it."""

    node: Node
    config: pb.PodSandboxConfig
    handler: str = ""
    pod: str = ""
    container: str = ""
    facts: dict[str, object] = field(default_factory=dict)
    users: pb.UserNamespace | None = None
    stdin: bool = False

    def with_pod(self) -> "Target":
        """In spite of a keeper that was killed the moment before."""
        patiently(self.run_pod)
        return self

    def run_pod(self) -> None:
        self.pod = self.node.run_pod(self.config, self.handler)

    def container_config(self, script: str = TRAP, name: str = "main") -> pb.ContainerConfig:
        """With an image and with ids that are mapped, so that something is staged for its start."""
        ids = [pb.IDMapping(container_id=0, host_id=0, length=1 << 16)]
        mounts = [
            pb.Mount(container_path="/image", image=pb.ImageSpec(image=IMAGE), image_sub_path="etc", readonly=True),
            pb.Mount(container_path="/mapped", host_path=f"{self.node.base}/map", uidMappings=ids, gidMappings=ids),
        ]
        config = self.node.container_config(script, name, pid=pb.POD, mounts=mounts, stdin=self.stdin)
        if self.users is not None:
            config.linux.security_context.namespace_options.userns_options.CopyFrom(self.users)
        return config

    def created(self, script: str = TRAP) -> "Target":
        self.with_pod()
        self.container = self.node.create(self.pod, self.container_config(script))
        return self

    def running(self, script: str = TRAP) -> "Target":
        self.created(script)
        self.node.start_container(self.container)
        self.facts["pid"] = self.node.pid(self.container)
        if "/ready" in script:
            self.ready()
        return self

    def ready(self) -> None:
        """Wait until its script has set its trap."""
        until(Path(f"/proc/{self.node.pid(self.container)}/root/ready").exists, "the trap to be set")

    def state(self) -> int:
        return int(self.node.status(self.container).state)

    def names(self) -> list[str]:
        return [one.metadata.name for one in self.node.containers() if one.pod_sandbox_id == self.pod]


class Operation:
    """What is prepared, what is cut off, what the client does about it, and what must be true then."""

    handler = ""

    def prepare(self, stage: Stage) -> Target:
        config = stage.node.pod_config(network=pb.POD, pid=pb.POD)
        return Target(stage.node, config, self.handler)

    def act(self, stage: Stage, target: Target) -> None:
        raise NotImplementedError

    def repeat(self, stage: Stage, target: Target) -> None:
        self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        pass


class Run(Operation):
    def act(self, stage: Stage, target: Target) -> None:
        target.run_pod()

    def check(self, stage: Stage, target: Target) -> None:
        same = [pod for pod in stage.node.pods() if pod.metadata == target.config.metadata]
        assert [(pod.id, pod.state) for pod in same] == [(target.pod, pb.SANDBOX_READY)]
        target.container = stage.node.create(target.pod, target.container_config("exit 5"))
        patiently(lambda: stage.node.start_container(target.container))
        assert stage.node.exited(target.container).exit_code == 5


class UsersRun(Run):
    """A pod with users of its own, whose containers' images are copied: the filesystem is made to leave no choice."""

    def prepare(self, stage: Stage) -> Target:
        (stage.node.inject / "fail-idmap-bind").write_text(f"1 {errno.EINVAL} 1000000000")
        target = super().prepare(stage)
        users = target.config.linux.security_context.namespace_options.userns_options
        for ids in (users.uids, users.gids):
            ids.add(host_id=300000, length=65536)
        target.users = users
        return target


class UsersCreate(UsersRun):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).with_pod()

    def act(self, stage: Stage, target: Target) -> None:
        target.container = stage.node.create(target.pod, target.container_config("id -u; exit 6"))

    def check(self, stage: Stage, target: Target) -> None:
        assert target.names() == ["main"]
        patiently(lambda: stage.node.start_container(target.container))
        assert stage.node.exited(target.container).exit_code == 6


class Create(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).with_pod()

    def act(self, stage: Stage, target: Target) -> None:
        target.container = stage.node.create(target.pod, target.container_config("exit 6"))

    def check(self, stage: Stage, target: Target) -> None:
        assert target.names() == ["main"]
        assert target.state() == pb.CONTAINER_CREATED
        patiently(lambda: stage.node.start_container(target.container))
        assert stage.node.exited(target.container).exit_code == 6


class Start(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).created()

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.start_container(target.container)

    def repeat(self, stage: Stage, target: Target) -> None:
        if target.state() != pb.CONTAINER_RUNNING:
            self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_RUNNING
        patiently(lambda: stage.node.exec(target.container, ["/bin/echo", "here"]))
        target.ready()
        patiently(lambda: stage.node.stop_container(target.container, 10))
        assert stage.node.exited(target.container).exit_code == 3


class Share(Start):
    """A container that is to see another one's processes."""

    def prepare(self, stage: Stage) -> Target:
        target = Operation.prepare(self, stage).with_pod()
        other = stage.node.run(target.pod, "sleep 1000", "target")
        config = target.container_config()
        config.linux.security_context.namespace_options.MergeFrom(pb.NamespaceOption(pid=pb.TARGET, target_id=other))
        target.container = stage.node.create(target.pod, config)
        return target


class Exec(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        found = stage.node.exec(target.container, ["/bin/sh", "-c", "echo out; exit 9"])
        assert (found.stdout, found.exit_code) == (b"out\n", 9)

    def check(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_RUNNING
        assert stage.node.pid(target.container) == target.facts["pid"]


class Session(Operation):
    """An exec as a session, by a client who asks anew when he is cut off."""

    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        with streams.Stream(self.url(stage, target), self.protocol) as stream:
            self.talk(stage, target, stream)

    protocol = streams.COMMAND

    def url(self, stage: Stage, target: Target) -> str:
        return streams.exec_url(stage.node, target.container, ["/bin/sh", "-c", "read line; echo out $line; exit 9"])

    def talk(self, stage: Stage, target: Target, stream: streams.Stream) -> None:
        stream.type("in\n")
        assert (stream.outcome(), stream.out()) == (9, "out in\n")

    def repeat(self, stage: Stage, target: Target) -> None:
        deadline = time.monotonic() + AGAIN_SECONDS
        while True:
            try:
                self.act(stage, target)
                return
            except (OSError, streams.Rejected, streams.Failed):  # its daemon, or its shim, went with it
                if time.monotonic() > deadline:
                    raise

    def check(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_RUNNING
        assert stage.node.pid(target.container) == target.facts["pid"]
        until(lambda: not stage.sessions(), "the session to be over")


class Terminal(Session):
    def url(self, stage: Stage, target: Target) -> str:
        return streams.exec_url(stage.node, target.container, ["/bin/sh"], tty=True)

    def talk(self, stage: Stage, target: Target, stream: streams.Stream) -> None:
        stream.resize(91, 19)
        stream.type("until [ \"$(stty size)\" = '19 91' ]; do sleep 0.02; done; exit 8\n")  # which may be read before
        assert stream.outcome() == 8


class Attach(Session):
    """The container says what it is told."""

    def prepare(self, stage: Stage) -> Target:
        target = Operation.prepare(self, stage)
        target.stdin = True
        return target.running("> /ready; while read line; do echo out $line; done; sleep 1000")

    def url(self, stage: Stage, target: Target) -> str:
        return streams.attach_url(stage.node, target.container)

    def talk(self, stage: Stage, target: Target, stream: streams.Stream) -> None:
        stream.type("in\n")
        stream.until_out("out in\n")


class Forward(Session):
    """Nobody listens at the port, and that is said."""

    protocol = streams.FORWARD

    def url(self, stage: Stage, target: Target) -> str:
        return streams.forward_url(stage.node, target.pod, 7001)

    def talk(self, stage: Stage, target: Target, stream: streams.Stream) -> None:
        stream.until(lambda: "refused" in stream.out(1), "the port to refuse")


class Update(Operation):
    """Whatever becomes of it, the limit that is told is the one in the cgroup."""

    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        limits = pb.LinuxContainerResources(cpu_shares=WANTED)
        request = pb.UpdateContainerResourcesRequest(container_id=target.container, linux=limits)
        stage.node.call("UpdateContainerResources", request)

    def repeat(self, stage: Stage, target: Target) -> None:
        until(lambda: "update" not in stage.node.info(target.container)["underWay"], "the update to be over")
        self.agree(stage, target)
        self.act(stage, target)

    def agree(self, stage: Stage, target: Target) -> None:
        told = stage.node.status(target.container).resources.linux.cpu_shares or 1024
        assert told == shares(f"{stage.node.cgroup}/{target.pod}/{target.container}", told)
        assert told in (WANTED, 1024)

    def check(self, stage: Stage, target: Target) -> None:
        self.agree(stage, target)
        assert stage.node.status(target.container).resources.linux.cpu_shares == WANTED


class UpdateCreated(Update):
    def prepare(self, stage: Stage) -> Target:
        return Operation.prepare(self, stage).created()

    def agree(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_CREATED

    def check(self, stage: Stage, target: Target) -> None:
        patiently(lambda: stage.node.start_container(target.container))
        super().agree(stage, target)
        assert stage.node.status(target.container).resources.linux.cpu_shares == WANTED


class UpdatePod(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        limits = pb.LinuxContainerResources(cpu_shares=WANTED)
        request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=target.pod, resources=limits)
        stage.node.call("UpdatePodSandboxResources", request)

    def repeat(self, stage: Stage, target: Target) -> None:
        until(lambda: not self.info(stage, target)["underWay"], "the update to be over")
        self.agree(stage, target)
        self.act(stage, target)

    def info(self, stage: Stage, target: Target) -> dict[str, Any]:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=target.pod, verbose=True)
        found: dict[str, Any] = json.loads(stage.node.call("PodSandboxStatus", request).info["info"])
        return found

    def agree(self, stage: Stage, target: Target) -> int:
        told = int(self.info(stage, target)["resources"].get("cpuShares", 1024))
        assert told == shares(f"{stage.node.cgroup}/{target.pod}", told)
        return told

    def check(self, stage: Stage, target: Target) -> None:
        assert self.agree(stage, target) == WANTED


class Stop(Operation):
    script, seconds, code = TRAP, 20, 3

    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running(self.script)

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.stop_container(target.container, self.seconds)

    def check(self, stage: Stage, target: Target) -> None:
        status = stage.node.status(target.container)
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, self.code)


class Kill(Stop):
    script, seconds, code = DEAF, 0, 137


class Exit(Operation):
    """A container that ends by itself."""

    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running("while [ ! -e /end ]; do sleep 0.02; done; exit 7")

    def act(self, stage: Stage, target: Target) -> None:
        root = Path(f"/proc/{target.facts['pid']}/root")
        if root.exists():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                (root / "end").touch()
        stage.node.exited(target.container)

    def check(self, stage: Stage, target: Target) -> None:
        assert stage.node.status(target.container).exit_code == 7


class AdoptedExit(Exit):
    """One whose shim has been killed before."""

    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage)
        stage.inject.kill_shim(target.pod)
        until(lambda: stage.node.works(target.container), "the pod to be adopted")
        return target


class Adopt(Operation):
    """The shim is killed, and its successor, or whoever else, while it takes over."""

    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        stage.inject.kill_shim(target.pod)

    def repeat(self, stage: Stage, target: Target) -> None:
        assert stage.node.exec(target.container, ["/bin/echo", "here"]).stdout == b"here\n"

    def check(self, stage: Stage, target: Target) -> None:
        assert stage.node.pid(target.container) == target.facts["pid"]
        patiently(lambda: stage.node.stop_container(target.container, 10))
        assert stage.node.exited(target.container).exit_code == 3


class Remove(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=target.container))

    def check(self, stage: Stage, target: Target) -> None:
        assert target.names() == []
        assert process.state(int(str(target.facts["pid"]))) in ("", "Z")


class StopPod(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=target.pod))

    def check(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_EXITED
        assert [pod.state for pod in stage.node.pods() if pod.id == target.pod] == [pb.SANDBOX_NOTREADY]


class RemovePod(Operation):
    def prepare(self, stage: Stage) -> Target:
        return super().prepare(stage).running()

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=target.pod))

    def check(self, stage: Stage, target: Target) -> None:
        assert target.names() == []
        assert not [pod for pod in stage.node.pods() if pod.id == target.pod]


class Pull(Operation):
    def act(self, stage: Stage, target: Target) -> None:
        stage.node.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=stage.reference)))

    def image(self, stage: Stage) -> str:
        return stage.reference

    def check(self, stage: Stage, target: Target) -> None:
        container = stage.node.run(target.with_pod().pod, "sha256sum /extra", image=self.image(stage))
        assert stage.node.exited(container).exit_code == 0
        with tarfile.open(stage.archive) as archive:
            assert archive.getnames()
        stage.node.remove_pod(target.pod)


class Import(Pull):
    def act(self, stage: Stage, target: Target) -> None:
        stage.node.import_image(stage.archive)

    def image(self, stage: Stage) -> str:
        return "test/crash:1"


class RemoveImage(Import):
    def prepare(self, stage: Stage) -> Target:
        stage.node.import_image(stage.archive)
        return super().prepare(stage)

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image="test/crash:1")))

    def check(self, stage: Stage, target: Target) -> None:
        found = stage.node.images("ListImages", pb.ListImagesRequest()).images
        assert not [image for image in found if "test/crash:1" in str(image.repo_tags)]


class Recover(Operation):
    """Recovery itself is stopped: with containers in every state, and an orphan to sweep."""

    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage).running()
        node = stage.node
        target.facts["created"] = node.create(target.pod, target.container_config("exit 8", "created"))
        target.facts["exited"] = node.run(target.pod, "exit 4", "exited")
        node.exited(str(target.facts["exited"]))
        node.kill()
        self.disturb(node)
        return target

    def disturb(self, node: Node) -> None:
        (node.state / "pods" / new_id()).mkdir()

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.start()
        until(lambda: crash.recovered(stage.node), "recovery to end")

    def repeat(self, stage: Stage, target: Target) -> None:
        until(lambda: crash.recovered(stage.node), "recovery to end")

    def check(self, stage: Stage, target: Target) -> None:
        node = stage.node
        assert sorted(target.names()) == ["created", "exited", "main"]
        assert node.pid(target.container) == target.facts["pid"]
        assert node.status(str(target.facts["exited"])).exit_code == 4
        patiently(lambda: node.start_container(str(target.facts["created"])))
        assert node.exited(str(target.facts["created"])).exit_code == 8


class Salvage(Recover):
    """Recovery that finds the store damaged."""

    def disturb(self, node: Node) -> None:
        os.truncate(node.root / "holdfast.db", 0)

    def check(self, stage: Stage, target: Target) -> None:
        super().check(stage, target)
        assert (stage.node.root / "quarantine").is_dir()
        files.remove_tree(stage.node.root / "quarantine")


class Checkpoint(Operation):
    """Of a container that counts: it goes on, whatever becomes of the archive, which is whole or not there."""

    handler = "runc"

    def prepare(self, stage: Stage) -> Target:
        target = Target(stage.node, stage.node.pod_config(**checkpoints.PRIVATE), self.handler).with_pod()
        target.container = stage.node.run(target.pod, COUNT, **checkpoints.PRIVATE)
        target.facts["pid"] = stage.node.pid(target.container)
        self.counts(stage, target)
        return target

    def act(self, stage: Stage, target: Target) -> None:
        checkpoints.checkpoint(stage.node, target.container, self.archive(stage))

    def repeat(self, stage: Stage, target: Target) -> None:
        if not self.archive(stage).exists():
            self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        assert stage.node.pid(target.container) == target.facts["pid"]
        self.counts(stage, target)
        archive = self.archive(stage)
        assert os.listdir(archive.parent) == [archive.name]
        sealed.unpack(archive, stage.node.base / "read", "container", 1 << 30)
        for path in (stage.node.base / "read", archive):
            files.remove_tree(path)

    def archive(self, stage: Stage) -> Path:
        return checkpoints.place(stage.node, "crash.tar")

    def counts(self, stage: Stage, target: Target) -> None:
        """What it has in memory and what it has on disk go on together, each number once."""
        path = Path(f"/proc/{stage.node.pid(target.container)}/root/n")
        found = lambda: [int(line) for line in path.read_text().splitlines()]  # noqa: E731
        until(path.exists, "the first number")
        at = len(found())
        until(lambda: len(found()) > at + 2, "the container to count on")
        numbers = found()
        assert numbers == list(range(1, 1 + len(numbers)))


class Restore(Checkpoint):
    """A container is made from an archive."""

    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage)
        checkpoints.checkpoint(stage.node, target.container, self.archive(stage))
        stage.node.remove_pod(target.pod)
        target.config = stage.node.pod_config(**checkpoints.PRIVATE)
        return target.with_pod()

    def act(self, stage: Stage, target: Target) -> None:
        target.container = checkpoints.create(stage.node, self.archive(stage), target.pod)

    def repeat(self, stage: Stage, target: Target) -> None:
        self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        assert target.names() == ["main"]
        assert target.state() == pb.CONTAINER_CREATED
        patiently(lambda: stage.node.start_container(target.container))
        self.ends(stage, target)

    def ends(self, stage: Stage, target: Target) -> None:
        self.counts(stage, target)
        patiently(lambda: stage.node.stop_container(target.container))
        assert stage.node.exited(target.container).exit_code == 137
        files.unlink(self.archive(stage))


class RestoreStart(Restore):
    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage)
        super().act(stage, target)
        return target

    def act(self, stage: Stage, target: Target) -> None:
        stage.node.start_container(target.container)

    def repeat(self, stage: Stage, target: Target) -> None:
        if target.state() == pb.CONTAINER_EXITED:  # a start that fails ends it, and a client makes another one
            status = stage.node.status(target.container)
            assert (status.exit_code, status.reason) == (128, "StartError")
            stage.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=target.container))
            super().act(stage, target)
        if target.state() != pb.CONTAINER_RUNNING:
            self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        assert target.state() == pb.CONTAINER_RUNNING
        self.ends(stage, target)


class RestoreAgain(RestoreStart):
    """An earlier start was cut off, so that what it may have written has to be taken back first."""

    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage)
        (stage.node.root / "restores" / target.container / "begun").touch()
        return target


class CheckpointPod(Checkpoint):
    """Of a pod with a volume, which is left running."""

    def prepare(self, stage: Stage) -> Target:
        target = Target(stage.node, stage.node.pod_config(**checkpoints.PRIVATE), self.handler).with_pod()
        volume = self.volumes(stage, target) / "kubernetes.io~empty-dir" / "scratch"
        volume.mkdir(parents=True)
        mounts = [pb.Mount(host_path=str(volume), container_path="/scratch")]
        target.container = stage.node.run(target.pod, f"> /scratch/file; {COUNT}", mounts=mounts, **checkpoints.PRIVATE)
        target.facts["pid"] = stage.node.pid(target.container)
        self.counts(stage, target)
        return target

    def act(self, stage: Stage, target: Target) -> None:
        checkpoints.checkpoint_pod(stage.node, target.pod, self.archive(stage), leave_running=True)

    def check(self, stage: Stage, target: Target) -> None:
        assert stage.node.pid(target.container) == target.facts["pid"]
        self.counts(stage, target)
        self.whole(stage, target)

    def whole(self, stage: Stage, target: Target) -> None:
        """The archive is, and nothing is beside it."""
        archive = self.archive(stage)
        assert os.listdir(archive.parent) == [archive.name]
        sealed.unpack(archive, stage.node.base / "read", "pod", 1 << 30)
        for path in (stage.node.base / "read", archive, self.volumes(stage, target).parents[1]):
            files.remove_tree(path)

    def volumes(self, stage: Stage, target: Target) -> Path:
        return stage.node.base / "pods" / target.config.metadata.uid / "volumes"


class StopByCheckpoint(CheckpointPod):
    """A pod that is not to be left running."""

    def act(self, stage: Stage, target: Target) -> None:
        checkpoints.checkpoint_pod(stage.node, target.pod, self.archive(stage))

    def repeat(self, stage: Stage, target: Target) -> None:
        if not self.archive(stage).exists():
            self.act(stage, target)
        stage.node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=target.pod))

    def check(self, stage: Stage, target: Target) -> None:
        assert [pod.state for pod in stage.node.pods() if pod.id == target.pod] == [pb.SANDBOX_NOTREADY]
        assert stage.node.exited(target.container).exit_code == 137
        self.whole(stage, target)


class RestorePod(CheckpointPod):
    """A pod of two is made of an archive that says that its volume is memory.

    Who gets no answer removes what there is.
    """

    def prepare(self, stage: Stage) -> Target:
        target = super().prepare(stage)
        stage.node.run(target.pod, COUNT, "second", **checkpoints.PRIVATE)
        checkpoints.checkpoint_pod(stage.node, target.pod, self.archive(stage))
        stage.node.remove_pod(target.pod)
        head = sealed.unpack(self.archive(stage), stage.node.base / "read", "pod", 1 << 30)
        head.about["volumes"][0].update(memory=True, size=1 << 20)
        sealed.write(self.archive(stage), stage.node.base / "read", "pod", head.about)
        for path in (stage.node.base / "read", self.volumes(stage, target).parents[1]):
            files.remove_tree(path)
        return target

    def act(self, stage: Stage, target: Target) -> None:
        target.pod = checkpoints.restore_pod(stage.node, self.archive(stage), name="restored")

    def repeat(self, stage: Stage, target: Target) -> None:
        for pod in stage.node.pods():
            if pod.metadata.name == "restored":
                stage.node.remove_pod(pod.id)
        self.act(stage, target)

    def check(self, stage: Stage, target: Target) -> None:
        found = {one.metadata.name: one.id for one in stage.node.containers() if one.pod_sandbox_id == target.pod}
        target.container = found.pop("second")
        self.counts(stage, target)
        [target.container] = found.values()
        assert stage.node.exec(target.container, ["ls", "/scratch"]).stdout == b"file\n"
        self.counts(stage, target)
        files.unlink(self.archive(stage))


class ForeignRun(Run):
    handler = FOREIGN


class ForeignStart(Start):
    handler = FOREIGN


class ForeignExit(Exit):
    handler = FOREIGN


class ForeignRemovePod(RemovePod):
    handler = FOREIGN


OPERATIONS: dict[str, Operation] = {
    "run": Run(), "create": Create(), "start": Start(), "share": Share(), "exec": Exec(), "update": Update(),
    "session": Session(), "terminal": Terminal(), "attach": Attach(), "forward": Forward(),
    "update-created": UpdateCreated(), "update-pod": UpdatePod(), "stop": Stop(), "kill": Kill(),
    "exit": Exit(), "adopt": Adopt(), "adopted-exit": AdoptedExit(),
    "remove": Remove(), "stop-pod": StopPod(),
    "remove-pod": RemovePod(), "pull": Pull(), "import": Import(), "remove-image": RemoveImage(), "recover": Recover(),
    "salvage": Salvage(), "foreign-run": ForeignRun(), "foreign-start": ForeignStart(), "foreign-exit": ForeignExit(),
    "foreign-remove-pod": ForeignRemovePod(), "users-run": UsersRun(), "users-create": UsersCreate(),
}  # fmt: skip
if HAS_CRIU:
    OPERATIONS |= {
        "checkpoint": Checkpoint(), "restore": Restore(), "restore-start": RestoreStart(),
        "restore-again": RestoreAgain(),
        "checkpoint-pod": CheckpointPod(), "stop-by-checkpoint": StopByCheckpoint(), "restore-pod": RestorePod(),
    }  # fmt: skip


def patiently(call: Callable[[], object]) -> None:
    """What a client does: ask again while it is told to, or while nobody answers."""
    deadline = time.monotonic() + AGAIN_SECONDS
    while True:
        try:
            call()
            return
        except grpc.RpcError as exc:
            if exc.code() not in crash.AGAIN or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def learn(stage: Stage, name: str) -> Counter[str]:
    """The points that an operation passes, and how often, when nothing is in its way."""
    return Counter({point: times for point, times in traced(stage, name).items() if not point.startswith("fail-")})


def traced(stage: Stage, name: str) -> Counter[str]:
    """Both the points that it passes and the calls that it makes."""
    operation = OPERATIONS[name]
    target = operation.prepare(stage)
    stage.inject.start_trace()
    operation.act(stage, target)
    points = stage.inject.end_trace()
    operation.check(stage, target)
    stage.clear()
    return points


def cut(stage: Stage, combination: Combination, baseline: set[str]) -> bool:
    """One round. Returns whether the point was reached and there was somebody to kill."""
    node, inject, operation = stage.node, stage.inject, OPERATIONS[combination.operation]
    target = operation.prepare(stage)
    inject.arm(combination.point, combination.count)
    failure: list[Exception] = []

    def act() -> None:
        try:
            operation.act(stage, target)
        except Exception as exc:  # it is being killed under its client
            failure.append(exc)

    acting = threading.Thread(target=act, name=str(combination))
    acting.start()
    pid = wait_for_hit(inject, combination.point, acting)
    struck = bool(pid) and inject.strike(pid, combination.victim, stage.spared)
    if node.process is not None and node.process.poll() is not None:
        inject.disarm(combination.point)
        acting.join(ACT_SECONDS)
        node.start()
    inject.disarm(combination.point)
    acting.join(ACT_SECONDS)
    assert not acting.is_alive(), "the client is still waiting"
    until(lambda: crash.recovered(node), "recovery to end")
    stage.unmoved()
    patiently(lambda: operation.repeat(stage, target))
    crash.at_rest(node)
    operation.check(stage, target)
    stage.unmoved()
    invariants.check(node)
    stage.clear()
    invariants.check(node)
    with contextlib.suppress(AssertionError):
        until(lambda: not stage.leftovers(), seconds=10)
    assert not stage.leftovers(), f"left over: {stage.leftovers()}"
    crash.nothing_more_on_disk(node, baseline)
    return struck


def wait_for_hit(inject: Inject, point: str, acting: threading.Thread) -> int:
    """The process that stands at the point; 0 when the operation has come to its end without passing it."""
    deadline = time.monotonic() + HIT_SECONDS
    while not (pid := inject.hit(point)) and time.monotonic() < deadline:
        if not acting.is_alive():  # what it has left to be done behind its back may still pass it
            deadline = min(deadline, time.monotonic() + LATE_SECONDS)
        acting.join(0.001)
    return pid or inject.missed(point)


def asked() -> list[str]:
    """Patterns of the combinations to be played, where not a sample is; those of other operations are not learned."""
    return os.environ.get("HOLDFAST_CRASH", "*").split(",")


def plan(learned: dict[str, Counter[str]]) -> list[Combination]:
    """All combinations of operation, point, how often it has been passed by then, and victim."""
    return [
        Combination(operation, point, count, victim)
        for operation, points in learned.items()
        for point, times in sorted(points.items())
        for count in range(1, times + 1)
        for victim in victims(operation, point)
    ]


def victims(operation: str, point: str) -> tuple[str, ...]:
    """Whoever is passing, where that is not the daemon; and the shim, where there is one."""
    passing = ("self",) if point.startswith(("keeper.", "unpack.", "users.", "shift.")) else ()
    return ("daemon", *passing) if operation in NO_SHIM else ("daemon", "shim", "both", *passing)


pytestmark = pytest.mark.timeout(7200)
# The death of a foreign shim is its pod's: what becomes of that is the matter of test_foreign_shim.
NO_SHIM = {"pull", "import", "remove-image", "foreign-run", "foreign-start", "foreign-exit", "foreign-remove-pod"}


def sample(everything: list[Combination], seed: str) -> list[Combination]:
    """Each point once, and some more until there are enough."""
    chosen = crash.shuffled(everything, seed)
    first: dict[str, Combination] = {}
    for one in chosen:
        first.setdefault(one.point, one)
    rest = [one for one in chosen if one not in first.values()]
    return [*first.values(), *rest[: max(0, LEAST - len(first))]]


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with registry() as found:
        yield found


class Rounds:
    """Plays combinations one after the other; a stage on which one went wrong is given up for a new one."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.violations: list[str] = []
        self.played = self.reached = 0
        self._open()
        names = [name for name in OPERATIONS if any(fnmatch(name, one.partition(":")[0]) for one in asked())]
        self.learned = {name: learn(self.stage, name) for name in names}
        self.learned = {name: learn(self.stage, name) for name in names}
        self._baseline = crash.paths(self.stage.node)

    def _open(self) -> None:
        self.stage = Stage(self._host)
        self._baseline = crash.paths(self.stage.node)

    def play(self, combinations: list[Combination]) -> None:
        for one in combinations:
            self.played += 1
            try:
                self.reached += cut(self.stage, one, self._baseline)
            except Exception as exc:
                self.violations.append(f"{one}: {type(exc).__name__}: {str(exc)[:1500]}")
                print(self.violations[-1], flush=True)
                self._reopen()

    def _reopen(self) -> None:
        base = self.stage.node.base
        try:
            self.stage.close()
        except Exception as exc:
            print(f"and it could not be cleared: {exc}", flush=True)
            shutil.copy(base / "daemon.log", "/tmp/")
        self._open()


def played(host: str, choose: Callable[[list[Combination]], list[Combination]]) -> Rounds:
    rounds = Rounds(host)
    try:
        rounds.play(choose(plan(rounds.learned)))
    finally:
        rounds.stage.close()
    assert not rounds.violations, "\n".join(rounds.violations)
    return rounds


def test_every_point_is_passed_by_some_operation_and_a_sample_of_them_survives(host: str) -> None:
    print(f"HOLDFAST_SEED={SEED}")

    def choose(everything: list[Combination]) -> list[Combination]:
        if asked() != ["*"]:
            return [one for one in everything if any(fnmatch(str(one), pattern) for pattern in asked())]
        missed = crash.every_point() - {one.point for one in everything} - OF_GVISOR
        if not HAS_CRIU:
            missed = {one for one in missed if not any(fnmatch(one, pattern) for pattern in OF_CRIU)}
        assert not missed, f"no operation passes {sorted(missed)}"
        return sample(everything, SEED)

    rounds = played(host, choose)
    print(f"{rounds.played} combinations, {rounds.reached} with somebody killed")


@pytest.mark.soak
def test_every_combination_survives(host: str) -> None:
    rounds = played(host, lambda everything: everything)
    points = {point for points in rounds.learned.values() for point in points}
    print(f"{len(points)} crash points, {rounds.played} combinations, {rounds.reached} with somebody killed")
