"""The CRI's list filters: every part that is given must match, and only those are looked at. Pure."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from holdfast.cri.convert import CONTAINER_STATE, POD_STATE
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.stats import runs
from holdfast.proto import runtime_v1_pb2 as pb

Tests = list[Callable[[Any], bool]]
T = TypeVar("T", Pod, Container)


def pods(known: Iterable[Pod], wanted: pb.PodSandboxFilter) -> list[Pod]:
    tests = _tests(wanted)
    if wanted.HasField("state"):
        state = wanted.state.state
        tests.append(lambda pod: POD_STATE[pod.state] == state)
    return _those(known, tests)


def containers(known: Iterable[Container], wanted: pb.ContainerFilter) -> list[Container]:
    tests = _tests(wanted)
    if pod_id := wanted.pod_sandbox_id:
        tests.append(lambda one: one.meta.pod_id.startswith(pod_id))
    if wanted.HasField("state"):
        state = wanted.state.state
        tests.append(lambda one: CONTAINER_STATE[one.state] == state)
    return _those(known, tests)


def ready_pods(known: Iterable[Pod], wanted: pb.PodSandboxStatsFilter) -> list[Pod]:
    """A list of statistics has no others."""
    return _those(known, [lambda pod: pod.status.ready, *_tests(wanted)])


def running_containers(known: Iterable[Container], wanted: pb.ContainerStatsFilter) -> list[Container]:
    """A list of statistics has no others."""
    tests = [runs, *_tests(wanted)]
    if pod_id := wanted.pod_sandbox_id:
        tests.append(lambda one: one.meta.pod_id.startswith(pod_id))
    return _those(known, tests)


def _tests(
    wanted: pb.PodSandboxFilter | pb.ContainerFilter | pb.PodSandboxStatsFilter | pb.ContainerStatsFilter,
) -> Tests:
    """Of what all filters have: the beginning of an id, and labels."""
    tests: Tests = []
    if id := wanted.id:
        tests.append(lambda one: one.meta.id.startswith(id))
    if labels := dict(wanted.label_selector):
        tests.append(lambda one: all(one.config.labels.get(key) == value for key, value in labels.items()))
    return tests


def _those(known: Iterable[T], tests: Tests) -> list[T]:
    found = [one for one in known if one.acknowledged]
    return [one for one in found if all(test(one) for test in tests)] if tests else found
