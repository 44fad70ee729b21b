"""What several files begin with; a file that needs another one of the name has its own."""

import concurrent.futures
from collections.abc import Iterator

import pytest
from kit.agent import Agent, running_agent
from kit.apiserver import Api, apiserver
from kit.node import Node, node, until


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    """A node for all tests of a file."""
    with node() as one:
        yield one


@pytest.fixture(scope="module")
def life(shared: Node) -> Node:
    """The same, by another name."""
    return shared


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    """A pod of which nothing is left afterwards."""
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    assert not life.leftovers()


@pytest.fixture
def clients() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Who calls while others do."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def there(shared: Node) -> Iterator[Agent]:
    """An agent of its own for each test."""
    with running_agent(shared) as one:
        yield one


@pytest.fixture(scope="module")
def api(life: Node) -> Iterator[Api]:
    """What clients of Kubernetes take for their cluster."""
    with apiserver(life) as one:
        yield one


@pytest.fixture
def sessions_end(life: Node) -> Iterator[None]:
    """By the end of each test."""
    yield
    until(lambda: not life.streamers(), "the streamers to end")
