"""What is to be done next for a pod."""

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.agent.plan.actions import NS, Actions, Remembered, Start, Wait, plan
from holdfast.agent.plan.backoff import Backoff
from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.plan.probes import Health, Kind
from holdfast.agent.plan.probes import Run as Results
from holdfast.agent.pod.containers import Container, ExecAction, ExitCodes, Probe, RestartRule
from holdfast.agent.pod.scalars import Count, Name, Seconds, Subdomain
from holdfast.agent.pod.spec import Metadata, Pod, PodSpec

READY = Sandbox("s", 0, True)
RUNNING, EXITED, UNKNOWN, CREATED = State.RUNNING, State.EXITED, State.UNKNOWN, State.CREATED
NOW = 1000 * NS
PROBE = Probe(exec=ExecAction(("true",)))


def pod(*containers: str, init: tuple[str, ...] = (), policy: str = "Always", **more: object) -> Pod:
    """Of an init container "name+" makes a sidecar."""
    inits = tuple(
        Container(Name(one.rstrip("+")), "i", restart_policy="Always" if one.endswith("+") else "") for one in init
    )
    mains = tuple(Container(Name(one), "i") for one in containers)
    spec = PodSpec(mains, inits, restart_policy=policy, **more)  # type: ignore[arg-type]
    return Pod("v1", "Pod", Metadata(Subdomain("p")), spec)


def run(name: str, state: State, code: int = 0, attempt: int = 0, sandbox: str = "s") -> Run:
    return Run(name, f"{name}-{attempt}", sandbox, attempt, state, "d", created_at=attempt + 1, code=code)


def there(*runs: Run) -> Observed:
    return Observed((READY,), runs)


def starts(*names: str) -> tuple[Start, ...]:
    return tuple(Start(name, 0) for name in names)


def test_a_new_pod_gets_a_sandbox_and_then_all_its_containers() -> None:
    one = pod("a", "b")
    assert plan(one, Observed(), Remembered(), NOW) == Actions(new_sandbox=0, why="it has no sandbox")
    assert plan(one, there(), Remembered(), NOW) == Actions(starts=starts("a", "b"))
    assert plan(one, there(run("a", RUNNING), run("b", RUNNING)), Remembered(), NOW) == Actions()


def test_init_containers_one_after_the_other() -> None:
    one = pod("a", init=("x", "y"))
    assert plan(one, there(), Remembered(), NOW).starts == starts("x")
    assert plan(one, there(run("x", RUNNING)), Remembered(), NOW) == Actions()
    assert plan(one, there(run("x", EXITED)), Remembered(), NOW).starts == starts("y")
    done = (run("x", EXITED), run("y", EXITED))
    assert plan(one, there(*done), Remembered(), NOW).starts == starts("a")
    assert plan(one, there(*done, run("a", RUNNING)), Remembered(), NOW) == Actions()
    # Collected as garbage once they are through: not run again.
    assert plan(one, there(run("a", RUNNING)), Remembered(), NOW) == Actions()


def test_an_init_container_that_fails_is_run_again_or_is_the_end() -> None:
    failed = there(run("x", EXITED, code=1))
    assert plan(pod("a", init=("x",)), failed, Remembered(), NOW).starts == (Start("x", 1),)
    end = plan(pod("a", init=("x",), policy="Never"), failed, Remembered(), NOW)
    assert (end.finished, end.stop_sandboxes) == ("Failed", ("s",))


def test_a_sidecar_holds_up_who_comes_after_it_only_until_it_has_started() -> None:
    one = pod("a", init=("s+", "x"))
    assert plan(one, there(), Remembered(), NOW).starts == starts("s")
    assert plan(one, there(run("s", RUNNING)), Remembered(), NOW).starts == starts("x")
    probed = replace(one.spec.init_containers[0], startup_probe=PROBE)
    slow = replace(one, spec=replace(one.spec, init_containers=(probed, one.spec.init_containers[1])))
    assert plan(slow, there(run("s", RUNNING)), Remembered(), NOW) == Actions()
    known = Remembered(health={"s-0": Health(startup=Results(True))})
    assert plan(slow, there(run("s", RUNNING)), known, NOW).starts == starts("x")
    later = there(run("s", EXITED, code=1), run("x", EXITED), run("a", RUNNING))
    assert plan(one, later, Remembered(), NOW).starts == (Start("s", 1),)


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_restart_policies(policy: str, code: int, again: bool) -> None:
    one = pod("a", "b", policy=policy)
    found = plan(one, there(run("a", EXITED, code=code), run("b", RUNNING)), Remembered(), NOW)
    assert found == Actions(starts=(Start("a", 1),) if again else ())


