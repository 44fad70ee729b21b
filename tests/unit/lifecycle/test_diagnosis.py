"""The doctor's judgement by itself: a survey and rows in, findings out; above all, an error is not absence (F06)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.lifecycle.belongings import KEEPER, plan
from holdfast.lifecycle.diagnosis import Finding, Fix, Verdict
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.rows import ContainerRow, PodRow, Rows, UnderWay
from holdfast.lifecycle.survey import Entry, Place, Survey
from holdfast.linux.mount import MountEntry
from holdfast.linux.table import Listed
from holdfast.model.spec import ContainerMetadata, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.keeper import WorkerInfo
from holdfast.runtime.streamers import new_id
from holdfast.store.images import SnapshotRow

POD, OTHER_POD, CONTAINER = "a" * 64, "b" * 64, "c" * 64
STRAY = "d" * 64
BOOT = "this boot"
PARENT = f"/holdfast/{POD}"
SHIM = ProcessRef(10, 100, BOOT)
INIT = ProcessRef(20, 200, BOOT)
LAYER = "sha256:1"


def listed(pid: int, start: int, name: str, *argv: str, parent: int = 1, state: str = "S", cgroup: str = "/") -> Listed:
    return Listed(pid, start, parent, state, name, argv, (cgroup,))


def worker(pid: int, start: int, name: str, parent: int = 5) -> Listed:
    return listed(pid, start, name, "python", "-m", KEEPER, "--state", "/s", parent=parent)


def container(**status: Any) -> ContainerRow:
    meta = ContainerMetadata(CONTAINER, POD, "main", 0, b"", "", "", CONTAINER, "", "", 1)
    return ContainerRow(meta, ContainerStatus(**status))


RUNNING = container(started_at=1, process=INIT)
EXITED = container(started_at=1, finished_at=2, process=INIT)
POD_ROW = PodRow(PodMetadata(POD, "web", "default", "u", 0, "crun", b"", PARENT, True, 1), PodStatus(True, shim=SHIM))
SNAPSHOTS = (SnapshotRow(LAYER, "committed", None, 1), SnapshotRow(CONTAINER, "active", LAYER, 2))
ROWS = Rows({POD: POD_ROW}, {CONTAINER: RUNNING}, layers={LAYER: "sha256:image"}, snapshots=SNAPSHOTS)


def directory(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, "directory") for name in names)


SURVEY = Survey(
    place=Place(Layout(Path("/r"), Path("/s")), "/holdfast", frozenset({PARENT}), ROWS.ids),
    root="/r",
    state="/s",
    boot_id=BOOT,
    processes=(
        worker(5, 50, "hf-keeper", 1),
        worker(6, 51, "hf-template"),
        worker(10, 100, "hf-shim"),
        worker(11, 110, "hf-shim", parent=10),
        listed(12, 120, "crun", "/usr/bin/crun", "--root", "/s/oci/crun", "start", parent=11),
        listed(20, 200, "sleep", "sleep", parent=10, cgroup=f"{PARENT}/{CONTAINER}"),
        listed(99, 990, "bash", "bash", cgroup="/user"),
    ),
    workers=(WorkerInfo("shim", POD, 10, 100),),
    mounts=(),
    cgroups=(PARENT, f"{PARENT}/{CONTAINER}"),
    files={
        "/s": directory("pods", "oci"),
        "/s/oci": directory("crun"),
        "/s/oci/crun": directory(CONTAINER),
        "/s/pods": directory(POD),
        f"/s/pods/{POD}": directory(CONTAINER, "ns"),
        f"/s/pods/{POD}/{CONTAINER}": (Entry("stdout", "fifo"),),
        "/r": directory("snapshots"),
        "/r/snapshots": directory("1", "2"),
    },
    inits={},
    loggers={},
    streamers={},
    unknown={},
)


def wrong(survey: Survey = SURVEY, rows: Rows = ROWS) -> list[Finding]:
    return [finding for finding in plan(survey, rows) if finding.verdict is not Verdict.OK]


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def without(*pids: int) -> tuple[Listed, ...]:
    return tuple(one for one in SURVEY.processes if one.pid not in pids)


def test_what_is_as_it_should_be() -> None:
    assert wrong() == []
    owners = {finding.where: finding.owner for finding in plan(SURVEY, ROWS)}
    assert owners["pid 10 (hf-shim)"] == owners[PARENT] == owners[f"/s/pods/{POD}"] == "pod default/web"
    assert owners["pid 20 (sleep)"] == owners[f"{PARENT}/{CONTAINER}"] == "container main"
    assert not [where for where in owners if "pid 99" in where], "what is not ours is not our business"


def test_what_crun_keeps_compiled_is_no_stranger() -> None:
    names = SURVEY.files["/s/oci/crun"]
    cached = replace(SURVEY, files={**SURVEY.files, "/s/oci/crun": (*names, *directory(".cache"))})
    assert wrong(cached) == []


def test_without_its_row_everything_of_a_pod_is_an_orphan_and_processes_go_first() -> None:
    found = wrong(replace(SURVEY, inits={}), Rows({}, {}))
    assert {finding.verdict for finding in found} == {Verdict.ORPHAN}
    kinds = [finding.kind for finding in found]
    assert kinds[:2] == ["shim", "process"]
    assert set(kinds) == {"shim", "process", "cgroup", "pod directory", "runtime state", "snapshot directory"}
    assert [finding.fix for finding in found] == sorted((one.fix for one in found), key=list(Fix).index)


def test_a_row_that_cannot_be_read_owns_what_bears_its_id() -> None:
    rows = Rows({}, {}, unreadable=frozenset({POD, CONTAINER}), layers=ROWS.layers, snapshots=SNAPSHOTS)
    assert {finding.verdict for finding in wrong(rows=rows)} == {Verdict.UNKNOWN}
    assert {finding.kind for finding in wrong(rows=rows)} == {"row"}


def test_a_pod_with_users_of_its_own_needs_their_namespace() -> None:
    config = pb.PodSandboxConfig()
    users = config.linux.security_context.namespace_options.userns_options
    users.uids.add(host_id=65536, length=65536)
    users.gids.add(host_id=65536, length=65536)
    row = replace(POD_ROW, meta=replace(POD_ROW.meta, config=config.SerializeToString()))
    rows = replace(ROWS, pods={POD: row})
    assert only(wrong(rows=rows)).why == "READY, but its user namespace is not pinned"
    assert only(wrong(replace(SURVEY, unknown={"mounts": "Input/output error"}), rows)).verdict is Verdict.UNKNOWN
    pinned = MountEntry(7, 1, "0:4", "user:[1]", f"/s/pods/{POD}/ns/user", "rw", "nsfs", "nsfs", ())
    assert wrong(replace(SURVEY, mounts=(pinned,)), rows) == []


def test_f06_a_process_that_could_not_be_looked_at_is_not_gone() -> None:
    gone = replace(SURVEY, processes=without(20))
    assert only(wrong(gone)).why == "RUNNING, but its process is gone"
    unseen = replace(gone, unknown={"pid 20": "Input/output error"})
    assert {finding.verdict for finding in wrong(unseen)} == {Verdict.UNKNOWN}
    blind = replace(SURVEY, processes=(), unknown={"/proc": "Input/output error"})
    found = {finding.kind: finding.verdict for finding in wrong(blind)}
    assert found == {"place": Verdict.UNKNOWN, "container": Verdict.UNKNOWN}


def test_f06_a_keeper_that_does_not_answer_has_not_lost_its_shims() -> None:
    assert wrong(replace(SURVEY, workers=None)) == [], "the row names the shim"
    found = wrong(replace(SURVEY, workers=None), Rows({}, {}, unreadable=ROWS.ids))
    shims = [one for one in found if one.kind in ("process", "shim")]
    assert shims and {one.verdict for one in shims} == {Verdict.UNKNOWN}
    no_keeper = replace(SURVEY, workers=None, processes=without(5, 6, 20))
    (shim,) = [one for one in wrong(no_keeper, Rows({}, {})) if one.kind == "shim"]
    assert (shim.verdict, shim.fix, shim.process) == (Verdict.ORPHAN, Fix.KILL, SHIM)


@pytest.mark.parametrize("pid", [10, 11])
def test_f06_a_command_whose_parent_could_not_be_looked_at_is_not_forsaken(pid: int) -> None:
    survey = replace(SURVEY, processes=without(pid), unknown={f"pid {pid}": "Input/output error"})
    assert {finding.verdict for finding in wrong(survey)} == {Verdict.UNKNOWN}


@pytest.mark.parametrize("place", ["mounts", "/s/oci", "/s/oci/crun"])
def test_f06_what_a_task_has_left_goes_only_when_the_runtime_is_known_to_have_forgotten_it(place: str) -> None:
    survey = replace(SURVEY, processes=without(20), cgroups=(PARENT,))
    survey = replace(survey, files={**SURVEY.files, "/s/oci/crun": ()})
    rows = replace(ROWS, containers={CONTAINER: EXITED})
    fifo = only(wrong(survey, rows))
    assert (fifo.kind, fifo.fix) == ("fifo", Fix.DELETE)
    assert {one.verdict for one in wrong(replace(survey, unknown={place: "no"}), rows)} == {Verdict.UNKNOWN}


def test_what_a_logger_is_found_by_stays_until_its_log_is_complete() -> None:
    """The task is over and forgotten a moment before its logger is told to finish."""
    survey = replace(SURVEY, processes=without(20), cgroups=(PARENT,))
    rows = replace(ROWS, containers={CONTAINER: EXITED})
    left = (Entry("log.sock", "socket"), Entry("logger.json", "file"), Entry("stderr", "fifo"))

    def orphans(*there: Entry) -> list[str]:
        files = {**SURVEY.files, "/s/oci/crun": (), f"/s/pods/{POD}/{CONTAINER}": there}
        return [Path(one.where).name for one in wrong(replace(survey, files=files), rows)]

    assert orphans(*left) == []
    assert orphans(left[0], left[2]) == ["log.sock", "stderr"], "it has finished"
    assert orphans(*left[:2]) == ["log.sock"], "there is nothing to be completed"


@pytest.mark.parametrize("place", ["/r/snapshots", "/s/pods", f"/s/pods/{POD}", PARENT])
def test_f06_a_directory_that_could_not_be_listed_is_not_empty(place: str) -> None:
    below = {path: entries for path, entries in SURVEY.files.items() if not f"{path}/".startswith(f"{place}/")}
    cgroups = tuple(path for path in SURVEY.cgroups if not path.startswith(place))
    missing = replace(SURVEY, files=below, cgroups=cgroups)
    assert {one.verdict for one in wrong(missing)} == {Verdict.INCONSISTENT}
    unseen = wrong(replace(missing, unknown={place: "Input/output error"}))
    assert [(one.kind, one.verdict) for one in unseen] == [("place", Verdict.UNKNOWN)]


@pytest.mark.parametrize(
    ("survey", "rows", "why"),
    [
        ({}, {"containers": {CONTAINER: EXITED}}, "EXITED, but its process lives"),
        ({"processes": without(10, 11, 12)}, {}, "READY, but its shim is gone"),
        ({"cgroups": (f"{PARENT}/{CONTAINER}",)}, {}, "READY, but its cgroup is missing"),
        ({}, {"snapshots": SNAPSHOTS[:1]}, f"it has no snapshot {CONTAINER}"),
        ({}, {"blobs": frozenset({"sha256:x"})}, "an image refers to it, and its file is missing"),
    ],
)
def test_rows_that_do_not_agree_with_the_node(survey: dict[str, Any], rows: dict[str, Any], why: str) -> None:
    found = wrong(replace(SURVEY, **survey), replace(ROWS, **rows))
    assert why in [finding.why for finding in found]
    assert {one.kind for one in found if one.verdict is Verdict.ORPHAN} <= {"snapshot directory"}


def test_two_shims_of_one_pod() -> None:
    second = replace(SURVEY, processes=(*SURVEY.processes, worker(30, 300, "hf-shim")))
    second = replace(second, workers=(*(SURVEY.workers or ()), WorkerInfo("shim", POD, 30, 300)))
    assert only(wrong(second)).why == "the pod has 2 shims"


def test_what_is_under_way_is_left_alone() -> None:
    busy = replace(POD_ROW, intents=frozenset({"run"}), status=PodStatus())
    survey = replace(SURVEY, processes=without(20), cgroups=(), files={})
    assert wrong(replace(survey, files={"/r/snapshots": directory("1", "2")}), replace(ROWS, pods={POD: busy})) == []
    arriving = UnderWay(arriving=True, transfers=frozenset({"part"}), directories=frozenset({3}))
    files = {**SURVEY.files, "/r/ingest": (Entry("part", "file"), Entry("old", "file"))}
    files["/r/snapshots"] = directory("1", "2", "3", "4")
    found = wrong(replace(SURVEY, files=files), replace(ROWS, under_way=arriving))
    assert [finding.where for finding in found] == ["/r/ingest/old", "/r/snapshots/4"]


def test_a_cgroup_that_is_not_ours_alone_is_never_emptied() -> None:
    """A kubelet's pod cgroup: what is in it may be somebody else's."""
    parent = "/kubepods/pod1"
    meta = replace(POD_ROW.meta, cgroup_parent=parent, owns_cgroup=False)
    rows = replace(ROWS, pods={POD: replace(POD_ROW, meta=meta)})
    foreign = listed(40, 400, "other", cgroup=f"{parent}/{STRAY}")
    inside = listed(20, 200, "sleep", parent=10, cgroup=f"{parent}/{CONTAINER}/{STRAY}")
    survey = replace(
        SURVEY,
        processes=(*without(20), foreign, inside),
        cgroups=(parent, f"{parent}/{CONTAINER}", f"{parent}/{STRAY}"),
    )
    found = wrong(survey, rows)
    assert {finding.where for finding in found} == {"pid 40 (other)", f"{parent}/{STRAY}"}
    assert {finding.verdict for finding in found} == {Verdict.UNKNOWN}


def foreign_shim(id: str, state: str = "/s", *verb: str) -> Listed:
    argv = ("/usr/bin/containerd-shim-x-v2", "-namespace", "x", "-id", id, "-address", f"{state}/events.sock", *verb)
    return listed(70, 700, "containerd-shim", *argv)


@pytest.mark.parametrize(
    ("shim", "found"),
    [
        (foreign_shim(POD), ("shim", Verdict.OK, Fix.NONE)),
        (foreign_shim(STRAY), ("shim", Verdict.ORPHAN, Fix.END_SHIM)),
        (foreign_shim(STRAY, "/s", "delete"), ("process", Verdict.OK, Fix.NONE)),
        (foreign_shim(STRAY, "/another"), None),
    ],
)
def test_a_foreign_shim_is_known_by_the_socket_it_tells(shim: Listed, found: object) -> None:
    survey = replace(SURVEY, processes=(*(one for one in SURVEY.processes if one.pid != 10), shim))
    told = [(one.kind, one.verdict, one.fix) for one in plan(survey, ROWS) if one.where.startswith("pid 70 ")]
    assert told == ([found] if found else [])


def test_what_a_foreign_shim_runs_is_not_an_orphan() -> None:
    command = listed(71, 710, "runc", "runc", "--root", "/s/oci/x", "delete", parent=70)
    survey = replace(SURVEY, processes=(*SURVEY.processes, foreign_shim(POD), command))
    assert [one.verdict for one in plan(survey, ROWS) if one.where.startswith("pid 71 ")] == [Verdict.OK]


@pytest.mark.parametrize(("id", "verdict"), [(CONTAINER, Verdict.OK), (STRAY, Verdict.ORPHAN)])
def test_a_logger_whose_keeper_is_gone_is_its_containers(id: str, verdict: Verdict) -> None:
    one = worker(72, 720, "hf-logger", 1)
    survey = replace(SURVEY, processes=(*SURVEY.processes, one), loggers={id: ProcessRef(72, 720, BOOT)})
    assert [found.verdict for found in plan(survey, ROWS) if found.where.startswith("pid 72 ")] == [verdict]


@pytest.mark.parametrize(("id", "verdict"), [(CONTAINER, Verdict.OK), (STRAY, Verdict.ORPHAN)])
def test_a_logger_is_its_containers(id: str, verdict: Verdict) -> None:
    workers = (*(SURVEY.workers or ()), WorkerInfo("logger", id, 72, 720))
    survey = replace(SURVEY, processes=(*SURVEY.processes, worker(72, 720, "hf-logger")), workers=workers)
    assert [one.verdict for one in plan(survey, ROWS) if one.where.startswith("pid 72 ")] == [verdict]


def test_a_container_that_was_told_to_stop_and_is_stuck_in_the_kernel_is_named_with_where() -> None:
    stuck = replace(SURVEY.processes[5], state="D", stuck="request_wait_answer")
    assert stuck.pid == INIT.pid
    survey = replace(SURVEY, processes=(*SURVEY.processes[:5], stuck, *SURVEY.processes[6:]))
    assert wrong(survey) == [], "one that nobody stops may wait for its disk"
    stopping = replace(ROWS, containers={CONTAINER: replace(RUNNING, intents=frozenset({"stop"}))})
    assert wrong(SURVEY, stopping) == []
    found = only(wrong(survey, stopping))
    assert found.verdict is Verdict.INCONSISTENT
    assert found.why == "under way: stop; process 20 is in state D, waiting in request_wait_answer"


VIEW = SnapshotRow(f"{CONTAINER}/0", "view", LAYER, 3)
WITH_IMAGE = pb.ContainerConfig(mounts=[pb.Mount(container_path="/v", image=pb.ImageSpec(image="i"))])


def with_volume(row: ContainerRow) -> ContainerRow:
    return replace(row, meta=replace(row.meta, config=WITH_IMAGE.SerializeToString()))


def test_the_view_of_an_image_is_its_containers() -> None:
    survey = replace(SURVEY, files=SURVEY.files | {"/r/snapshots": directory("1", "2", "3")})
    rows = replace(ROWS, containers={CONTAINER: with_volume(RUNNING)}, snapshots=(*SNAPSHOTS, VIEW))
    assert wrong(survey, rows) == []
    stray = replace(VIEW, key=f"{STRAY}/0")
    found = only(wrong(survey, replace(ROWS, snapshots=(*SNAPSHOTS, stray))))
    assert (found.verdict, found.where, found.fix) == (Verdict.ORPHAN, stray.key, Fix.DROP_SNAPSHOT)


def test_a_container_without_its_view_is_not_right() -> None:
    found = only(wrong(rows=replace(ROWS, containers={CONTAINER: with_volume(RUNNING)})))
    assert (found.verdict, found.why) == (Verdict.INCONSISTENT, f"it has no snapshot {VIEW.key}")


@pytest.mark.parametrize(("row", "verdict"), [(RUNNING, Verdict.OK), (EXITED, Verdict.INCONSISTENT)])
def test_what_is_staged_is_the_containers_and_not_there_when_it_is_over(row: ContainerRow, verdict: Verdict) -> None:
    target = f"/s/pods/{POD}/{CONTAINER}/volumes/0"
    staged = MountEntry(1, 0, "0:1", "/", target, "ro", "overlay", "overlay", ())
    survey = replace(SURVEY, mounts=(staged,))
    found = [one for one in plan(survey, replace(ROWS, containers={CONTAINER: row})) if one.where == target]
    assert [one.verdict for one in found] == [verdict]


# -- sessions

EXEC, ATTACH, FORWARD = new_id("exec", CONTAINER), new_id("attach", CONTAINER), new_id("forward", POD)


def with_sessions(streamers: dict[str, int], listed: bool = True, recorded: bool = True) -> Survey:
    """The node with all three of them; `streamers` are the pids of those that are there."""
    bundle = f"/s/pods/{POD}/{CONTAINER}"
    files = {
        **SURVEY.files,
        f"/s/pods/{POD}": directory(CONTAINER, "ns", "sessions"),
        f"/s/pods/{POD}/sessions": tuple(Entry(id, "file") for id in (EXEC, ATTACH, FORWARD) if recorded),
        bundle: (Entry("stdout", "fifo"), *directory("exec", "attach")),
        f"{bundle}/exec": directory(EXEC, "0123456789abcdef"),
        f"{bundle}/attach": directory(ATTACH),
    }
    found = tuple(worker(pid, pid * 10, "hf-streamer") for pid in streamers.values())
    frames = tuple(worker(pid + 1, pid * 10, "hf-streamer", parent=pid) for pid in streamers.values())
    infos = tuple(WorkerInfo("streamer", id, pid, pid * 10) for id, pid in streamers.items())
    return replace(
        SURVEY,
        files=files,
        processes=(*SURVEY.processes, *found, *frames),
        workers=((*SURVEY.workers, *infos) if listed else SURVEY.workers) if SURVEY.workers is not None else None,
        streamers={id: ProcessRef(pid, pid * 10, BOOT) for id, pid in streamers.items()} if recorded else {},
    )


ALL = {EXEC: 40, ATTACH: 50, FORWARD: 60}


@pytest.mark.parametrize(("listed", "recorded"), [(True, True), (True, False), (False, True)])
def test_a_session_is_known_by_its_keeper_or_by_its_record(listed: bool, recorded: bool) -> None:
    survey = with_sessions(ALL, listed, recorded)
    assert wrong(survey) == []
    owners = {finding.where: finding.owner for finding in plan(survey, ROWS) if finding.kind == "streamer"}
    assert owners == {
        "pid 40 (hf-streamer)": "container main",
        "pid 50 (hf-streamer)": "container main",
        "pid 60 (hf-streamer)": "pod default/web",
    }


def test_what_a_session_without_a_streamer_has_left() -> None:
    """Of an exec the shim knows, too, so the sweep lets it be until the daemon has ended it."""
    found = {(one.kind, one.where.rpartition("/")[2]): one for one in wrong(with_sessions({}))}
    records = {("session", id) for id in (EXEC, ATTACH, FORWARD)}
    assert found.keys() == {("exec", EXEC), ("attach", ATTACH), *records}
    assert found["exec", EXEC].verdict is Verdict.INCONSISTENT
    assert {found[key].fix for key in (*records, ("attach", ATTACH))} == {Fix.DELETE}
    over = [one for one in wrong(with_sessions({}), replace(ROWS, containers={CONTAINER: EXITED})) if one.id]
    assert ("exec", Fix.DELETE) in {(one.kind, one.fix) for one in over if one.where.endswith(EXEC)}


def test_what_the_daemon_is_at_and_what_no_keeper_tells_is_left_alone() -> None:
    rows = replace(ROWS, under_way=UnderWay(sessions=frozenset(ALL)))
    assert wrong(with_sessions({}), rows) == []
    silent = replace(with_sessions({}), workers=None)
    assert not [one for one in wrong(silent) if one.kind in ("session", "exec", "attach")]


def test_a_streamer_of_nobody() -> None:
    stray = new_id("exec", STRAY)
    found = only(wrong(with_sessions(ALL | {stray: 70})))
    assert (found.kind, found.verdict, found.fix, found.process) == (
        "streamer",
        Verdict.ORPHAN,
        Fix.KILL,
        ProcessRef(70, 700, BOOT),
    )


def test_what_is_written_of_a_checkpoint_belongs_to_who_is_being_checkpointed() -> None:
    survey = replace(SURVEY, files={**SURVEY.files, "/r/checkpoints": directory(CONTAINER)})
    assert (found := only(wrong(survey))).why == "nobody is writing it"
    assert (found.verdict, found.fix) == (Verdict.ORPHAN, Fix.DELETE)
    under_way = replace(RUNNING, intents=frozenset({"checkpoint"}))
    assert wrong(survey, replace(ROWS, containers={CONTAINER: under_way})) == []


def test_what_a_container_will_be_restored_from_is_its_own_also_before_it_has_a_row() -> None:
    survey = replace(SURVEY, files={**SURVEY.files, "/r/restores": directory(CONTAINER, STRAY)})
    found = only(wrong(survey))
    assert (found.where, found.verdict, found.fix) == (f"/r/restores/{STRAY}", Verdict.ORPHAN, Fix.DELETE)
    assert wrong(survey, replace(ROWS, under_way=UnderWay(restores=frozenset({STRAY})))) == []
