"""What is in the directories of pods, each thing with its owner or why it has none: a part of `belongings`, pure."""

from collections.abc import Iterator
from typing import Final

from holdfast.lifecycle.diagnosis import NODE, Finding, Fix, Owners, Verdict
from holdfast.lifecycle.survey import INSIDE, Entry
from holdfast.model.spec import is_id
from holdfast.model.witness import LOGGER_FILE
from holdfast.runtime.loggers import STREAMS
from holdfast.runtime.streamers import EXEC, RECORDS, kind_of, owner_of

TEMPORARY_SECONDS: Final = 2.0  # a file that is being replaced is there for a moment


def pods(owners: Owners) -> Iterator[Finding]:
    survey = owners.survey
    oci = f"{survey.state}/oci"
    runtimes = [f"{oci}/{entry.name}" for entry in survey.names(oci)]
    known = {one.name for runtime in runtimes for one in survey.names(runtime)}
    all_known = all(map(survey.looked, ("mounts", oci, *runtimes)))
    for pod in survey.names(f"{survey.state}/pods"):
        where = f"{survey.state}/pods/{pod.name}"
        if pod.kind != "directory" or not is_id(pod.name):
            yield stranger(where, pod)
            continue
        yield owners.thing("pod directory", where, pod.name)
        if not owners.name(pod.name):
            continue  # what is in it goes with it
        for entry in survey.names(where):
            if is_id(entry.name):
                yield owners.thing("bundle", f"{where}/{entry.name}", entry.name)
                yield from _sessions(owners, f"{where}/{entry.name}", entry.name)
                if owners.over(entry.name) and entry.name not in known and all_known:
                    yield from _remains(owners, f"{where}/{entry.name}", entry.name)
            elif entry.name == RECORDS:
                yield from _records(owners, f"{where}/{entry.name}", pod.name)
            elif entry.age is not None:
                yield from temporary(f"{where}/{entry.name}", entry)


def _records(owners: Owners, directory: str, pod_id: str) -> Iterator[Finding]:
    """Of who serves the sessions of a pod."""
    for entry in owners.survey.names(directory):
        where = f"{directory}/{entry.name}"
        if not kind_of(entry.name):
            yield stranger(where, entry)
        elif owners.streams(entry.name):
            yield Finding("session", where, Verdict.OK, "", owners.name(owner_of(entry.name)), pod_id)
        else:
            yield Finding("session", where, Verdict.ORPHAN, "its streamer is gone", "", pod_id, Fix.DELETE)


def _sessions(owners: Owners, bundle: str, id: str) -> Iterator[Finding]:
    """The directories that sessions have in a container's bundle. What is executed in one is the shim's, too."""
    for kind in INSIDE:
        for entry in owners.survey.names(f"{bundle}/{kind}"):
            where, why = f"{bundle}/{kind}/{entry.name}", "nobody streams it any more"
            if not kind_of(entry.name):
                continue
            if owners.streams(entry.name):
                yield Finding(kind, where, Verdict.OK, "", owners.name(id), id)
            elif kind == EXEC and not owners.over(id):
                why = f"{why}; the daemon ends it at its start"
                yield Finding(kind, where, Verdict.INCONSISTENT, why, owners.name(id), id)
            else:
                yield Finding(kind, where, Verdict.ORPHAN, why, "", id, Fix.DELETE)


def _remains(owners: Owners, bundle: str, id: str) -> Iterator[Finding]:
    """What a task that is over, and that its runtime has forgotten, has left in its bundle.

    But for what a logger is reached and found by, as long as its log is to be completed: nobody else would ever end it.
    """
    survey = owners.survey
    if f"{bundle}/rootfs" in owners.mounted:
        return
    why = f"the task of {owners.name(id)} is over"
    names = {entry.name for entry in survey.names(bundle)}
    logged = LOGGER_FILE in names and not names.isdisjoint(STREAMS)
    for entry in survey.names(bundle):
        if entry.kind in ("fifo", "socket") and not logged:
            yield Finding(entry.kind, f"{bundle}/{entry.name}", Verdict.ORPHAN, why, "", id, Fix.DELETE)
        elif entry.age is not None:
            yield from temporary(f"{bundle}/{entry.name}", entry)
    for entry in [entry for entry in survey.names(f"{bundle}/{EXEC}") if not kind_of(entry.name)]:
        yield Finding("exec", f"{bundle}/{EXEC}/{entry.name}", Verdict.ORPHAN, why, "", id, Fix.DELETE)


def temporary(where: str, entry: Entry) -> Iterator[Finding]:
    if entry.age is not None and entry.age > TEMPORARY_SECONDS:
        yield Finding("temporary file", where, Verdict.ORPHAN, "whoever was writing it is gone", fix=Fix.DELETE)


def stranger(where: str, entry: Entry) -> Finding:
    """Something among what is ours that does not look like it."""
    if entry.age is not None:
        if entry.age > TEMPORARY_SECONDS:
            return Finding("temporary file", where, Verdict.ORPHAN, "whoever was writing it is gone", fix=Fix.DELETE)
        return Finding("temporary file", where, Verdict.OK, "it is being written", NODE)
    return Finding(entry.kind, where, Verdict.UNKNOWN, "it has no name that Holdfast gives; it is left alone")
