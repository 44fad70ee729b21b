"""What must survive of a pod, whatever ends: one file, `<root>/pods/UID/record.json`, written before it is acted on.

Times are ns since the epoch. A record that cannot be read is not taken for a pod that is not there: it is said, and
what the pod has is left alone. A disk that is full does not keep a pod from being ended (linux/spare.py).
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from holdfast.agent.plan import status
from holdfast.agent.plan.actions import Actions, Remembered, Turned
from holdfast.agent.plan.backoff import Backoff
from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.plan.probes import Run as Results
from holdfast.agent.pod.decode import Refused, decode
from holdfast.agent.pod.encode import encode
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync.convert import digest_of
from holdfast.agent.volumes.paths import Paths
from holdfast.linux import files, spare
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import Damaged

FILE: Final = "record.json"
VERSION: Final = 1
MOST: Final = 16 * 1024 * 1024
PROBES: Final = ("startup", "liveness", "readiness")
GONE: Final = "ContainerStatusUnknown"  # a kubelet's word for a container that its runtime does not know any more


@dataclass(frozen=True, slots=True)
class Kill:
    """An end that has begun: it is not begun anew by an agent that is."""

    begun_at: int
    grace: int  # seconds


@dataclass(frozen=True, slots=True)
class Record:
    """Of one pod, as it was admitted."""

    pod: Pod
    source: str = ""  # the file that it came from
    begun_at: int = 0
    deleted_at: int = 0
    grace: int | None = None
    finished: str = ""
    why: str = ""  # it is over
    leaving: bool = False  # it was proven dead: nobody wants its volumes any more
    backoffs: Mapping[str, Backoff] = field(default_factory=dict)  # by container
    pulls: Mapping[str, Backoff] = field(default_factory=dict)  # by container, of its image
    runs: Mapping[str, Run] = field(default_factory=dict)  # by container: the last one that was seen
    health: Mapping[str, Health] = field(default_factory=dict)  # by id of a run: what its probes have come to
    hooks: Mapping[str, int] = field(default_factory=dict)  # by container: the attempt whose postStart is not through
    kills: Mapping[str, Kill] = field(default_factory=dict)  # by id of a run
    users: int = 0  # the first of the host's ids that are its own
    turned: Mapping[str, Turned] = field(default_factory=dict)  # by condition
    sandbox: Sandbox | None = None  # the last one that was seen

    @property
    def there(self) -> Observed:
        """What was seen last: all that can be told before the runtime has been looked at."""
        return Observed(() if self.sandbox is None else (self.sandbox,), tuple(self.runs.values()))


def remembered(known: Record) -> Remembered:
    """What plans are made from."""
    spec = known.pod.spec
    digests = {str(one.name): digest_of(one) for one in (*spec.init_containers, *spec.containers)}
    return Remembered(
        known.begun_at,
        known.deleted_at,
        known.grace,
        known.backoffs,
        known.health,
        digests,
        known.finished,
        known.hooks,
        known.turned,
    )


def planned(known: Record, there: Observed, actions: Actions, now: int) -> Record:
    """What is remembered after a plan: that the pod is over, and since when its conditions are as they are."""
    if actions.finished and not known.finished and not known.deleted_at:
        known = replace(known, finished=actions.finished, why=actions.why)
    return replace(known, turned=status.turned(known.pod, there, remembered(known), now))


def seen(record: Record, there: Observed) -> tuple[Record, Observed]:
    """What is remembered after a look at the runtime, and what is there with what was and is not any more.

    A container that the runtime has said it does not have is over, with a code that nobody knows.
    """
    runs, backoffs = dict(record.runs), dict(record.backoffs)
    more: list[Run] = []
    ids = {one.id for one in there.runs}
    for name, before in record.runs.items():
        if before.id in ids:
            continue
        if before.state is State.CREATED:
            del runs[name]  # it has never run
        else:
            runs[name] = before = _gone(before)
            more.append(before)
    found = Observed(there.sandboxes, (*there.runs, *more))
    for name in {one.name for one in there.runs}:
        last = found.latest(name)
        assert last is not None
        if last.id in ids and last.message == "" and (before := runs.get(name, last)).id == last.id:
            last = replace(last, message=before.message)
        runs[name] = last
        if last.state is State.EXITED:
            backoffs[name] = backoffs.get(name, Backoff()).ended(last.started_at, last.ended_at)
    alive = {one.id for one in found.runs if one.state is not State.EXITED}
    now = replace(
        record,
        runs=runs,
        sandbox=there.current,
        users=record.users or (there.current.users if there.current is not None else 0),
        backoffs=backoffs,
        health={key: one for key, one in record.health.items() if key in alive},
        kills={key: one for key, one in record.kills.items() if key in alive},
    )
    return now, Observed(
        found.sandboxes, tuple(runs[one.name] if runs[one.name].id == one.id else one for one in found.runs)
    )


def _gone(run: Run) -> Run:
    if run.state is State.EXITED:
        return run
    message = "the runtime does not know this container any more"
    ended_at = run.ended_at or run.started_at
    return replace(run, state=State.EXITED, ended_at=ended_at, code=137, reason=GONE, message=message)


# -- on disk


def to_json(record: Record) -> bytes:
    plain = {key: value for key, value in asdict(replace(record, runs={}, health={})).items() if key != "pod"}
    plain["runs"] = {key: asdict(one) | {"state": one.state.value} for key, one in record.runs.items()}
    plain["health"] = {key: {kind: getattr(one, kind).good for kind in PROBES} for key, one in record.health.items()}
    return json.dumps({"version": VERSION, "pod": encode(record.pod), **plain}, indent=1).encode()


def from_json(data: bytes) -> Record:
    """Raises Damaged."""
    try:
        plain = json.loads(data)
        if plain.pop("version") != VERSION:
            raise Damaged("cannot read the record of a pod: it is another version's")
        pod = decode(Pod, plain.pop("pod"), "", lambda text: None)
        mapped: dict[str, Any] = {
            "backoffs": {key: Backoff(**one) for key, one in plain.pop("backoffs").items()},
            "pulls": {key: Backoff(**one) for key, one in plain.pop("pulls").items()},
            "runs": {key: Run(**{**one, "state": State(one["state"])}) for key, one in plain.pop("runs").items()},
            "health": {
                key: Health(Results(one["startup"]), Results(one["liveness"]), Results(one["readiness"]))
                for key, one in plain.pop("health").items()
            },
            "kills": {key: Kill(**one) for key, one in plain.pop("kills").items()},
            "turned": {key: Turned(**one) for key, one in plain.pop("turned", {}).items()},
            "sandbox": _sandbox(plain.pop("sandbox", None)),
        }
        known = {one.name for one in fields(Record)}
        return Record(pod, **mapped, **{key: value for key, value in plain.items() if key in known})
    except (ValueError, KeyError, TypeError, AttributeError, Refused) as exc:
        raise Damaged(f"cannot read the record of a pod: {exc}") from exc


def _sandbox(plain: dict[str, Any] | None) -> Sandbox | None:
    return None if plain is None else Sandbox(**{**plain, "addresses": tuple(plain["addresses"])})


def save(paths: Paths, record: Record) -> None:
    """On disk on return. Raises OSError."""
    directory = paths.pod(record.pod.metadata.uid)
    files.make_private(directory)
    spare.write(directory / FILE, to_json(record))
    crashpoint("agent.recorded")


def load(path: Path) -> Record:
    """Raises Damaged, OSError."""
    return from_json(files.read_bounded(path, MOST))


def remove(paths: Paths, uid: str) -> None:
    """Idempotent; the last thing that is done for a pod."""
    spare.remove(paths.pod(uid) / FILE)
    crashpoint("agent.forgotten")
    with contextlib.suppress(OSError):  # somebody else's is in it, or it is gone
        files.rmdir(paths.pod(uid))


def records(paths: Paths) -> Iterable[Path]:
    """Where there are any."""
    return sorted(paths.root.glob(f"pods/*/{FILE}"))
