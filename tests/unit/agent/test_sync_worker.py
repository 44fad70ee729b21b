"""The worker of a pod, against a runtime that fails, hangs and forgets as it is told."""

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from kit.workers import MS, Life, life, pod_of

from holdfast.agent.plan import backoff
from holdfast.agent.plan.backoff import LONGEST
from holdfast.agent.pod.containers import Probe
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import record
from holdfast.linux import spare
from holdfast.proto import runtime_v1_pb2 as pb

UNAVAILABLE, INTERNAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL
A = "{name: a, image: 'i:1', command: [run]}"
B = "{name: b, image: 'i:1'}"
WHOLE = pod_of(
    "{name: a, image: 'i:1', volumeMounts: [{name: v, mountPath: /v}], lifecycle: {postStart: {exec: {command: [hi]}},"
    "preStop: {exec: {command: [bye]}}}}," + B,
    "volumes: [{name: v, emptyDir: {}}], terminationGracePeriodSeconds: 5, hostUsers: false",
    "{name: i, image: 'i:1'}, {name: s, image: 'i:1', restartPolicy: Always}",
)  # fmt: skip


@pytest_asyncio.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    async with life(tmp_path, monkeypatch) as found:
        yield found


def ends_at_once(name: str) -> int | None:
    """Init containers do."""
    return 0 if name == "i" else None


def often(pod: Pod) -> Pod:
    """With probes every few milliseconds, which no manifest can ask for."""

    def of(probe: Probe | None) -> Probe | None:
        return probe and replace(probe, period_seconds=0.02)  # type: ignore[arg-type]

    containers = tuple(
        replace(
            one,
            liveness_probe=of(one.liveness_probe),
            readiness_probe=of(one.readiness_probe),
            startup_probe=of(one.startup_probe),
        )
        for one in pod.spec.containers
    )
    return replace(pod, spec=replace(pod.spec, containers=containers))


async def run_whole(one: Life) -> None:
    one.cri.at_start = ends_at_once
    await one.begin(WHOLE)
    await one.until(lambda: all(one.cri.running(name) for name in "abs"), "all to run")


@pytest.mark.parametrize("events", [True, False])
async def test_a_pod_from_the_first_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: bool) -> None:
    async with life(tmp_path, monkeypatch, events=events) as one:
        await run_whole(one)
        assert one.worker is not None
        await one.until(lambda: {each["status"] for each in one.worker.status()["conditions"]} == {"True"})
        status = one.worker.status()
        assert (status["phase"], len(status["conditions"])) == ("Running", 5)
        assert status["podIP"] == "127.0.0.1"
        order = [call for call in one.cri.calls if call.startswith(("RunPod", "Start"))]
        assert order[:3] == ["RunPodSandbox 0", "StartContainer i 0", "StartContainer s 0"]
        (config,) = [found for found in one.cri.configs.values() if found.metadata.name == "a"]
        places = {mount.container_path for mount in config.mounts}
        assert places == {"/v", "/etc/hosts", "/dev/termination-log"}
        await one.until(lambda: ("a", ("hi",)) in one.cri.commands)
        assert one.cgroups.pids == {"/a/besteffort/podu": set()}
        one.cri.calls.clear()
        await one.delete()
        stops = [call for call in one.cri.calls if call.startswith("Stop")]
        assert sorted(call.split()[1] for call in stops[:2]) == ["a", "b"]
        assert stops[2].startswith("StopContainer s"), "sidecars come last"
        assert ("a", ("bye",)) in one.cri.commands


async def deploy_and_delete(one: Life, deaths: asyncio.Event) -> None:
    """The whole life, by agents of which each begins where the one before it has died."""
    await one.begin(WHOLE)
    assert one.worker is not None
    ran = False
    while True:
        if deaths.is_set():
            deaths.clear()
            await one.die()
            await one.begin(WHOLE)
        if not ran and all(one.cri.running(name) for name in "abs"):
            ran = True
        if ran and not one.worker.record.deleted_at:
            await one.worker.delete(1)
        if one.ended:
            return
        await asyncio.sleep(0.001)


CALLS = 40  # more than a life takes


