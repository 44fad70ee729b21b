"""What the workers' tests share."""

from collections.abc import Iterator

import pytest
from kit.loops import open_loop

from holdfast.workers.shim.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with open_loop() as made:
        yield made
