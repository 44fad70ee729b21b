"""One task for each pod: look what there is, plan, write down, act; woken by changes, by what is due, or after a while.

What takes time (pulling, starting, a grace period) is a step of its own, one at a time for each container, so nothing
waits for what it does not need. A plan is only followed where no step was under way when the runtime was looked at: by
then it may be over. A runtime that does not answer leaves everything as it is.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final

from holdfast.agent.plan import status
from holdfast.agent.plan.actions import Actions, Kill, Start, plan
from holdfast.agent.plan.backoff import Backoff
from holdfast.agent.plan.events import Events, happened
from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.plan.probes import Health, Kind
from holdfast.agent.pod import qos
from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import held, images, record, steps
from holdfast.agent.sync.held import Held
from holdfast.agent.sync.parts import Parts, Trouble
from holdfast.agent.sync.prober import Prober
from holdfast.agent.sync.record import Record, seen, to_json
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model.errors import HoldfastError
from holdfast.proto import runtime_v1_pb2 as pb

log = logging.getLogger(__name__)

NS: Final = 1_000_000_000
RESYNC: Final = 20.0  # seconds after which it looks again, whatever was told
RETRY: Final = 1.0  # seconds until a look or a record that has failed is tried again
POD: Final = ""  # the key of steps that concern the pod as a whole; the others' are the containers' names


class Worker:
    """Of one pod, from its admission until nothing is left of it."""

    def __init__(self, parts: Parts, admitted: Record) -> None:
        self.record = admitted
        self.there = admitted.there  # as the runtime has last said, with what is remembered
        self.trouble = ""  # why it could not be looked at
        self.events: Events = ()
        self._parts = parts
        self._saved = b""
        self._saving = asyncio.Lock()
        self._wake = asyncio.Event()
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._cut: set[str] = set()  # containers whose step may be cut off: it has not begun to change anything
        self._killing: dict[str, int] = {}  # by container: the grace that it was given
        self._held: dict[str, Held] = {}
        self._stopped: set[str] = set()  # sandboxes whose stop was answered
        self._waits: dict[str, int] = {}  # by container: when it is due again
        self._over = False

    @property
    def pod(self) -> Pod:
        return self.record.pod

    @property
    def uid(self) -> str:
        return str(self.pod.metadata.uid)

    # -- what others ask for

    def wake(self, *, anew: bool = False) -> None:
        """Something has changed; `anew`: what was waited with for want of data or volumes is tried at once."""
        if anew:
            wanting = (steps.CONFIG, steps.CREATING)
            self._held = {key: one for key, one in self._held.items() if one.reason not in wanting}
        self._wake.set()

    async def delete(self, grace: int | None = None) -> None:
        """Once it is on disk that the pod is to go, within `grace` seconds or as it says itself. Raises OSError."""
        known = self.record
        given = self.pod.spec.termination_grace_period_seconds if known.grace is None else known.grace
        if known.deleted_at and (grace is None or grace >= given):
            return
        deleted_at = known.deleted_at or self._parts.clock()
        await self._keep(lambda known: replace(known, deleted_at=deleted_at, grace=grace))
        self._wake.set()

    async def update(self, pod: Pod) -> None:
        """Once it is on disk that its containers are to be others; what else a pod is never changes. Raises OSError."""
        await self._keep(lambda known: replace(known, pod=pod))
        self._held.clear()
        self._wake.set()

    def unprobed(self) -> AbstractAsyncContextManager[None]:
        """Within it no probe is asked, and what fails of them is nobody's failure. For a pod that runs."""
        return self._prober.paused()

    def status(self) -> dict[str, Any]:
        """PodStatus, as Kubernetes shows it."""
        now, hosts = self._parts.clock(), self._parts.facts(self.pod).host_addresses
        waiting = held.waiting(self.record, self._held, self._waits, now)
        known = record.remembered(self.record)
        found = status.status(self.pod, self.there, known, qos.class_of(self.pod), waiting, hosts, now)
        message = self.trouble or (self._held[POD].message if POD in self._held else "")
        return found | held.over(self.record) | ({"message": message} if message else {})

    def backing_off(self) -> int:
        """How many containers, their images, and the sandbox wait to be tried again."""
        now, known = self._parts.clock(), self.record
        dues = [*self._waits.items(), *((key, one.until) for key, one in self._held.items())]
        dues += [(key, one.due) for key, one in known.pulls.items()]
        return len({key for key, due in dues if due > now})

    # -- the loop

    async def run(self) -> None:
        """Until nothing of the pod is left. Cancelled it leaves the pod as it is."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._prober = Prober(self._parts.runtime, group, self._told, self._parts.clock)
            while not self._over:
                self._wake.clear()
                seconds = await self._turn()
                try:
                    async with asyncio.timeout(seconds):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            self._prober.end()

    async def _turn(self) -> float:
        """Returns the seconds after which there is more to do."""
        busy = set(self._doing)
        try:
            with self._parts.counted.syncs.one():
                there = await self._parts.runtime.observe(self.uid)
                await self._look(there)
                now = self._parts.clock()
                actions = plan(self.pod, self.there, record.remembered(self.record), now)
                await self._keep(lambda known: record.planned(known, self.there, actions, now))
            self.trouble = ""
        except (HoldfastError, OSError) as exc:  # also: nothing is done that is not on disk
            if self.trouble != str(exc):
                log.warning("%s: cannot look at it: %s", self._name, exc)
            self.trouble = str(exc)
            return RETRY
        address = steps.address_of(self.there, self.pod, self._parts.facts(self.pod))
        ending = bool(self.record.deleted_at or self.record.finished)
        self._prober.follow(self.pod, self.there, self._health, address, hooks=self.record.hooks, ending=ending)
        self._waits = {one.name: one.until for one in actions.waits}
        self._act(actions, there, busy, now)
        dues = [*(one.until for one in self._held.values()), *self._pauses(), actions.due]
        return min([RESYNC, *((due - now) / NS + 0.01 for due in dues if due > now)])

    async def _look(self, there: Observed) -> None:
        """Write down what there is. Of what has ended since the last look the last words are taken along."""
        before = self.record.runs
        ended = {
            name: (run.id, await steps.last_words(self._parts, self.pod, run))
            for name, run in seen(self.record, there)[0].runs.items()
            if run.state is State.EXITED and (name not in before or before[name] != run) and not run.message
        }

        def look(known: Record) -> Record:
            after = seen(known, there)[0]
            runs = {
                name: replace(run, message=ended[name][1]) if ended.get(name, ("", ""))[0] == run.id else run
                for name, run in after.runs.items()
            }
            return replace(after, runs=runs, begun_at=known.begun_at or self._parts.clock())

        await self._keep(look)
        self._parts.users.know(self.uid, self.record.users)
        self.there = seen(self.record, there)[1]

    def _health(self, run_id: str) -> Health:
        return self.record.health.get(run_id, Health())

    def _told(self, container: Container, run: Run, kind: Kind, why: str) -> None:
        """A result of a probe."""
        before = self._health(run.id)
        after = before.after(container, kind, not why)
        if why and getattr(after, kind.value).row == 1:
            self._say("Unhealthy", f"{kind.value} probe of {container.name} failed: {why}")
        self.record = replace(self.record, health={**self.record.health, run.id: after})
        if any(getattr(before, one.value).good != getattr(after, one.value).good for one in Kind):
            self._wake.set()  # and it is written down

    # -- acting

    def _act(self, actions: Actions, there: Observed, busy: set[str], now: int) -> None:
        """Begin the steps that are not under way, were not when `there` was seen, and are not to wait."""

        def free(key: str, held_by: str = "") -> bool:
            until = self._held[held_by or key].until if (held_by or key) in self._held else 0
            return key not in busy and key not in self._doing and now >= until

        ending = bool(self.record.deleted_at or actions.finished)
        for name in set(self._doing) & self._cut if ending else ():
            self._doing[name].cancel()  # whose end wakes this task
        for kill in actions.kills:
            name = kill.run.name
            if name in self._doing and (name in self._cut or kill.grace < self._killing.get(name, 0)):
                self._doing[name].cancel()
            elif free(name, key := _kill_key(kill.run)):
                self._do(name, key, self._kill(kill))
        pulls = self.record.pulls
        for start in actions.starts:
            if free(start.name) and POD not in self._doing and now >= pulls.get(start.name, Backoff()).due:
                self._do(start.name, start.name, self._start(start, there))
        if not ending:
            self._hook_again(busy)
        alone = not busy and not self._doing
        stops = [one for one in actions.stop_sandboxes if one not in self._stopped]
        if actions.new_sandbox is not None:
            if alone and free(POD) and now >= self.record.backoffs.get(POD, Backoff()).due:
                self._do(POD, POD, self._make_sandbox(actions.new_sandbox, actions.stop_sandboxes, there))
        elif stops:
            if free(POD) and (alone or not ending):
                self._do(POD, POD, self._end_sandboxes(there, stops))
        elif self.record.deleted_at and not self.there.alive and alone and free(POD):
            self._do(POD, POD, self._leave(there))

    def _hook_again(self, busy: set[str]) -> None:
        """Hooks of which an agent before this one has not seen the end."""
        for name, attempt in self.record.hooks.items():
            run = self.there.latest(name)
            if run is None or run.attempt != attempt or run.state is not State.RUNNING:
                continue
            if name not in busy and name not in self._doing:
                self._do(name, name, self._post_start(name, run.id))

    def _do(self, key: str, held_by: str, step: Coroutine[Any, Any, None]) -> None:
        """Take one step; what keeps it from being done is why it is held."""

        async def doing() -> None:
            try:
                await step
                self._held.pop(held_by, None)
            except Trouble as exc:
                self._hold(held_by, exc)
            except (HoldfastError, OSError) as exc:
                self._hold(held_by, Trouble(steps.CREATING, str(exc)))
            except Exception as exc:
                log.exception("%s: a step has failed as nobody has thought of", self._name)
                self._hold(held_by, Trouble(steps.CREATING, f"{type(exc).__name__}: {exc}"))

        def ended(_: object) -> None:
            step.close()  # of a task that was cancelled before it began
            del self._doing[key]
            self._wake.set()

        task = self._group.create_task(doing(), name=f"{held_by or 'sandbox'} of pod {self.uid}")
        self._doing[key] = task
        task.add_done_callback(ended)

    def _hold(self, key: str, trouble: Trouble) -> None:
        now = self._parts.clock()
        self._held[key] = Held(now + trouble.pause, now, trouble.reason, trouble.message)
        self._say(trouble.reason, trouble.message)

    # -- steps

    async def _make_sandbox(self, attempt: int, stops: tuple[str, ...], there: Observed) -> None:
        crashpoint("agent.sandbox")
        users = await self._users()
        await steps.make_sandbox(self._parts, self.pod, attempt, stops, users)
        crashpoint("agent.sandbox.made")
        if (before := there.current) is not None:
            self._say("SandboxChanged", "Pod sandbox changed, another one was made", warning=False)
            await self._backed_off("backoffs", POD, before.created_at)
        await steps.collect(self._parts, self.pod, there)

    async def _users(self) -> int:
        """The first of the ids that are the pod's own; they are its own on disk first."""
        if self.pod.spec.host_users:
            return 0
        try:
            users = self._parts.users.take(self.uid)
        except LookupError as exc:
            raise Trouble(steps.SANDBOX, str(exc)) from exc
        await self._keep(lambda known: replace(known, users=users))
        return users

    async def _start(self, start: Start, there: Observed) -> None:
        name, sandbox = start.name, there.current
        container = steps.container_of(self.pod, name)
        assert container is not None
        assert sandbox is not None
        of_sandbox = await steps.sandbox_config(self._parts, self.pod, sandbox.attempt, self.record.users)
        image = await self._pull(container, of_sandbox)
        if container.lifecycle.post_start is not None:
            await self._keep(lambda known: replace(known, hooks={**known.hooks, name: start.attempt}))
        crashpoint("agent.start")
        try:
            run_id = await steps.start(self._parts, self.pod, there, start, image, self.record.users)
        except Trouble as exc:
            if exc.reason in (steps.CREATE, steps.RUN):
                await self._backed_off("backoffs", name, 0)
                exc.pause = self.record.backoffs[name].pause
            raise
        crashpoint("agent.started")
        self._say("Started", f"Started container {name}", warning=False)
        self._parts.counted.restarts.add(by=int(start.attempt > 0))
        await self._post_start(name, run_id)
        await steps.collect(self._parts, self.pod, there)

    async def _pull(self, container: Container, sandbox: pb.PodSandboxConfig) -> pb.Image:
        name = container.name
        self._cut.add(name)
        try:
            found = await steps.pull(self._parts, self.pod, container, sandbox)
        except Trouble as exc:
            if exc.reason == images.PULL_FAILED:
                await self._backed_off("pulls", name, 0)
                exc.pause = self.record.pulls[name].pause
            raise
        finally:
            self._cut.discard(name)
        if name in self.record.pulls:
            await self._keep(lambda known: replace(known, pulls=_without(known.pulls, name)))
        return found

    async def _backed_off(self, which: str, key: str, began: int) -> None:
        """Something has failed once more; a pull that has is not even the first time tried again at once."""
        now = self._parts.clock()

        def more(known: Record) -> Record:
            if which == "pulls":
                return replace(known, pulls={**known.pulls, key: known.pulls.get(key, Backoff(0, 1)).ended(began, now)})
            backoff = known.backoffs.get(key, Backoff()).ended(began, now)
            return replace(known, backoffs={**known.backoffs, key: backoff})

        await self._keep(more)

    async def _post_start(self, name: str, run_id: str) -> None:
        container = steps.container_of(self.pod, name)
        if container is None or container.lifecycle.post_start is None:
            return
        self._cut.add(name)
        try:
            why = await steps.post_start(self._parts, self.pod, self.there, run_id, container)
        finally:
            self._cut.discard(name)
        if why:
            self._say("FailedPostStartHook", f"{name}: {why}")
            run, grace = Run(name, run_id, "", 0, State.RUNNING), self.pod.spec.termination_grace_period_seconds
            await steps.stop(self._parts, self.pod, self.there, run, self._parts.clock() + grace * NS)
        await self._keep(lambda known: replace(known, hooks=_without(known.hooks, name)))

    async def _kill(self, kill: Kill) -> None:
        run = kill.run
        begun = self.record.kills.get(run.id)
        if begun is None or kill.grace < begun.grace:
            one = begun = record.Kill(self.record.deleted_at or self._parts.clock(), kill.grace)
            await self._keep(lambda known: replace(known, kills={**known.kills, run.id: one}))
            self._say("Killing", f"Stopping container {run.name}: {kill.why}", warning=False)
        crashpoint("agent.kill")
        self._killing[run.name] = begun.grace
        try:
            await steps.stop(self._parts, self.pod, self.there, run, begun.begun_at + begun.grace * NS)
        finally:
            self._killing.pop(run.name, None)

    async def _end_sandboxes(self, there: Observed, stops: list[str]) -> None:
        await steps.end_sandboxes(self._parts, self.uid, there, stops)
        self._stopped.update(stops)

    async def _leave(self, there: Observed) -> None:
        if not self.record.leaving:
            await steps.end_sandboxes(self._parts, self.uid, there, [one.id for one in there.sandboxes])
            if why := await self._parts.runtime.why_alive(self.uid):
                raise Trouble(steps.STOPPING, why)
            await self._keep(lambda known: replace(known, leaving=True))
        self._parts.leaving(self.uid)
        crashpoint("agent.leave")
        await steps.leave(self._parts, self.pod, there)
        crashpoint("agent.left")
        async with self._saving:  # what is seen meanwhile is not written down any more
            await in_thread(record.remove, self._parts.paths, self.uid)
            self._over = True

    # -- what is remembered

    async def _keep(self, change: Callable[[Record], Record]) -> None:
        """Change the record; it is on disk on return. Raises OSError: then nothing has changed."""
        async with self._saving:
            now = change(self.record)
            if (data := to_json(now)) != self._saved and not self._over:
                await in_thread(record.save, self._parts.paths, now)
                self._saved = data
            self.record = change(self.record)  # a probe may have had a result meanwhile

    def _pauses(self) -> list[int]:
        """When images, and the sandbox, are due again."""
        known = self.record
        return [*(one.due for one in known.pulls.values()), known.backoffs.get(POD, Backoff()).due]

    @property
    def _name(self) -> str:
        return f"pod {self.pod.metadata.namespace}/{self.pod.metadata.name}"

    def _say(self, reason: str, message: str, *, warning: bool = True) -> None:
        self.events = happened(self.events, reason, message, self._parts.clock(), warning=warning)
        log.info("%s: %s: %s", self._name, reason, message)


def _kill_key(run: Run) -> str:
    """Of why an end is held, beside why a start is."""
    return f"kill {run.id}"


def _without(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: one for key, one in found.items() if key != name}
