"""Where the volumes of gVisor pods are, whether they may be taken over, and what is left of them."""

from pathlib import Path

import pytest

from holdfast.lifecycle.gvisor import GvisorVolumes
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Pod
from holdfast.model.errors import FailedPrecondition
from holdfast.model.spec import PodMetadata
from holdfast.model.state import PodStatus
from holdfast.proto import runtime_v1_pb2 as pb

ID = "a" * 64


def pod(uid: str = "uid-1", **annotations: str) -> Pod:
    config = pb.PodSandboxConfig(annotations={f"dev.holdfast.volume.{name}": how for name, how in annotations.items()})
    return Pod(PodMetadata(ID, "n", "ns", uid, 0, "runsc", b"", "/c", True, 0), PodStatus(), config)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    return [tmp_path / "kubelet", tmp_path / "agent"]


@pytest.fixture
def found(tmp_path: Path, roots: list[Path]) -> GvisorVolumes:
    return GvisorVolumes(roots, Layout(tmp_path / "root", tmp_path / "state"))


def volume(root: Path, name: str = "ws", plugin: str = "kubernetes.io~empty-dir", uid: str = "uid-1") -> Path:
    path = root / "pods" / uid / "volumes" / plugin / name
    path.mkdir(parents=True)
    return path


def test_a_volume_is_where_a_kubelet_an_agent_or_a_restore_has_it(
    tmp_path: Path, roots: list[Path], found: GvisorVolumes
) -> None:
    for number, root in enumerate((*roots, tmp_path / "root/volumes" / ID)):
        place = volume(root, f"v{number}", ("kubernetes.io~empty-dir", "holdfast~sized-empty-dir")[number % 2])
        (one,) = found.placed(pod(**{f"v{number}": "shared-disk"}))
        assert one.source == str(place)


def test_its_path_is_without_links(tmp_path: Path, roots: list[Path], found: GvisorVolumes) -> None:
    place = volume(tmp_path / "elsewhere")
    roots[0].symlink_to(tmp_path / "elsewhere")
    assert found.placed(pod(ws="shared-disk"))[0].source == str(place)


@pytest.mark.parametrize("uid", ["uid-1", "../uid-1", "", "."])
def test_one_that_is_not_there_is_named(found: GvisorVolumes, uid: str) -> None:
    with pytest.raises(FailedPrecondition, match="no volume ws"):
        found.placed(pod(uid, ws="shared-disk"))


def test_one_of_two_is_not_guessed(roots: list[Path], found: GvisorVolumes) -> None:
    for root in roots:
        volume(root)
    with pytest.raises(FailedPrecondition, match="several volumes ws"):
        found.placed(pod(ws="shared-disk"))


def test_what_is_there_is_not_lost_without_a_word(roots: list[Path], found: GvisorVolumes) -> None:
    place = volume(roots[0])
    (place / ".gvisor.filestore.old").touch()
    (place / "lost+found").mkdir()
    assert found.take_over(pod(ws="shared-disk"))
    (place / "mine").touch()
    with pytest.raises(FailedPrecondition, match="it has files already, as 'mine'"):
        found.take_over(pod(ws="shared-disk"))
    assert found.take_over(pod(ws="shared-disk,bring-in"))


def test_only_the_pods_own_file_is_removed(tmp_path: Path, roots: list[Path], found: GvisorVolumes) -> None:
    place = volume(roots[0])
    mine, other, file = place / f".gvisor.filestore.{ID}", place / ".gvisor.filestore.b", place / "file"
    for path in (mine, other, file):
        path.touch()
    found.clear(pod())
    assert mine.exists()
    found.clear(pod(ws="shared-disk"))
    assert sorted(place.iterdir()) == [other, file]
    target = tmp_path / "target"
    target.touch()
    mine.symlink_to(target)
    found.clear(pod(ws="shared-disk"))
    assert mine.is_symlink() and target.exists()
    mine.unlink()
    mine.mkdir()
    found.clear(pod(ws="shared-disk"))
    assert mine.is_dir()


def test_a_volume_that_is_gone_or_makes_no_sense_has_nothing_left(found: GvisorVolumes) -> None:
    found.clear(pod(ws="shared-disk"))
    found.clear(pod(ws="nonsense"))