@pytest.mark.parametrize("part", range(4))
async def test_the_agent_may_die_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """At the n-th call of its life to the runtime, whose answer it never sees."""
    acted = 0
    for number in range(part, CALLS, 4):
        (base := tmp_path / str(number)).mkdir()
        async with life(base, monkeypatch) as one:
            deaths = asyncio.Event()
            left = number

            def at_call(method: str, deaths: asyncio.Event = deaths, one: Life = one) -> None:
                nonlocal left
                left -= 1
                if left == -1:
                    deaths.set()
                    one.stop_at_once()

            one.cri.at_start = ends_at_once
            one.cri.at_call = at_call
            async with asyncio.timeout(30):
                await deploy_and_delete(one, deaths)
            one.check_gone()
            acted += left < 0
    assert acted, "none of them died"


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    "method",
    ["ListPodSandbox", "ListContainers", "PodSandboxStatus", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox",
     "CreateContainer", "StartContainer", "StopContainer", "ExecSync", "ImageStatus", "RuntimeConfig"],
)  # fmt: skip
async def test_whatever_the_runtime_does_not_answer_is_asked_again(one: Life, method: str, done: bool) -> None:
    one.cri.fail(method, UNAVAILABLE, done=done, times=3)
    await run_whole(one)
    one.cri.fail(method, UNAVAILABLE, done=done, times=3)
    await one.delete()


async def test_a_runtime_that_is_away_changes_nothing(one: Life) -> None:
    await run_whole(one)
    before = [found.id for found in one.cri.containers.values()]
    assert one.worker is not None
    await one.until(lambda: one.worker.status()["phase"] == "Running")
    await one.cri.down()
    await one.until(lambda: one.worker.trouble, "trouble to be seen")
    one.cri.exit("b", 3)
    assert one.worker.status()["phase"] == "Running"
    await one.cri.up()
    await one.until(lambda: len(one.cri.of("b")) == 2 and one.cri.running("b"), "b to be started again")
    assert [found.id for found in one.cri.containers.values()][: len(before)] == before
    assert not one.worker.trouble
    await one.until(lambda: one.worker.status()["containerStatuses"][1]["state"].get("running"))
    b = one.worker.status()["containerStatuses"][1]
    assert b["restartCount"] == 1
    assert b["lastState"]["terminated"]["exitCode"] == 3


