"""What an OCI runtime is not to see is hidden from it, and from nobody else."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.linux import mount
from holdfast.workers.shim.spawn import hidden


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """A mount whose own mounts are seen wherever it is shared, as /proc is under systemd."""
    place = tmp_path / "top"
    place.mkdir()
    mount.mount("top", place, "tmpfs")
    mount.set_propagation(place, mount.MS_SHARED)
    (place / "sys/net/core").mkdir(parents=True)
    yield place
    mount.unmount_tree(tmp_path)


def test_a_directory_deep_in_a_shared_mount_is_hidden_here_alone(top: Path) -> None:
    target, inside, looked = top / "sys/net", threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def hide() -> None:
        with hidden([str(target)]):
            seen.append(os.listdir(target))
            inside.set()
            looked.wait(10)
        seen.append(os.listdir(target))

    thread = threading.Thread(target=hide)
    thread.start()
    try:
        assert inside.wait(10)
        assert os.listdir(target) == ["core"]
        assert not [entry for entry in mount.mountinfo() if entry.target == str(target)]
    finally:
        looked.set()
        thread.join()
    assert seen == [[], ["core"]]
