"""Ranges of users: one for each pod, and nobody's where it is not known whose they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.agent.sync import users
from holdfast.agent.sync.convert import USERS
from holdfast.agent.sync.users import Users

uids = st.sampled_from("abcdef")


@given(st.lists(st.tuples(st.sampled_from(["take", "release", "restart"]), uids)))
def test_never_two_pods_the_same(steps: list[tuple[str, str]]) -> None:
    known, given_out = Users(), dict[str, int]()
    for step, uid in steps:
        match step:
            case "take":
                first = known.take(uid)
                assert given_out.setdefault(uid, first) == first
                assert (first - users.FIRST) % USERS == 0
                assert users.FIRST <= first <= users.END - USERS
            case "release":
                known.release(uid)
                given_out.pop(uid, None)
            case "restart":
                known = Users()
                for one, first in given_out.items():
                    known.know(one, first)
        assert len(set(given_out.values())) == len(given_out)


def test_nobody_gets_what_may_be_somebodys() -> None:
    known = Users()
    known.doubt("a")
    with pytest.raises(LookupError, match="which users pod a has"):
        known.take("b")
    known.know("a", users.FIRST)
    assert known.take("b") == users.FIRST + USERS


def test_there_is_an_end_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "END", users.FIRST + USERS)
    known = Users()
    known.take("a")
    with pytest.raises(LookupError, match="all ranges"):
        known.take("b")
    known.release("a")
    assert known.take("b") == users.FIRST
