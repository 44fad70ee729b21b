"""pods --watch: the list, and then what changes of it, for as long as somebody looks."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from holdfast.cli.client import Client
from holdfast.cli.errors import Unreachable
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"  # as Kubernetes' watches have it
AGAIN_SECONDS: Final = 0.2
Pods = dict[str, pb.PodSandbox]


def changes(before: Pods, now: Pods) -> Iterator[tuple[str, pb.PodSandbox]]:
    """What has become of pods between two lists: the new and the changed in order of creation, then the removed."""
    for one in sorted(now.values(), key=lambda one: one.created_at):
        if one.id not in before:
            yield ADDED, one
        elif before[one.id] != one:
            yield MODIFIED, one
    yield from ((DELETED, one) for one in before.values() if one.id not in now)


def watch(daemon: Client, wanted: Callable[[pb.PodSandbox], bool]) -> Iterator[tuple[str, Sequence[pb.PodSandbox]]]:
    """All that are wanted, in one; then each change, also that one is not wanted any more. Without an end.

    Events say when to list again, and each list is held against the one before: so nothing that lasted is missed, be it
    that events were too many, or that the daemon was away. Raises Unreachable when there is no daemon at first.
    """
    known: Pods | None = None
    told: set[str] = set()
    away = False
    while True:
        try:
            for now in _lists(daemon):
                if away:
                    print("holdfast: the daemon is back", file=sys.stderr)
                    away = False
                if known is None:
                    found = sorted(filter(wanted, now.values()), key=lambda one: -one.created_at)
                    told.update(one.id for one in found)
                    yield ADDED, found
                for kind, pod in changes(known, now) if known is not None else ():
                    if pod.id in told or wanted(pod):
                        told.add(pod.id)
                        yield kind, [pod]
                known = now
        except Unreachable:
            if known is None:
                raise
        if not away:
            print("holdfast: the daemon does not answer; waiting for it", file=sys.stderr)
            away = True
        time.sleep(AGAIN_SECONDS)


def _lists(daemon: Client) -> Iterator[Pods]:
    """All pods now, and again after everything that happens to any. Ends when the daemon does."""
    with daemon.errors():
        events = daemon.node().Events(node_pb2.EventsRequest())
        try:
            events.initial_metadata()  # they come when the present is fixed: all that happens from here on is told
            yield {one.id: one for one in daemon.pods()}
            for event in events:
                if event.object == "pod" or event.kind == "gap":
                    yield {one.id: one for one in daemon.pods()}
        finally:
            events.cancel()
