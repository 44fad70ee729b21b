"""What files that play with a shim begin with; each has a `kit` of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from shim_kit import ShimKit, busybox_rootfs
from stream_kit import keeper_state

from holdfast.runtime.task import TaskClient


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image."""
    return busybox_rootfs(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The directory of a keeper that runs."""
    with keeper_state() as made:
        yield made


@pytest.fixture
async def client(kit: ShimKit) -> AsyncIterator[TaskClient]:
    made = await kit.connect()
    yield made
    made.close()
