"""The shim's part in checkpoints of gVisor pods, with the real runsc: all of a sandbox, volumes on disk included."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kit.tools import RUNSC, needs_runsc
from shim_kit import Container, ShimKit, busybox_rootfs, reader, until

from holdfast.model import errors
from holdfast.model.checkpoint import CriuSettings
from holdfast.model.gvisor import FILESTORE
from holdfast.model.spec import Mount
from holdfast.oci import gvisor
from holdfast.oci.gvisor import Shape, Volume
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import pause
from holdfast.runtime.task import Status, TaskClient

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_runsc]

MIB = 1 << 20
POD = "pod"
COUNT = "n=0; while :; do n=$((n+1)); echo $n; usleep 20000; done"
WRITE = f"head -c {4 * MIB} /dev/urandom > /workspace/blob; echo > /workspace/whole; {COUNT}"
READ = "while :; do if test -e /workspace/said; then echo $(cat /workspace/said); exit 4; fi; usleep 20000; done"
OWN = pb.NamespaceOption(pid=pb.CONTAINER)


class Pod(ShimKit):
    """A gVisor pod with a volume "workspace" on disk."""

    def __init__(self, base: Path, lower: Path) -> None:
        base.mkdir()
        more = {"platform": "systrap", "network": "none", "pod_id": POD}
        super().__init__(base, "runsc", lower, binary=RUNSC, more=more)
        self.clients: list[TaskClient] = []
        self.volume = base / "volume"
        self.volume.mkdir()
        self.settings = CriuSettings("", str(base))
        self.volumes = [Volume("workspace", Shape.DISK, source=str(self.volume))]
        self.image = base / "pause"
        for place in (self.image, self.image / "proc", self.image / "dev", self.image / "volumes"):
            place.mkdir(exist_ok=True)
        (self.image / "pause").write_bytes(pause.program())
        (self.image / "pause").chmod(0o755)

    def spec(self, args: list[str], name: str, **changes: Any) -> dict[str, Any]:
        annotations = {
            "io.kubernetes.cri.container-type": "sandbox" if name == POD else "container",
            "io.kubernetes.cri.sandbox-id": POD,
            "io.kubernetes.cri.container-name": name.rstrip("0123456789"),
        }
        bind = {"destination": "/workspace", "type": "bind", "source": str(self.volume), "options": ["rbind", "rw"]}
        spec = {**super().spec(args, name, mounts=[bind], **changes), "annotations": annotations}
        if name != POD:
            return gvisor.suited(spec, OWN, self.volumes, "")
        hints, mounts = gvisor.of_sandbox(self.volumes, "")
        annotations |= hints
        return {**spec, "mounts": [spec["mounts"][0], *mounts], "root": {"path": "rootfs", "readonly": True}}

    async def connect(self) -> TaskClient:
        self.clients.append(client := await super().connect())
        return client

    async def begin(self, client: TaskClient, images: Path | None = None) -> None:
        """The sandbox container, new or restored."""
        made = self.container(POD, ["/pause"])
        made.rootfs = [Mount("bind", str(self.image), options=("rbind", "ro"))]
        await client.create(POD, bundle=made.bundle, rootfs=made.rootfs, restore=self.origin(images))
        await client.start(POD)

    async def restore(self, client: TaskClient, name: str, images: Path) -> Container:
        made = self.container(name, ["true"])
        await self.create(client, made, restore=self.origin(images))
        await client.start(name)
        return made

    def origin(self, images: Path | None) -> tuple[Path, CriuSettings] | None:
        return (images, self.settings) if images is not None else None

    async def checkpoint(self, client: TaskClient, images: Path, *ids: str) -> None:
        images.mkdir()
        await client.freeze(ids, 30)
        await client.checkpoint(POD, images, self.settings)
        await client.thaw(ids)

    async def end(self, client: TaskClient, *ids: str) -> None:
        for id in (*ids, POD):
            await client.kill(id, signal.SIGKILL, everything=True)
            await client.wait(id)
            await client.delete(id)
        assert not list(self.volume.iterdir())
        assert not self.leftovers()

    def sentry(self) -> int:
        return int(json.loads((self.directory / POD / "init.json").read_text())["pid"])


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = busybox_rootfs(tmp_path_factory.mktemp("image") / "rootfs")
    for applet in ("md5sum", "test", "nc"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture
async def pods(tmp_path: Path, lower: Path) -> AsyncIterator[list[Pod]]:
    """Three of them, with a shim each."""
    with ExitStack() as stack:
        found = []
        for name in "abc":
            pod = Pod(tmp_path / name, lower)
            stack.callback(pod.stop)
            pod.start()
            found.append(pod)
        yield found
        for pod in found:
            for client in pod.clients:
                client.close()


def numbers(one: Container) -> list[int]:
    return [int(line) for line in one.text().split()]


async def ask(client: TaskClient, pod: Pod, one: Container, *command: str) -> str:
    """What a command in a container says."""
    place = pod.base / f"exec-{one.id}-{len(list(pod.base.iterdir()))}"
    process_spec = {"args": list(command), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    async with reader(place) as said:
        await client.exec(one.id, place.name, process_spec, stdout=str(place))
        await client.start(one.id, place.name)
        assert (await client.wait(one.id, place.name))[0] == 0
        await client.delete(one.id, place.name)
        await asyncio.sleep(0)
        await until(lambda: said.endswith(b"\n"))
    return said.decode()


async def test_f38_a_pod_is_restored_with_its_volume_and_again(pods: list[Pod], tmp_path: Path) -> None:
    first, second, third = pods
    client = await first.connect()
    await first.begin(client)
    writer = await first.run(client, "writer", WRITE)
    await first.run(client, "waiter", READ)
    await until(lambda: len(numbers(writer)) > 5)
    blob = (await ask(client, first, writer, "md5sum", "/workspace/blob")).split()[0]
    await first.checkpoint(client, images := tmp_path / "images", "writer", "waiter")
    at = len(numbers(writer))
    await until(lambda: len(numbers(writer)) > at + 3)  # it was left running
    await first.end(client, "writer", "waiter")

    for generation, pod in enumerate((second, third)):
        client = await pod.connect()
        await pod.begin(client, images)
        waiter, writer = [await pod.restore(client, name, images) for name in ("waiter", "writer")]
        await until(lambda writer=writer: len(numbers(writer)) > 5)
        begins, *rest = numbers(writer)
        assert begins > 5 and rest == list(range(begins + 1, begins + 1 + len(rest)))
        assert begins <= at + 2 or generation
        assert (await ask(client, pod, writer, "md5sum", "/workspace/blob")).split()[0] == blob
        (store,) = pod.volume.iterdir()
        assert store.name == f"{FILESTORE}{POD}" and store.stat().st_blocks * 512 >= 4 * MIB
        if not generation:
            at = len(numbers(writer))
            images = tmp_path / "again"
            await pod.checkpoint(client, images, "writer", "waiter")
            at += begins
        await ask(client, pod, writer, "sh", "-c", f"echo hello {generation} > /workspace/said; echo")
        assert (await client.wait("waiter"))[0] == 4
        assert waiter.text() == f"hello {generation}\n".encode()
        await client.delete("waiter")
        await pod.end(client, "writer")


async def counting(pods: list[Pod]) -> tuple[Pod, TaskClient, Container]:
    """The first of the pods, with a container "writer" that counts."""
    pod = pods[0]
    client = await pod.connect()
    await pod.begin(client)
    one = await pod.run(client, "writer", COUNT)
    await until(lambda: len(numbers(one)) > 3)
    return pod, client, one


async def test_what_is_frozen_stands_still_and_no_longer_than_its_lease(pods: list[Pod]) -> None:
    pod, client, one = await counting(pods)
    await client.freeze(["writer"], 30)
    at = len(numbers(one))
    await asyncio.sleep(0.3)
    assert len(numbers(one)) <= at + 5  # what was on its way; it would have got three times as far
    await client.thaw(["writer"])
    await client.freeze(["writer"], 1)
    at = len(numbers(one))
    await until(lambda: len(numbers(one)) > at + 8)
    with pytest.raises(errors.FailedPrecondition):
        await client.thaw(["writer"])
    await client.freeze(["writer"], 30)
    await client.thaw(["writer"])
    at = len(numbers(one))
    await until(lambda: len(numbers(one)) > at + 3)
    await pod.end(client, "writer")


async def test_what_a_dead_shim_has_left_frozen_goes_on(pods: list[Pod]) -> None:
    pod, client, one = await counting(pods)
    await client.freeze(["writer"], 100)
    assert pod.process is not None
    pod.process.kill()
    pod.process.wait()
    client.close()
    (pod.directory / "shim.sock").unlink()
    pod.start(adopt=True)
    client = await pod.connect()
    at = len(numbers(one))
    await until(lambda: len(numbers(one)) > at + 3)
    assert (await client.state("writer")).status is Status.RUNNING
    await client.kill("writer", signal.SIGTERM)
    assert (await client.wait("writer"))[0] == 143
    await client.delete("writer")


async def test_what_could_not_be_restored_is_refused_and_runs_on(pods: list[Pod], tmp_path: Path) -> None:
    pod, client, one = await counting(pods)
    with pytest.raises(errors.FailedPrecondition, match="not frozen"):
        await client.checkpoint(POD, tmp_path, pod.settings)
    async with reader(place := tmp_path / "out"):
        spec = {"args": ["sleep", "100"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        await client.exec("writer", "e", spec, stdout=str(place))
        await client.start("writer", "e")
        await client.freeze(["writer"], 30)
        with pytest.raises(errors.FailedPrecondition, match="something is executed in task writer"):
            await client.checkpoint(POD, tmp_path / "images", pod.settings)
        await client.thaw(["writer"])
        await client.kill("writer", signal.SIGKILL, "e")
        await client.wait("writer", "e")
        await client.delete("writer", "e")
    await pod.run(client, "over", "exit 0")
    await client.wait("over")
    await client.freeze(["writer"], 30)
    with pytest.raises(errors.FailedPrecondition, match="task over has ended and is not deleted"):
        await client.checkpoint(POD, tmp_path / "images", pod.settings)
    await client.thaw(["writer"])
    at = len(numbers(one))
    await until(lambda: len(numbers(one)) > at + 3)


async def test_a_connection_does_not_end_the_sandbox(pods: list[Pod], tmp_path: Path) -> None:
    first, second, _ = pods
    client = await first.connect()
    await first.begin(client)
    server = await first.run(client, "writer", f"nc -l -p 80 -e sleep 1000 & {COUNT}")

    async def shown(pattern: str) -> None:
        while not re.search(pattern, await ask(client, first, server, "cat", "/proc/net/tcp", "/proc/net/tcp6")):
            await asyncio.sleep(0.05)

    await shown(r":0050 0+:0000 0A ")  # LISTEN
    await first.run(client, "waiter", "sleep 1000 | nc 127.0.0.1 80; echo cut; sleep 1000")
    await shown(r" 0100007F:0050 01 ")  # ESTABLISHED
    await until(lambda: len(numbers(server)) > 5)
    await first.checkpoint(client, images := tmp_path / "images", "writer", "waiter")
    assert (await client.state("writer")).status is Status.RUNNING
    await first.end(client, "writer", "waiter")
    client = await second.connect()
    await second.begin(client, images)
    for name in ("writer", "waiter"):
        made = await second.restore(client, name, images)
        server = made if name == "writer" else server
    await until(lambda: len(numbers(server)) > 5)
    await second.end(client, "writer", "waiter")
