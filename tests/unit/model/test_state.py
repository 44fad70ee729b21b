import itertools

import pytest

from holdfast.model.errors import FailedPrecondition
from holdfast.model.state import NEXT, ContainerState, ContainerStatus, Event, advance, container_state

S, E = ContainerState, Event


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_pair_moves_by_the_table_or_is_refused(state: ContainerState, event: Event) -> None:
    if (state, event) in NEXT:
        assert advance(state, event) is NEXT[state, event]
    else:
        with pytest.raises(FailedPrecondition, match=f"cannot apply {event} to a container that is {state}"):
            advance(state, event)


def test_an_exit_is_final() -> None:
    assert not [event for event in E if (S.EXITED, event) in NEXT]


def test_what_ran_is_never_created_again() -> None:
    assert (S.RUNNING, E.CREATED) not in NEXT


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (ContainerStatus(), S.CREATED),
        (ContainerStatus(started_at=1), S.RUNNING),
        (ContainerStatus(started_at=1, finished_at=2), S.EXITED),
        (ContainerStatus(finished_at=2), S.EXITED),
        (ContainerStatus(started_at=1, unknown=True), S.UNKNOWN),
        (ContainerStatus(started_at=1, finished_at=2, unknown=True), S.EXITED),
    ],
)
def test_state_is_derived_from_status(status: ContainerStatus, state: ContainerState) -> None:
    assert container_state(status) is state
