"""What several files begin with; a file that needs another one of the name has its own."""

from collections.abc import Iterator

import pytest
from kit.agent import Agent, running_agent
from kit.node import Node, node


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    """A node for all tests of a file."""
    with node() as one:
        yield one


@pytest.fixture
def there(shared: Node) -> Iterator[Agent]:
    """An agent of its own for each test."""
    with running_agent(shared) as one:
        yield one
