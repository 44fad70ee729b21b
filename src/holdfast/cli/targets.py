"""Which container, or which pod's sandbox, is meant by what people type.

An id or a name that the runtime knows is that; else it is a pod of the agent's, of which one container is chosen as
kubectl does: the one that is named, that of the annotation, or the first, which is told.
"""

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import click

from holdfast.cli.agent_client import Agent, agent_of, agent_option, as_object, name_of, namespace_option
from holdfast.cli.client import Client, client
from holdfast.cli.errors import CommandError, Missing, Unreachable
from holdfast.cli.pod_table import Object, inits, mains

DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
POD_UID: Final = "io.kubernetes.pod.uid"


class Wanted(NamedTuple):
    """As it was typed."""

    name: str
    namespace: str
    agent: str
    container: str = ""
    previous: bool = False

    @property
    def is_pod(self) -> bool:
        """Whether it can only be a pod of the agent's."""
        return bool(self.container or self.namespace or self.previous or "/" in self.name)


class Target(NamedTuple):
    """A container or a sandbox of the runtime behind `client`."""

    client: Client
    id: str


def pod_options(command: Any) -> Any:
    """For verbs that take a container, or a pod of the agent's."""
    chosen = click.option("--container", "-c", default="", help="The container of the agent's pod.")
    return chosen(namespace_option(agent_option(command)))


def container(ctx: click.Context, wanted: Wanted) -> Target:
    """Raises Missing, CommandError."""
    return _target(ctx, wanted, lambda daemon: daemon.find_container(wanted.name).id, _of_pod)


def sandbox(ctx: click.Context, wanted: Wanted) -> Target:
    """Of a pod: the newest. Raises Missing, CommandError."""
    return _target(ctx, wanted, lambda daemon: daemon.find_pod(wanted.name).id, _sandbox_of_pod)


def _target(
    ctx: click.Context,
    wanted: Wanted,
    find: Callable[[Client], str],
    find_of_pod: Callable[[Client, Object, Wanted], str],
) -> Target:
    problem: CommandError | None = None
    if not wanted.is_pod:
        daemon = client(ctx)
        try:
            return Target(daemon, find(daemon))
        except CommandError as exc:  # it has none, or several of that name, or is not there
            problem = exc
    agent: Agent = agent_of(ctx, wanted.agent)
    try:
        one, socket = agent.pod(wanted.name, wanted.namespace)
    except (Missing, Unreachable) as exc:
        raise problem or exc from exc
    runtime = Client(socket, ctx.find_root().obj["timeout"])
    return Target(runtime, find_of_pod(runtime, as_object(one), wanted))


def _of_pod(_: Client, pod: Object, wanted: Wanted) -> str:
    return run_of(pod, chosen(pod, wanted), previous=wanted.previous)


def _sandbox_of_pod(runtime: Client, pod: Object, wanted: Wanted) -> str:
    found = runtime.pods(label_selector={POD_UID: pod["metadata"]["uid"]})
    if not found:
        raise Missing(f"cannot find pod {name_of(wanted.name)!r}: the runtime has no sandbox of it")
    return str(max(found, key=lambda one: (one.metadata.attempt, one.created_at)).id)


def chosen(pod: Object, wanted: Wanted) -> str:
    """The name of the container that is meant. Raises Missing."""
    spec, name = pod["spec"], name_of(wanted.name)
    first = [one["name"] for one in spec.get("containers", [])]
    more = [one["name"] for one in spec.get("initContainers", [])]
    if not first:
        raise CommandError(f"cannot tell the containers of pod {name!r}: {pod['status'].get('message', '?')}")
    if wanted.container:
        if wanted.container not in (*first, *more):
            raise Missing(
                f"cannot find container {wanted.container!r} in pod {name!r}: it has {', '.join(first + more)}"
            )
        return wanted.container
    annotated = pod["metadata"].get("annotations", {}).get(DEFAULT_CONTAINER)
    if annotated in (*first, *more):
        return str(annotated)
    if len(first) + len(more) > 1:
        names = ", ".join([*first, *(f"{one} (init)" for one in more)])
        print(f'Defaulted container "{first[0]}" out of: {names}', file=sys.stderr)
    return str(first[0])


def run_of(pod: Object, name: str, *, previous: bool) -> str:
    """The id of a container's last run, or of the one before. Raises CommandError in kubectl's words."""
    (found,) = [one for one in (*mains(pod), *inits(pod)) if one["name"] == name]
    where = f'container "{name}" in pod "{pod["metadata"]["name"]}"'
    if previous:
        if before := found.get("lastState", {}).get("terminated", {}).get("containerID"):
            return str(before)
        raise Missing(f"previous terminated {where} not found")
    if not found.get("containerID"):
        raise CommandError(f"{where} is waiting to start: {found['state'].get('waiting', {}).get('reason', '?')}")
    return str(found["containerID"])
