"""Signals to all of a container reach nobody else."""

import os
import signal

import pytest

from holdfast.linux import cgroup
from holdfast.workers.shim import remains


@pytest.mark.parametrize("levels", [0, 1, 100])
def test_a_cgroup_with_ourselves_in_it_is_nobodys_container(levels: int) -> None:
    """As when a container was given no cgroup of its own: what is in there is the host's."""
    path = cgroup.of_process(os.getpid())
    for _ in range(levels):
        path = os.path.dirname(path)
    assert remains.pids(path) == set()
    assert remains.signal_all(path, signal.SIGCONT) == 0


def test_a_cgroup_that_is_gone_is_empty() -> None:
    assert remains.pids("/hf-no-such-cgroup") == set()


def test_process_one_of_a_namespace_is_told_apart() -> None:
    assert not remains.is_first_in_namespace(os.getpid())
    assert remains.is_first_in_namespace(1)
