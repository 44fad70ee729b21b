"""The settling table, walked completely: record x shim x kernel x exit file x started x wait status x intent."""

import itertools
from dataclasses import replace

import pytest

from holdfast.model.settle import Action, Kernel, Settlement, Shim, Witnesses, settle
from holdfast.model.state import (
    EXIT_UNKNOWN,
    NEXT,
    REASON_LOST,
    REASON_OOM,
    REASON_REBOOT,
    ContainerState,
    ContainerStatus,
    Event,
    ProcessRef,
    container_state,
)
from holdfast.model.witness import ExitRecord

REF = ProcessRef(100, 200, "boot")
NOW, BEGAN = 9000, 8000
RECORDS = {
    "CREATED": ContainerStatus(),
    "RUNNING": ContainerStatus(started_at=1000, process=REF),
    "EXITED": ContainerStatus(started_at=1000, finished_at=2000, exit_code=7, reason="Error", process=REF),
    "UNKNOWN": ContainerStatus(started_at=1000, process=REF, unknown=True),
}
EXIT = ExitRecord(100, 200, 42, 0, False, 0, 5000, "shim")
INTENTS = [frozenset(), *(frozenset({op}) for op in ("create", "start", "stop", "remove"))]
PRODUCT = list(itertools.product(RECORDS, Shim, Kernel, (None, EXIT), (False, True), (None, 3), INTENTS))


def settled(record: ContainerStatus, shim: Shim, kernel: Kernel, **more: object) -> Settlement:
    intents = more.pop("intents", frozenset())
    stopped = (9, 6000) if shim is Shim.STOPPED else None
    return settle(record, Witnesses(shim, kernel, stopped=stopped, **more), intents, NOW, BEGAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("shim", list(Shim))
def test_the_whole_table_keeps_the_promises(shim: Shim) -> None:
    for name, view, kernel, exit_file, started, wait_status, intents in PRODUCT:
        if view is not shim:
            continue
        record = RECORDS[name]
        more = {"exit": exit_file, "started": started, "wait_status": wait_status, "intents": intents}
        found = settled(record, view, kernel, **more)
        case = (name, view, kernel, exit_file, started, wait_status, intents, found)
        before, after = container_state(record), container_state(found.status)
        if before is ContainerState.EXITED:
            assert found.status == record, case  # P3: the first exit recorded is final
        else:
            assert any(NEXT.get((before, event)) is after for event in Event), case
        if after is ContainerState.UNKNOWN and "create" not in intents:
            # P4: only when nobody can tell, and never for good
            assert view is Shim.UNREACHABLE and kernel is not Kernel.ALIVE and exit_file is None, case
            assert Action.PROBE in found.actions or "remove" in intents, case
        if found.status.reason in (REASON_LOST, REASON_REBOOT):
            assert exit_file is None and view is not Shim.STOPPED and found.status.exit_code == EXIT_UNKNOWN, case
        if found.status.reason == REASON_LOST:
            assert view in (Shim.ABSENT, Shim.GONE) and kernel in (Kernel.DEAD, Kernel.UNTOLD), case
        if Action.UNDO_CREATE in found.actions:
            assert "create" in intents, case
        assert found.why, case


def test_settling_twice_changes_nothing() -> None:
    for name, shim, kernel, exit_file, started, wait_status, intents in PRODUCT:
        more = {"exit": exit_file, "started": started, "wait_status": wait_status, "intents": intents}
        once = settled(RECORDS[name], shim, kernel, **more).status
        if "start" not in intents or container_state(once) is not ContainerState.CREATED:
            assert settled(once, shim, kernel, **more).status == once


def test_a_failed_question_never_ends_or_deletes_anything() -> None:
    for name, kernel, started in itertools.product(
        ("CREATED", "RUNNING", "UNKNOWN"), (Kernel.ALIVE, Kernel.UNTOLD), (False, True)
    ):
        found = settled(RECORDS[name], Shim.UNREACHABLE, kernel, started=started)
        assert container_state(found.status) is not ContainerState.EXITED
        assert not {Action.DELETE_TASK, Action.KILL_REST, Action.DISCARD_TASK, Action.UNDO_CREATE} & set(found.actions)


def test_the_exit_file_outranks_a_shim_that_says_otherwise() -> None:
    found = settled(RECORDS["RUNNING"], Shim.RUNNING, Kernel.DEAD, exit=EXIT)
    assert (found.status.exit_code, found.status.finished_at) == (42, 5000)
    assert found.actions == (Action.DELETE_TASK,)


def test_an_oom_kill_is_told() -> None:
    exit_file = replace(EXIT, code=137, signal=9, oom_killed=True, oom_kills=2)
    found = settled(RECORDS["RUNNING"], Shim.GONE, Kernel.DEAD, exit=exit_file)
    assert (found.status.reason, found.status.oom_kills, found.status.exit_code) == (REASON_OOM, 2, 137)


def test_a_start_that_was_not_recorded_is_found_running() -> None:
    found = settled(
        RECORDS["CREATED"], Shim.RUNNING, Kernel.ALIVE, process=REF, started=True, intents=frozenset({"start"})
    )
    assert container_state(found.status) is ContainerState.RUNNING
    assert (found.status.started_at, found.status.process) == (BEGAN, REF)
    assert found.actions == (Action.MONITOR,)


def test_a_created_task_goes_back_to_created() -> None:
    found = settled(RECORDS["CREATED"], Shim.CREATED, Kernel.ALIVE, process=REF, intents=frozenset({"start"}))
    assert found.status == RECORDS["CREATED"]
    assert found.actions == (Action.DISCARD_TASK,)


def test_a_reboot_ends_what_ran_and_keeps_what_did_not() -> None:
    ended = settled(RECORDS["RUNNING"], Shim.GONE, Kernel.REBOOTED).status
    assert (ended.exit_code, ended.reason) == (EXIT_UNKNOWN, REASON_REBOOT)
    assert settled(RECORDS["CREATED"], Shim.GONE, Kernel.UNTOLD).status == RECORDS["CREATED"]


def test_a_container_lives_on_without_its_shim() -> None:
    found = settled(RECORDS["RUNNING"], Shim.GONE, Kernel.ALIVE)
    assert found.status == RECORDS["RUNNING"]
    assert found.actions == (Action.MONITOR,)


def test_unknown_settles_once_somebody_can_tell() -> None:
    assert container_state(settled(RECORDS["UNKNOWN"], Shim.RUNNING, Kernel.ALIVE).status) is ContainerState.RUNNING
    assert settled(RECORDS["UNKNOWN"], Shim.STOPPED, Kernel.DEAD).status.exit_code == 9


def test_an_interrupted_stop_goes_on_and_an_interrupted_remove_is_finished() -> None:
    stopping = settled(RECORDS["RUNNING"], Shim.RUNNING, Kernel.ALIVE, intents=frozenset({"stop"}))
    assert stopping.actions == (Action.MONITOR, Action.RESUME_STOP)
    removing = settled(RECORDS["EXITED"], Shim.STOPPED, Kernel.DEAD, intents=frozenset({"remove"}))
    assert removing.actions == (Action.DELETE_TASK, Action.FINISH_REMOVE)
