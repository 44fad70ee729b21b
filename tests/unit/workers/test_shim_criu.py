"""Who is ended while CRIU is at work, and who is not yet."""

import time

import pytest

from holdfast.linux import process
from holdfast.workers.shim import criu

RUNTIME, CRIU = 7, 8


def test_a_machine_that_stands_still_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRIU that has ended is a zombie for as long as its runtime does not come to reap it."""
    clock, ended = iter(range(0, 10**6, 1000)), []
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(criu, "_end_all_but", lambda *spared: ended.append(spared))
    monkeypatch.setattr(criu, "_end", lambda found, still: None)
    monkeypatch.setattr(process, "children", lambda pid: [CRIU])
    monkeypatch.setattr(process, "state", lambda pid: "Z")
    watch = criu.Watch()
    for _ in range(2):
        for _ in range(criu.VAIN_LOOKS):
            watch.look(RUNTIME)
        assert not ended
        monkeypatch.setattr(process, "children", lambda pid: [])  # it was reaped
        watch.look(RUNTIME)
        monkeypatch.setattr(process, "children", lambda pid: [CRIU])
    for _ in range(criu.VAIN_LOOKS + 1):
        watch.look(RUNTIME)
    assert ended == [(RUNTIME,)]
