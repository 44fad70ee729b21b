"""The settling table of RECOVERY.md, held against the code for every combination; and what holds for all of them."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from holdfast.model.settle import Action, Kernel, Settlement, Shim, Witnesses, settle
from holdfast.model.state import (
    EXIT_UNKNOWN,
    NEXT,
    REASON_COMPLETED,
    REASON_ERROR,
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
    "RUNNING, process unknown": ContainerStatus(started_at=1000),
    "EXITED": ContainerStatus(started_at=1000, finished_at=2000, exit_code=7, reason=REASON_ERROR, process=REF),
    "UNKNOWN": ContainerStatus(started_at=1000, process=REF, unknown=True, message="nobody can tell"),
    "UNKNOWN, never seen to run": ContainerStatus(unknown=True, message="nobody can tell"),
}
EXIT = ExitRecord(100, 200, 42, 0, False, 0, 5000, "shim")
OPS = ("create", "start", "stop", "remove")
INTENTS = [frozenset(ops) for count in range(len(OPS) + 1) for ops in itertools.combinations(OPS, count)]
DESTRUCTIVE = {Action.DELETE_TASK, Action.KILL_REST, Action.DISCARD_TASK, Action.UNDO_CREATE}


@dataclass(frozen=True)
class Case:
    """One combination of what is on record, what is under way and what the witnesses say."""

    name: str
    shim: Shim
    kernel: Kernel
    exit: ExitRecord | None = None
    started: bool = False  # by init.json
    known: bool = False  # the process, by init.json
    wait_status: int | None = None
    intents: frozenset[str] = frozenset()

    @property
    def record(self) -> ContainerStatus:
        return RECORDS[self.name]

    def settle(self, record: ContainerStatus | None = None, oom_kills: int = 0) -> Settlement:
        witnesses = Witnesses(
            self.shim,
            self.kernel,
            self.exit,
            (9, 6000) if self.shim is Shim.STOPPED else None,
            REF if self.known else None,
            self.started,
            self.wait_status,
            oom_kills,
        )
        return settle(record or self.record, witnesses, self.intents, NOW, BEGAN if "start" in self.intents else 0)


PRODUCT = [
    Case(*combination)
    for combination in itertools.product(
        RECORDS, Shim, Kernel, (None, EXIT), (False, True), (False, True), (None, 3), INTENTS
    )
    if combination[6] is None or combination[2] is Kernel.DEAD  # only of the dead is there a wait status
]


# -- the table


@dataclass(frozen=True)
class Row:
    """A line of RECOVERY.md."""

    record: str
    intent: str
    exit: str
    shim: str
    kernel: str
    becomes: str
    actions: str

    def fits(self, case: Case) -> bool:
        kernel = "dead with status" if case.wait_status is not None else str(case.kernel)
        return (
            self._record_fits(case)
            and self.intent in ("any", *case.intents)
            and (self.exit == "any" or case.exit is not None)
            and (self.shim == "any" or str(case.shim) in self.shim.split(", "))
            and (self.kernel in ("any", kernel) or str(case.kernel) in self.kernel.split(", "))
        )

    def _record_fits(self, case: Case) -> bool:
        state = container_state(case.record)
        ran = case.record.started_at > 0 or case.started or case.shim is Shim.RUNNING
        return {
            "any": True,
            "EXITED": state is ContainerState.EXITED,
            "started": case.record.started_at > 0,
            "ran": ran,
            "not ran": not ran,
        }[self.record]


def table() -> list[Row]:
    lines = (Path(__file__).parents[3] / "RECOVERY.md").read_text().splitlines()
    head = lines.index("| record | intent | exit file | shim | kernel | becomes | and then |")
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
    return [Row(*(cell.strip() for cell in row.strip("|").split("|"))) for row in rows]


def outcome(case: Case, found: Settlement) -> str:
    """What has become of it, in the words of the table."""
    status = found.status
    if status == case.record and (case.intents >= {"create"} or case.record.finished_at):
        return "as it is"
    if not status.finished_at:
        return str(container_state(status))
    told = (status.exit_code, status.reason, status.finished_at)
    return {
        (EXIT.code, REASON_ERROR, EXIT.finished_at): "EXITED as the exit file says",
        (9, REASON_ERROR, 6000): "EXITED as the shim says",
        (3, REASON_ERROR, NOW): "EXITED as the kernel says",
        (EXIT_UNKNOWN, REASON_REBOOT, NOW): "EXITED 255 NodeRebooted",
        (EXIT_UNKNOWN, REASON_LOST, NOW): "EXITED 255 ExitStatusLost",
    }[told]


def actions(case: Case, row: Row) -> tuple[str, ...]:
    """What the row says, and what the intents to stop and to remove add to it."""
    own = () if row.actions == "nothing" else tuple(row.actions.split(", "))
    if "create" in case.intents:
        return own
    if "remove" in case.intents:
        return (*own, "finish-remove")
    over = row.becomes.startswith("EXITED") or case.record.finished_at
    return (*own, "resume-stop") if "stop" in case.intents and not over else own


def test_the_code_does_what_the_table_says_for_every_combination() -> None:
    rows, used = table(), set()
    for case in PRODUCT:
        row = next(row for row in rows if row.fits(case))
        found = case.settle()
        assert (outcome(case, found), tuple(map(str, found.actions))) == (row.becomes, actions(case, row)), (case, row)
        used.add(row)
    assert not set(rows) - used, "lines that nothing reaches"


# -- what must hold, whatever the table says


def test_settling_twice_changes_nothing() -> None:
    for case in PRODUCT:
        once = case.settle().status
        # A start is cleared with the first result, unless that was "probe again".
        if "start" not in case.intents or container_state(once) is not ContainerState.CREATED:
            assert case.settle(once).status == once, case


def test_a_recorded_exit_is_final_and_every_move_is_in_the_table_of_states() -> None:
    for case in PRODUCT:
        before, after = container_state(case.record), container_state(case.settle().status)
        if before is ContainerState.EXITED:
            assert case.settle().status == case.record, case
        elif "create" not in case.intents:
            assert any(NEXT.get((before, event)) is after for event in Event), case


def test_what_has_started_is_never_created_again() -> None:
    for case in PRODUCT:
        if case.record.started_at:
            assert case.settle().status.started_at == case.record.started_at or case.shim is Shim.CREATED, case
            assert container_state(case.settle().status) is not ContainerState.CREATED, case


def test_unknown_is_said_only_when_no_witness_can_tell_and_never_for_good() -> None:
    for case in PRODUCT:
        found = case.settle()
        if container_state(found.status) is not ContainerState.UNKNOWN or "create" in case.intents:
            continue
        assert case.exit is None and case.wait_status is None, case
        assert case.kernel not in (Kernel.ALIVE, Kernel.REBOOTED), case
        assert case.shim is Shim.UNREACHABLE or case.kernel is Kernel.UNTOLD, case
        assert case.shim not in (Shim.CREATED, Shim.RUNNING, Shim.STOPPED), case
        assert Action.PROBE in found.actions and found.status.message == found.why, case


def test_f06_an_error_is_never_read_as_absence() -> None:
    """Neither a shim that does not answer nor a kernel that could not be asked ends, kills or deletes anything."""
    for case in PRODUCT:
        told = case.exit is not None or case.wait_status is not None or "create" in case.intents
        if told or case.record.finished_at or case.kernel is Kernel.REBOOTED:
            continue
        silent = case.shim is Shim.UNREACHABLE or (
            case.kernel is Kernel.UNTOLD and case.shim in (Shim.ABSENT, Shim.GONE)
        )
        if silent:
            found = case.settle()
            assert not DESTRUCTIVE & set(found.actions), case
            assert container_state(found.status) is not ContainerState.EXITED, case


def test_a_lost_exit_is_said_only_when_both_shim_and_kernel_have_proved_the_death() -> None:
    for case in PRODUCT:
        if case.settle().status.reason == REASON_LOST:
            assert case.shim in (Shim.ABSENT, Shim.GONE) and case.kernel is Kernel.DEAD, case
            assert case.exit is None and case.wait_status is None, case


def test_times_are_in_order_and_what_is_over_is_known_to_be() -> None:
    for case in PRODUCT:
        found = case.settle()
        if found.status.finished_at:
            assert 0 < found.status.started_at <= found.status.finished_at, case
            assert not found.status.unknown, case
        assert found.why, case


# -- one by one


@pytest.mark.parametrize("shim", [Shim.STOPPED, Shim.UNREACHABLE, Shim.GONE])
@pytest.mark.parametrize(
    ("code", "kills", "reason"), [(137, 2, REASON_OOM), (137, 0, REASON_ERROR), (143, 2, REASON_ERROR)]
)
def test_f11_an_oom_kill_is_told_by_the_cgroup_when_no_exit_file_could_be_written(
    shim: Shim, code: int, kills: int, reason: str
) -> None:
    stopped = (code, 6000) if shim is Shim.STOPPED else None
    witnesses = Witnesses(shim, Kernel.DEAD, stopped=stopped, wait_status=code, oom_kills=kills)
    found = settle(RECORDS["RUNNING"], witnesses, frozenset(), NOW).status
    assert (found.exit_code, found.reason, found.oom_kills) == (code, reason, kills)


def test_f11_an_oom_kill_is_told_by_the_exit_file() -> None:
    exit_file = replace(EXIT, code=137, signal=9, oom_killed=True, oom_kills=2)
    found = Case("RUNNING", Shim.GONE, Kernel.DEAD, exit_file).settle().status
    assert (found.reason, found.oom_kills, found.exit_code) == (REASON_OOM, 2, 137)


def test_an_exit_of_zero_is_completed() -> None:
    found = Case("RUNNING", Shim.GONE, Kernel.DEAD, replace(EXIT, code=0)).settle().status
    assert (found.reason, found.exit_code) == (REASON_COMPLETED, 0)


def test_a_start_that_was_not_recorded_is_found_running_since_it_was_begun() -> None:
    case = Case("CREATED", Shim.RUNNING, Kernel.ALIVE, started=True, known=True, intents=frozenset({"start"}))
    assert case.settle().status == ContainerStatus(started_at=BEGAN, process=REF)


def test_a_clock_set_back_does_not_end_a_container_before_its_start() -> None:
    record = replace(RECORDS["RUNNING"], started_at=7000)
    found = Case("RUNNING", Shim.GONE, Kernel.DEAD, EXIT).settle(record).status
    assert (found.started_at, found.finished_at) == (7000, 7000)