async def test_who_crashes_waits_longer_each_time_and_is_said_to(one: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    one.cri.at_start = lambda name: 1
    logs = Path(one.node.log_root, "n_p_u", "a")
    logs.mkdir(parents=True)
    for name in ("0.log", "0.log.20260101-000000", "1.log"):
        (logs / name).touch()
    await one.begin(pod_of(A))
    assert one.worker is not None
    await one.until(lambda: one.word("a") == "CrashLoopBackOff")
    await one.until(lambda: one.cri.asked("StartContainer") == 5, "five starts")
    pauses = one.worker.record.backoffs["a"].pause
    assert pauses >= 40_000_000
    assert pauses <= LONGEST
    assert len(one.cri.of("a")) <= 4, "what has ended is not kept for ever"
    await one.until(lambda: not list(logs.iterdir()), "logs to go with their runs")
    await one.die()
    starts = one.cri.asked("StartContainer")
    again = await one.begin(pod_of(A))
    assert again.record.backoffs["a"].pause >= pauses, "a new agent does not begin anew"
    await one.until(lambda: one.cri.asked("StartContainer") == starts + 1)
    assert one.cri.of("a")[-1].metadata.attempt == starts
    await one.delete()


async def test_images(one: Life) -> None:
    never = "{name: n, image: 'none:1', imagePullPolicy: Never}"
    await one.begin(pod_of(f"{A}, {{name: p, image: 'late:1'}}, {never}"))
    await one.until(lambda: one.word("n") == "ErrImageNeverPull")
    await one.until(lambda: one.word("p") == "ErrImagePull")
    assert one.worker is not None
    await one.until(lambda: one.worker.record.pulls["p"].pause >= 40_000_000, "a longer pause")
    await one.until(lambda: one.cri.running("a"), "another one, which does not wait for it")
    assert not one.cri.of("p")
    one.cri.registry.add("late:1")
    await one.until(lambda: one.cri.running("p"))
    assert not one.worker.record.pulls
    assert one.cri.asked("PullImage") >= 3
    assert "PullImage none:1" not in one.cri.calls
    await one.delete()


async def test_a_pull_that_hangs_holds_up_nobody_and_no_deletion(one: Life) -> None:
    one.cri.hang("PullImage")
    await one.begin(pod_of(f"{A}, {{name: p, image: 'late:1'}}"))
    await one.until(lambda: one.cri.running("a") and "PullImage late:1" in one.cri.calls)
    one.cri.exit("a", 1)
    await one.until(lambda: len(one.cri.of("a")) == 2 and one.cri.running("a"), "a to be started again")
    await one.delete()
    assert not one.cri.of("p")


async def test_unknown_is_neither_dead_nor_alive(one: Life) -> None:
    await one.begin(pod_of(A))
    await one.until(lambda: one.cri.running("a"))
    one.cri.at_stop = lambda name, grace: None
    one.cri.set_state("a", pb.CONTAINER_UNKNOWN)
    assert one.worker is not None
    await one.until(lambda: one.cri.asked("StopContainer") >= 3, "it to be killed")
    assert one.worker.status()["phase"] == "Unknown"
    assert len(one.cri.of("a")) == 1, "nothing takes its place"
    await one.worker.delete(0)
    await one.until(lambda: one.cri.asked("StopContainer") >= 5)
    assert not one.cri.asked("StopPodSandbox")
    assert list(one.volumes.wanted) == ["u"], "its volumes are wanted while it is not proven dead"
    one.cri.at_stop = lambda name, grace: 137
    await one.until(lambda: one.ended)
    one.check_gone()


async def test_a_process_that_the_runtime_does_not_know_of_keeps_the_volumes(one: Life) -> None:
    await run_whole(one)
    one.cgroups.pids["/a/besteffort/podu"] = {4711}
    assert one.worker is not None
    await one.worker.delete(0)
    await one.until(lambda: "4711" in one.worker.status().get("message", ""), "it to be said")
    assert list(one.volumes.wanted) == ["u"]
    assert one.volumes.place("u", "v").is_dir()
    assert one.cri.sandboxes
    one.cgroups.pids["/a/besteffort/podu"] = set()
    await one.until(lambda: one.ended)
    one.check_gone()


async def test_no_second_copy_while_something_of_the_first_lives(one: Life) -> None:
    await one.begin(pod_of(A))
    await one.until(lambda: one.cri.running("a"))
    one.cgroups.pids["/a/besteffort/podu"] = {4711}
    one.cri.lose_sandbox()
    assert one.worker is not None
    one.worker.wake()
    await one.until(lambda: "4711" in one.worker.status().get("message", ""), "it to be said")
    assert one.cri.asked("RunPodSandbox") == 1
    one.cgroups.pids["/a/besteffort/podu"] = set()
    await one.until(lambda: one.cri.running("a"))
    assert one.cri.calls.count("RunPodSandbox 1") == 1
    await one.until(lambda: one.worker.status()["containerStatuses"][0]["state"].get("running"))
    (a,) = one.worker.status()["containerStatuses"]
    assert (a["restartCount"], a["lastState"]["terminated"]["exitCode"]) == (1, 255)
    await one.delete()


async def test_volumes_that_are_not_ready_are_waited_for(one: Life) -> None:
    one.volumes.why = "volume v: no room"
    await one.begin(pod_of(A))
    assert one.worker is not None
    await one.until(lambda: "no room" in one.worker.status().get("message", ""))
    assert not one.cri.sandboxes
    one.volumes.why = ""
    await one.until(lambda: one.cri.running("a"))
    one.volumes.why = "it is kept: /x is mounted in it"
    await one.worker.delete()
    await one.until(lambda: "is kept" in one.worker.status().get("message", ""))
    assert one.worker.record.leaving
    assert one.cri.sandboxes, "the proof is kept until the volumes are gone"
    await one.die()
    again = await one.begin(pod_of(A))
    await one.until(lambda: "is kept" in again.status().get("message", ""))
    one.volumes.why = ""
    await one.until(lambda: one.ended)
    one.check_gone()


async def test_what_cannot_be_written_down_is_not_done(one: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await one.begin(pod_of(A))
    await one.until(lambda: one.cri.running("a"))

    def full(*_: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    assert one.worker is not None
    with monkeypatch.context() as patched:
        patched.setattr(spare, "write", full)
        with pytest.raises(OSError, match="no space"):
            await one.worker.delete()
        assert not one.worker.record.deleted_at
        one.cri.exit("a", 1)
        await one.until(lambda: "no space" in one.worker.trouble)
        assert len(one.cri.of("a")) == 1
        calls = one.cri.asked("ListContainers")
        await one.until(lambda: one.cri.asked("ListContainers") > calls + 2)
        assert len(one.cri.of("a")) == 1
    await one.until(lambda: one.cri.running("a"))
    await one.delete()


async def test_an_agent_that_begins_says_what_it_remembers(one: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the runtime does not answer: nobody is told that a container has never run."""
    monkeypatch.setattr(backoff, "FIRST", 60_000 * MS)
    pod = pod_of(A)
    worker = await one.begin(pod)
    for attempt in range(2):
        await one.until(lambda attempt=attempt: len(one.cri.of("a")) == attempt + 1 and one.cri.running("a"))
        one.cri.exit("a", 3)

    def pauses() -> bool:
        (main,) = worker.status()["containerStatuses"]
        return main["restartCount"] == 1 and "waiting" in main["state"]

    await one.until(pauses, "its pause")
    before = worker.status()
    await one.die()
    one.cri.hang("ListPodSandbox")
    again = await one.begin(pod)
    after = again.status()
    assert (after["phase"], after["conditions"]) == ("Running", before["conditions"])
    (main,) = after["containerStatuses"]
    assert (main["restartCount"], main["state"]["terminated"]["exitCode"]) == (1, 3)
    await one.die()


async def test_what_comes_after_the_end_is_not_written_down(one: Life) -> None:
    worker = await one.begin(pod_of(A))
    await one.until(lambda: one.cri.running("a"))
    await one.delete()
    await worker.update(pod_of(B))
    one.check_gone()


async def test_grace_is_counted_from_when_it_began_and_may_be_shortened(one: Life) -> None:
    pod = pod_of(A, "terminationGracePeriodSeconds: 500")
    await one.begin(pod)
    await one.until(lambda: one.cri.running("a"))
    hang = one.cri.hang("StopContainer")
    assert one.worker is not None
    await one.worker.delete()
    graces = lambda: [int(call.split()[2]) for call in one.cri.calls if call.startswith("StopContainer")]  # noqa: E731
    assert 490 <= (await one.until(graces))[0] <= 500
    await one.die()
    (path,) = record.records(one.paths)
    begun = record.load(path).deleted_at
    again = await one.begin(pod)
    await one.until(lambda: len(graces()) == 2)
    assert again.record.deleted_at == begun
    await again.delete(1000)
    assert again.record.grace is None, "nobody gets more time"
    await again.delete(3)
    await one.until(lambda: len(graces()) == 3)
    assert graces()[2] <= 3
    hang.set()
    await one.until(lambda: one.ended)
    one.check_gone()


async def test_hooks(one: Life) -> None:
    """One that fails is the end of its container; one whose end no agent has seen is run again."""
    hooked = "{name: a, image: 'i:1', lifecycle: {postStart: {exec: {command: [hi]}}}}"
    hang = one.cri.hang("ExecSync")
    await one.begin(pod_of(hooked))
    await one.until(lambda: one.cri.commands)
    await one.die()
    hang.set()
    del one.cri.hanging["ExecSync"]
    await one.begin(pod_of(hooked))
    await one.until(lambda: len(one.cri.commands) == 2)
    assert one.worker is not None
    await one.until(lambda: not one.worker.record.hooks)
    assert len(one.cri.of("a")) == 1
    one.cri.answer = lambda name, command: 1
    one.cri.exit("a", 0)
    await one.until(lambda: len(one.cri.of("a")) >= 3, "it to be ended for its hook")
    one.cri.answer = lambda name, command: 0
    await one.until(lambda: one.cri.running("a") and not one.worker.record.hooks)
    assert any(event.reason == "FailedPostStartHook" for event in one.worker.events)
    await one.delete()


async def test_a_probe_that_fails_is_the_end_of_its_run(one: Life) -> None:
    probed = "{name: a, image: 'i:1', livenessProbe: {exec: {command: [live]}, failureThreshold: 1, periodSeconds: 1},"
    probed += "readinessProbe: {exec: {command: [ready]}, periodSeconds: 1}}"
    await one.begin(pod_of(probed + ", " + B, "terminationGracePeriodSeconds: 7"))
    assert one.worker is not None
    ready = lambda: one.worker.status()["containerStatuses"][0]["ready"]  # noqa: E731
    await one.until(ready, "it to be ready")
    (path,) = record.records(one.paths)
    await one.until(lambda: any(health.readiness.good for health in record.load(path).health.values()))
    await one.die()
    await one.begin(one.worker.pod)
    await one.until(lambda: one.worker.there.runs)
    assert ready(), "it was ready when the agent died"
    one.cri.answer = lambda name, command: int(command == ("live",))
    await one.until(lambda: len(one.cri.of("a")) == 2 and one.cri.running("a"), "it to be started again")
    assert any(call.startswith("StopContainer a ") for call in one.cri.calls)
    assert not one.cri.asked("StopContainer b 7")
    assert len(one.cri.of("b")) == 1
    await one.delete()


async def test_a_runtime_that_cannot_tell_fails_no_probe(one: Life) -> None:
    probed = "{name: a, image: 'i:1', livenessProbe: {exec: {command: [live]}, failureThreshold: 1, periodSeconds: 1}}"
    one.cri.fail("ExecSync", UNAVAILABLE, times=2)
    one.cri.fail("ExecSync", INTERNAL, times=1)
    await one.begin(often(pod_of(probed)))
    await one.until(lambda: len(one.cri.commands) >= 4)
    assert len(one.cri.of("a")) == 1
    one.cri.fail("ExecSync", grpc.StatusCode.DEADLINE_EXCEEDED)
    await one.until(lambda: len(one.cri.of("a")) == 2, "the time of the command to be up")
    await one.delete()


async def test_probes_by_http_and_tcp(one: Life) -> None:
    said: list[bytes] = []
    code = 200

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line := await reader.readline():
            said.append(line)
            writer.write(f"HTTP/1.1 {code} X\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probes = "readinessProbe: {httpGet: {path: /up, port: web}, periodSeconds: 1, failureThreshold: 1}, "
    probes += f"startupProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}"
    await one.begin(
        often(pod_of(f"{{name: a, image: 'i:1', ports: [{{name: web, containerPort: {port}}}], {probes}}}"))
    )
    assert one.worker is not None
    ready = lambda: one.worker.status()["containerStatuses"][0]["ready"]  # noqa: E731
    await one.until(ready)
    assert said[0] == b"GET /up HTTP/1.1\r\n"
    code = 500
    await one.until(lambda: not ready())
    assert any("HTTP status 500 X" in event.message for event in one.worker.events)
    server.close()
    await server.wait_closed()
    await one.until(lambda: any("readiness probe" in event.message for event in one.worker.events))
    assert len(one.cri.of("a")) == 1
    await one.delete()


async def test_a_start_that_was_cut_off_leaves_no_second_copy(one: Life) -> None:
    """What was created and may yet be started is removed, and the removal answered, before another is created."""
    one.cri.fail("StartContainer", UNAVAILABLE)
    hang = one.cri.hang("RemoveContainer")
    await one.begin(pod_of(A))
    await one.until(lambda: one.cri.asked("RemoveContainer"))
    assert one.cri.asked("CreateContainer") == 1
    hang.set()
    await one.until(lambda: one.cri.running("a"))
    assert one.cri.asked("CreateContainer") == 2
    assert len(one.cri.of("a")) == 1
    await one.delete()


async def test_a_container_that_changed_is_made_anew_and_no_other(one: Life) -> None:
    pod = pod_of(f"{A}, {B}")
    await one.begin(pod)
    await one.until(lambda: one.cri.running("a") and one.cri.running("b"))
    assert one.worker is not None
    a, b = pod.spec.containers
    other = replace(pod, spec=replace(pod.spec, containers=(replace(a, args=("other",)), b)))
    await one.worker.update(other)
    await one.until(lambda: len(one.cri.of("a")) == 2 and one.cri.running("a"))
    assert len(one.cri.of("b")) == 1
    await one.die()
    again = await one.begin(pod)
    assert again.pod == other
    await one.delete()


async def test_last_words(one: Life) -> None:
    pod = pod_of(
        "{name: a, image: 'i:1'}, {name: b, image: 'i:1', terminationMessagePolicy: FallbackToLogsOnError}",
        "restartPolicy: Never",
    )
    await one.begin(pod)
    await one.until(lambda: one.cri.running("a") and one.cri.running("b"))
    (one.paths.pod("u") / "containers" / "a" / "0").write_text("x" * 9000 + "the end of a")
    (Path(one.node.log_root) / "n_p_u" / "b" / "0.log").write_text("2026-01-01T00:00:00Z stderr F out of luck\n")
    one.cri.exit("a", 0)
    one.cri.exit("b", 2)
    assert one.worker is not None
    await one.until(lambda: one.worker.status()["phase"] == "Failed")
    a, b = (found["state"]["terminated"] for found in one.worker.status()["containerStatuses"])
    assert (len(a["message"]), a["message"][-12:]) == (4096, "the end of a")
    assert (b["message"], b["exitCode"]) == ("out of luck", 2)
    await one.until(lambda: one.cri.asked("StopPodSandbox"))
    assert one.cri.containers, "they are kept for whoever reads their logs"
    await one.die()
    again = await one.begin(pod)
    await one.until(lambda: again.there.runs)
    assert again.status()["containerStatuses"][1]["state"]["terminated"]["message"] == "out of luck"
    assert again.status()["phase"] == "Failed"
    await one.delete()