def test_a_containers_own_policy_and_rules_come_before_the_pods() -> None:
    def again(code: int, policy: str, pods: str, *rules: RestartRule) -> bool:
        one = pod("a", "b", policy=pods)
        own = replace(one.spec.containers[0], restart_policy=policy, restart_policy_rules=rules)
        one = replace(one, spec=replace(one.spec, containers=(own, one.spec.containers[1])))
        return bool(plan(one, there(run("a", EXITED, code=code), run("b", RUNNING)), Remembered(), NOW).starts)

    assert (again(0, "Never", "Always"), again(0, "Always", "Never")) == (False, True)
    assert (again(0, "OnFailure", "Always"), again(1, "OnFailure", "Never")) == (False, True)
    some = RestartRule("Restart", ExitCodes("In", (Seconds(42), Seconds(43))))
    most = RestartRule("Restart", ExitCodes("NotIn", (Seconds(0), Seconds(1))))
    assert [again(code, "Never", "Always", some) for code in (0, 42, 43, 44)] == [False, True, True, False]
    assert [again(code, "Never", "Always", some, most) for code in (0, 1, 2, 42)] == [False, False, True, True]


def test_an_init_container_has_its_own_policy_too() -> None:
    one = pod("a", init=("x",))
    never = replace(one.spec.init_containers[0], restart_policy="Never")
    one = replace(one, spec=replace(one.spec, init_containers=(never,)))
    assert plan(one, there(run("x", EXITED, code=1)), Remembered(), NOW).finished == "Failed"
    assert plan(one, there(run("x", EXITED)), Remembered(), NOW).starts == starts("a")


def test_who_comes_after_a_sidecar_waits_for_its_hook() -> None:
    one = pod("a", init=("s+",))
    known = Remembered(hooks={"s": 0})
    assert plan(one, there(run("s", RUNNING)), known, NOW) == Actions()
    later = there(run("s", EXITED), run("s", RUNNING, attempt=1))
    assert plan(one, later, known, NOW).starts == starts("a"), "that was the hook of the run before"


def test_a_container_that_ends_again_waits() -> None:
    known = Remembered(backoffs={"a": Backoff(pause=20 * NS, ended_at=NOW - 5 * NS)})
    waiting = plan(pod("a"), there(run("a", EXITED, attempt=2)), known, NOW)
    assert waiting == Actions(waits=(Wait("a", NOW + 15 * NS),), due=NOW + 15 * NS)
    assert plan(pod("a"), there(run("a", EXITED, attempt=2)), known, NOW + 15 * NS).starts == (Start("a", 3),)


def test_what_was_through_before_its_sandbox_went_is_not_run_again() -> None:
    new = Observed((replace(READY, ready=False), Sandbox("t", 1, True)), (run("a", EXITED), run("b", EXITED, code=137)))
    assert plan(pod("a", "b", policy="OnFailure"), new, Remembered(), NOW).starts == (Start("b", 1),)
    assert plan(pod("a", "b"), new, Remembered(), NOW).starts == (Start("a", 1), Start("b", 1))


def test_over_when_nothing_is_left_to_run() -> None:
    one = pod("a", "b", init=("s+",), policy="OnFailure")
    runs = (run("s", RUNNING), run("a", EXITED), run("b", EXITED))
    found = plan(one, there(*runs), Remembered(), NOW)
    assert (found.finished, [kill.run.name for kill in found.kills], found.stop_sandboxes) == ("Succeeded", ["s"], ())
    gone = plan(one, there(run("s", EXITED), *runs[1:]), Remembered(), NOW)
    assert (gone.finished, gone.kills, gone.stop_sandboxes) == ("Succeeded", (), ("s",))
    failed = plan(pod("a", "b", policy="Never"), there(run("a", EXITED, code=2), run("b", EXITED)), Remembered(), NOW)
    assert failed.finished == "Failed"


def test_the_end_of_a_deleted_pod_is_in_order() -> None:
    one = pod("a", init=("s+", "t+"))
    known = Remembered(deleted_at=NOW, grace=3)
    runs = [run("s", RUNNING), run("t", RUNNING), run("a", RUNNING)]
    order = []
    for _ in range(4):
        found = plan(one, there(*runs), known, NOW)
        order.append([kill.run.name for kill in found.kills] or list(found.stop_sandboxes))
        assert all(kill.grace == 3 for kill in found.kills)
        runs = [replace(each, state=EXITED) if each.name in order[-1] else each for each in runs]
    assert order == [["a"], ["t"], ["s"], ["s"]]


def test_the_deadline() -> None:
    one = pod("a", active_deadline_seconds=Count(10))
    known = Remembered(begun_at=NOW)
    assert plan(one, there(run("a", RUNNING)), known, NOW + 9 * NS) == Actions(due=NOW + 10 * NS)
    assert plan(one, there(run("a", RUNNING)), known, NOW + 10 * NS).why == "DeadlineExceeded"


