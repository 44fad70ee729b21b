"""The ids of a pod with a user namespace, and the mount options that say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.userns import UserNamespace, from_options

ONE = UserNamespace(uid=65536, gid=131072, uids=1000, gids=2000)
IDS = st.integers(1, 2**31)


def test_lines_of_the_maps() -> None:
    assert (ONE.uid_map, ONE.gid_map) == ((0, 65536, 1000), (0, 131072, 2000))


def test_what_ids_are_outside() -> None:
    assert ONE.outside(0, 0) == (65536, 131072)
    assert ONE.outside(999, 1999) == (66535, 133071)
    assert ONE.outside(1000, 2000) == (1000, 2000)


@given(IDS, IDS, IDS, IDS, st.lists(st.sampled_from(["ro", "lowerdir=/a:/b", "upperdir=/u"])))
def test_options_name_the_mapping(uid: int, gid: int, uids: int, gids: int, others: list[str]) -> None:
    one = UserNamespace(uid, gid, uids, gids)
    assert from_options((*others, *one.options)) == (one, tuple(others))
    assert from_options(tuple(others)) == (None, tuple(others))


@pytest.mark.parametrize(
    "options",
    [
        ("uidmap=0:1:1",),
        ("gidmap=0:1:1",),
        ("uidmap=0:1:1", "uidmap=1:2:1", "gidmap=0:1:1"),
        ("uidmap=0:1", "gidmap=0:1:1"),
        ("uidmap=0:x:1", "gidmap=0:1:1"),
        ("uidmap=5:1:1", "gidmap=0:1:1"),
    ],
)
def test_options_that_name_none(options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="map"):
        from_options(options)
