"""Pods without a record that can be acted by, and what is told of them."""

from holdfast.agent.sync.orphans import LOST, UNREADABLE, Made, Orphan, find, shown

A = Made("0123456789abcdef", "uid-a", "default", "a", is_unused=False)


def test_what_has_a_record_is_no_orphan() -> None:
    assert find([A], {"uid-a"}, {}) == {}
    assert find([], {"uid-a"}, {}) == {}


def test_a_lost_record() -> None:
    (one,) = find([A, Made("second", "uid-a", "default", "a", is_unused=True)], {"uid-b"}, {}).values()
    assert (one.reason, one.sandboxes, one.is_unused) == (LOST, ("0123456789abcdef", "second"), False)
    assert "put its manifest back" in one.why
    assert "`holdfast rmp -f 0123456789abc second` ends it" in one.why
    (unused,) = find([Made("id", "uid-a", "default", "a", is_unused=True)], (), {}).values()
    assert unused.is_unused


def test_a_record_that_cannot_be_read() -> None:
    found = find([A], (), {"uid-a": "/r/record.json: no JSON", "uid-z": "/z/record.json: no JSON"})
    assert found["uid-a"] == Orphan("uid-a", "default", "a", UNREADABLE, found["uid-a"].why, (A.id,))
    assert "/r/record.json: no JSON" in found["uid-a"].why
    assert "delete that file, and `holdfast rmp -f 0123456789abc` ends it" in found["uid-a"].why
    assert (found["uid-z"].name, found["uid-z"].sandboxes) == ("uid-z", ())
    assert "rmp" not in found["uid-z"].why
    assert not found["uid-a"].is_unused, "of what there is to be read some day nothing is removed"


def test_how_it_is_shown() -> None:
    (one,) = find([A], (), {}).values()
    plain = shown(one)
    assert plain["metadata"] == {"name": "a", "namespace": "default", "uid": "uid-a"}
    assert plain["status"] == {"phase": "Unknown", "reason": LOST, "message": one.why, "conditions": []}
