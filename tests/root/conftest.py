"""What files that play with a shim begin with; each has a `kit` of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from shim_kit import ShimKit, busybox_rootfs

from holdfast.runtime.task import TaskClient


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image."""
    return busybox_rootfs(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.fixture
async def client(kit: ShimKit) -> AsyncIterator[TaskClient]:
    made = await kit.connect()
    yield made
    made.close()