def test_a_sandbox_that_is_no_good_is_replaced_once_all_in_it_are_dead() -> None:
    dead = Sandbox("s", 0, False)
    alive = plan(pod("a"), Observed((dead,), (run("a", UNKNOWN),)), Remembered(), NOW)
    assert ([kill.run.id for kill in alive.kills], alive.new_sandbox, alive.starts) == (["a-0"], None, ())
    found = plan(pod("a"), Observed((dead,), (run("a", EXITED),)), Remembered(), NOW)
    assert (found.new_sandbox, found.stop_sandboxes) == (1, ("s",))
    both = Observed((dead, Sandbox("t", 1, True)), (run("a", EXITED),))
    assert plan(pod("a"), both, Remembered(), NOW).starts == (Start("a", 1),)


def test_an_unknown_run_is_killed_and_nothing_takes_its_place() -> None:
    found = plan(pod("a"), there(run("a", UNKNOWN)), Remembered(), NOW)
    assert ([kill.why for kill in found.kills], found.starts) == (["its state is unknown"], ())


def test_probes_and_changes_kill() -> None:
    one = pod("a")
    sick = Probe(exec=ExecAction(("true",)), termination_grace_period_seconds=None)
    probed = replace(one, spec=replace(one.spec, containers=(replace(one.spec.containers[0], liveness_probe=sick),)))
    known = Remembered(health={"a-0": Health(failed=Kind.LIVENESS)})
    (kill,) = plan(probed, there(run("a", RUNNING)), known, NOW).kills
    assert (kill.why, kill.grace) == ("its liveness probe has failed", 30)
    (kill,) = plan(one, there(run("a", RUNNING)), Remembered(digests={"a": "e"}), NOW).kills
    assert kill.why == "it is to be made from something else (e)"
    assert plan(one, there(run("a", RUNNING)), Remembered(digests={"a": "d"}), NOW) == Actions()


# -- all of it, by a runtime that does what it is told, and much that goes wrong by itself


class World:
    def __init__(self, one: Pod) -> None:
        self.pod, self.there, self.known, self.now = one, Observed(), Remembered(begun_at=1), NOW
        self.numbers = count(1)

    def step(self) -> bool:
        """Do what is planned; whether that was anything."""
        found = plan(self.pod, self.there, self.known, self.now)
        runs = {each.id: each for each in self.there.runs}
        for kill in found.kills:
            assert runs[kill.run.id].alive
            runs[kill.run.id] = replace(kill.run, state=EXITED, code=137, ended_at=self.now)
        boxes = {
            each.id: replace(each, ready=each.ready and each.id not in found.stop_sandboxes)
            for each in self.there.sandboxes
        }
        current = self.there.current
        for start in found.starts:
            assert current is not None
            assert current.ready
            before = [each for each in runs.values() if each.name == start.name]
            assert not any(each.alive for each in before), "a second copy was started"
            number = next(self.numbers)
            made = run(start.name, RUNNING, attempt=start.attempt, sandbox=current.id)
            runs[f"r{number}"] = replace(made, id=f"r{number}", created_at=number)
        if found.new_sandbox is not None:
            assert not any(each.alive for each in runs.values())
            boxes[f"s{found.new_sandbox}"] = Sandbox(f"s{found.new_sandbox}", found.new_sandbox, True)
        if found.finished:
            self.known = replace(self.known, finished=found.finished)
        before_this = self.there
        self.there = Observed(tuple(boxes.values()), tuple(runs.values()))
        if found.due:
            self.now = max(self.now, found.due)
        return self.there != before_this or bool(found.due)

    def settle(self) -> None:
        for _ in range(60):
            if not self.step():
                return
        raise AssertionError("it never comes to rest")

    def happen(self, what: str, which: int) -> None:
        runs, boxes = list(self.there.runs), list(self.there.sandboxes)
        if what == "sandbox" and boxes:
            boxes[-1] = replace(boxes[-1], ready=False)
        elif what != "sandbox" and runs:
            number = which % len(runs)
            if runs[number].alive:
                code = 1 if what == "fail" else 0
                state = UNKNOWN if what == "unknown" else EXITED
                runs[number] = replace(runs[number], state=state, code=code, ended_at=self.now)
        self.there = Observed(tuple(boxes), tuple(runs))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["Always", "OnFailure", "Never"]),
    st.lists(st.tuples(st.sampled_from(["fail", "succeed", "unknown", "sandbox"]), st.integers(0, 9)), max_size=12),
    st.booleans(),
)
def test_whatever_happens_it_comes_to_rest_and_nothing_runs_twice(
    policy: str, happenings: list[tuple[str, int]], deleted: bool
) -> None:
    world = World(pod("a", "b", init=("x", "s+"), policy=policy))
    for what, which in happenings:
        world.step()
        world.happen(what, which)
    for _ in range(20):  # init containers end by themselves
        world.settle()
        waiting = [each for each in world.there.alive if each.name == "x"]
        if not waiting:
            break
        world.happen("succeed", world.there.runs.index(waiting[0]))
    if deleted:
        world.known = replace(world.known, deleted_at=world.now)
        world.settle()
        assert not world.there.alive
        assert not any(each.ready for each in world.there.sandboxes)
    elif not world.known.finished:
        assert {each.name for each in world.there.alive} >= {"s"}
    else:
        assert not world.there.alive
