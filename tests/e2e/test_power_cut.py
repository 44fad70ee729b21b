"""F03, F20: the power fails right after an answer, and what was answered is there.

Root is on an ext4 that commits its journal by itself only every ten minutes. A copy of the device, taken while it is
mounted, holds what had reached the device by then, which is what a power cut leaves.
"""

import contextlib
import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from image import build_busybox_image
from kit import boot, disk, images
from kit.invariants import check
from kit.node import Node, until
from kit.registry import push, registry

from holdfast.linux import files
from holdfast.proto import runtime_v1_pb2 as pb

SIZE = 160 << 20
EXIT_42 = "trap 'exit 42' TERM; > /ready; while :; do sleep 0.05; done"
CREATED, RUNNING, EXITED = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with registry() as found:
        yield found


@dataclass
class Truth:
    """What a client knows, from the answers that it has had."""

    images: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    containers: dict[str, tuple[int, int]] = field(default_factory=dict)  # state and exit code by id

    def copy(self) -> "Truth":
        return Truth(set(self.images), set(self.pods), dict(self.containers))


class Story:
    """What happens, and a copy of the device after each answer."""

    def __init__(self, one: Node, device: Path) -> None:
        self.node = one
        self.device = device
        self.truth = Truth()
        self.copies: list[tuple[str, Path, Truth]] = []

    def answered(self, what: str) -> None:
        copy = self.device.with_name(f"copy-{len(self.copies)}")
        subprocess.run(["cp", "--sparse=always", str(self.device), str(copy)], check=True)
        self.copies.append((what, copy, self.truth.copy()))

    def tell(self, reference: str, archive: Path) -> None:
        one, truth = self.node, self.truth
        one.busybox()
        truth.images.add("docker.io/test/busybox")
        self.answered("import")
        one.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=reference)))
        truth.images.add(reference.rpartition(":")[0])
        self.answered("pull")
        pod = one.run_pod()
        truth.pods.add(pod)
        self.answered("run pod")
        main = one.create(pod, one.container_config(EXIT_42, "main"))
        truth.containers[main] = (CREATED, 0)
        self.answered("create")
        one.start_container(main)
        truth.containers[main] = (RUNNING, 0)
        self.answered("start")
        brief = one.run(pod, "exit 7", "brief", image=reference)
        one.exited(brief)
        truth.containers[brief] = (EXITED, 7)
        self.answered("exit")
        until(lambda: one.exec(main, ["test", "-e", "/ready"]).exit_code == 0)
        one.stop_container(main, 20)
        truth.containers[main] = (EXITED, 42)
        self.answered("stop")
        one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=brief))
        del truth.containers[brief]
        self.answered("remove")
        one.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))
        truth.images.remove(reference.rpartition(":")[0])
        self.answered("remove image")
        one.import_image(archive)
        truth.images.add("docker.io/test/power")
        self.answered("import again")
        one.remove_pod(pod)
        truth.pods.clear()
        truth.containers.clear()
        self.answered("remove pod")


def digests(one: Node, image: str) -> str:
    """Of every regular file in an image, as its container sees them."""
    pod = one.run_pod()
    script = "find / -xdev -type f ! -path '/etc/host*' ! -path /etc/resolv.conf -exec sha256sum {} + | sort"
    container = one.run(pod, script, image=image)
    assert one.exited(container).exit_code == 0
    lines = one.container_log(container)
    one.remove_pod(pod)
    return "\n".join(sorted(line.split(" ", 3)[3] for line in lines.decode().splitlines()))


@contextlib.contextmanager
def lifetime(one: Node, device: Path) -> Iterator[None]:
    """A boot with this device as its root; at its end nothing is left but what is on the device."""
    with disk.mounted(device, one.root, "commit=600"):
        try:
            yield
        except BaseException:
            sys.stderr.write(one.log()[-4000:])
            raise
        finally:
            assert not one.empty()
            files.remove_tree(one.state)


def outlives(one: Node, truth: Truth) -> None:
    until(lambda: "recovered" in one.log().rpartition(" serving ")[2], "the end of recovery")
    found = one.images("ListImages", pb.ListImagesRequest()).images
    assert {tag.rpartition(":")[0] for image in found for tag in image.repo_tags} == truth.images
    assert {pod.id for pod in one.pods()} == truth.pods
    assert {container.id for container in one.containers()} == truth.containers.keys()
    for id, (state, code) in truth.containers.items():
        if state == RUNNING:
            assert one.exited(id).reason == "NodeRebooted"
        else:
            status = one.status(id)
            assert (status.state, status.exit_code) == (state, code)


def test_f20_what_was_answered_is_there_after_a_power_cut(tmp_path: Path, host: str) -> None:
    (tmp_path / "extra").mkdir()
    files_of_it = [images.entry("extra", os.urandom(3_000_000)), images.entry("small", b"x" * 100)]
    layer = gzip.compress(images.tar(files_of_it), 1, mtime=0)
    archive = build_busybox_image(tmp_path / "extra", "test/power:1", extra_layer=layer)
    push(host, "power", "1", archive)
    reference = f"{host}/power:1"
    device = disk.device("ext4", tmp_path, SIZE)
    one = Node()
    with lifetime(one, device):
        one.start()
        story = Story(one, device)
        story.tell(reference, archive)
        expected = digests(one, "test/power:1")
        assert "/extra" in expected
        assert "/small" in expected
    for what, copy, truth in story.copies:
        print(what, flush=True)
        with lifetime(one, copy):
            boot.another(one.root)
            one.start()
            outlives(one, truth)
            for name in truth.images - {"docker.io/test/busybox"}:
                assert digests(one, f"{name}:1") == expected
            for pod in one.pods():
                one.remove_pod(pod.id)
            check(one)
        copy.unlink()
    files.remove_tree(one.base)
