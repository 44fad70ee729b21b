"""apply, get, describe, delete: what the agent's pods are asked for, in kubectl's words."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from holdfast.cli import manifests
from holdfast.cli.agent_client import (
    DEFAULT,
    PODS,
    Agent,
    agent_of,
    agent_option,
    as_object,
    completing,
    missing,
    name_of,
    namespace_option,
)
from holdfast.cli.completion import SECONDS
from holdfast.cli.errors import CommandError, Missing
from holdfast.cli.manifests import Named
from holdfast.cli.output import lines, show
from holdfast.cli.pod_table import COLUMNS, WIDE, Object, changed, row
from holdfast.proto import agent_pb2 as pb

KINDS: Final = {
    **dict.fromkeys(PODS, "pod"),
    "configmap": "configmap",
    "configmaps": "configmap",
    "cm": "configmap",
} | {
    "secret": "secret",
    "secrets": "secret",
}
FORMATS: Final = click.Choice(["table", "wide", "json", "yaml", "name"])
Listed = Mapping[str, Object]  # by uid

pod_names = completing(SECONDS)
file_option = click.option(
    "--filename", "-f", "files", multiple=True, metavar="FILE", help="A manifest, a directory of them, or - for stdin."
)


@click.command("apply")
@file_option
@agent_option
@click.pass_context
def apply_command(ctx: click.Context, files: tuple[str, ...], agent: str) -> int:
    """Have the agent run what manifests say: Pods, and the ConfigMaps and Secrets that they take.

    Of a file all is taken or nothing, and it is on disk when it is told. What is there already becomes what the
    manifest says: other images are put into the pod that runs; a pod that is otherwise another one takes the place
    of the first, whose volumes go with it. Of a directory the files that end with .yaml, .yml and .json are taken, in
    their order; an error of one is told, and the others are applied.

    Fields that are known and not honoured are warned of, unknown ones refused.

    Exit status: 0 when all was applied, 1 when anything was not.

    \b
    holdfast apply -f web.yaml
    holdfast apply -f /srv/pods/
    sed s/8080/80/ web.yaml | holdfast apply -f -
    """
    if not files:
        raise click.UsageError("say what with -f")
    server, status = agent_of(ctx, agent), 0
    for name, text in manifests.read(files):
        try:
            reply = server.call("Apply", pb.ApplyRequest(manifest=text))
        except CommandError as exc:
            click.echo(f"holdfast: {name}: {exc}", err=True)
            status = 1
            continue
        for warning in reply.warnings:
            click.echo(f"Warning: {name}: {warning}", err=True)
        for applied, done in zip(reply.applied, reply.done, strict=True):
            kind, _, one = applied.split("/")
            click.echo(f"{kind}/{one} {done}")
    return status


@click.command("delete")
@click.argument("what", nargs=-1, metavar="[KIND] NAME...", shell_complete=pod_names)
@file_option
@namespace_option
@click.option("--grace-period", type=click.IntRange(min=0), help="Seconds to end, instead of the pod's own.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until nothing is left of a pod.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there is as good as deleted.")
@agent_option
@click.pass_context
def delete_command(
    ctx: click.Context,
    what: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str,
    grace_period: int | None,
    wait: bool,
    ignore_not_found: bool,
    agent: str,
) -> int:
    """End pods that were applied, and delete what they had; or delete ConfigMaps and Secrets.

    A pod's containers get their signal and its grace period, then SIGKILL; its volumes and logs go with it. That it is
    to go is on disk when it is told. A volume from which something cannot be taken out is kept, and the pod with it:
    `holdfast describe pod` says why. With --no-wait nothing of that is waited for.

    A pod of a directory of manifests ends when its manifest is removed from there, and is refused here.

    Exit status: 0 when all was deleted, 1 when anything was not.

    \b
    holdfast delete pod web
    holdfast delete pod/web configmap/web --grace-period 1
    holdfast delete -f web.yaml --ignore-not-found
    """
    server, status = agent_of(ctx, agent), 0
    wanted = [*_named(what, namespace or DEFAULT), *(one for _, text in manifests.read(files) for one in _of(text))]
    if not wanted:
        raise click.UsageError("say what: a kind and names, or -f")
    going = []
    for one in wanted:
        request = pb.DeleteRequest(kind=one.kind, namespace=one.namespace, name=one.name, grace=grace_period)
        try:
            server.call("Delete", request)
        except CommandError as exc:
            if isinstance(exc, Missing) and ignore_not_found:
                continue
            click.echo(f"holdfast: {exc}", err=True)
            status = 1
            continue
        click.echo(f'{one.kind} "{one.name}" deleted')
        going += [one] if one.kind == "pod" else []
    for one in going if wait else ():
        _wait_until_gone(server, one)
    return status


def _named(what: Sequence[str], namespace: str) -> Iterator[Named]:
    """Of "pod web api", or "pod/web secret/api". Raises UsageError."""
    kind = ""
    if what and "/" not in what[0]:
        kind, what = what[0], what[1:]
        if not what:
            raise click.UsageError(f"say which {kind}")
    for name in what:
        own, _, rest = name.rpartition("/")
        if (own or kind) not in KINDS:
            raise click.UsageError(f"{own or kind!r} is no kind of thing here (hint: pod, configmap, secret)")
        yield Named(KINDS[own or kind], namespace, rest)


def _of(text: bytes) -> list[Named]:
    """Pods first: what they take is to be there until they have ended."""
    return sorted(manifests.objects(text), key=lambda one: one.kind != "pod")


def _wait_until_gone(server: Agent, one: Named) -> None:
    """Until the pod that is there now is not any more; there may be another one of its name by then."""
    first = ""
    for pods in server.watch(one.namespace, one.name):
        uid = f"{pods[0].uid} {pods[0].deleted_at}" if pods else ""
        if not pods or (first and uid != first):
            return
        first = uid


@click.command("get")
@click.argument("what", nargs=-1, required=True, metavar="pods [NAME...]", shell_complete=pod_names)
@namespace_option
@click.option("--all-namespaces", "-A", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--watch", "-w", "watched", is_flag=True, help="Go on: print what changes, until interrupted.")
@click.option("--output", "-o", type=FORMATS, default="table", help="table, wide, json, yaml or name.")
@click.option("--no-headers", is_flag=True, help="No titles above columns.")
@agent_option
@click.pass_context
def get_command(
    ctx: click.Context,
    what: tuple[str, ...],
    namespace: str,
    everywhere: bool,
    watched: bool,
    output: str,
    no_headers: bool,
    agent: str,
) -> int:
    """List the agent's pods, with their status as Kubernetes has it.

    READY counts containers and sidecars. STATUS is the phase, or why a container does not run: a reason of its own, or
    Init:1/2 while init containers run. wide adds the pod's address and the node. With names, json and yaml are the pod
    itself if it is one; and can be applied again.

    With --watch a pod is printed again whenever it changes, and once more when it is no more; an agent that goes away
    meanwhile is waited for. Manifests of the agent's directories that cannot be read are told on stderr.

    Exit status: 0, or 1 when there is no pod of a name.

    \b
    holdfast get pods -A -o wide
    holdfast get pods -w
    holdfast get pod web -o yaml
    """
    names = _pods(what)
    if names and everywhere:
        raise click.UsageError("a pod has its name in one namespace: leave out -A or the names")
    server = agent_of(ctx, agent)
    place = "" if everywhere else namespace or DEFAULT
    printer = Printer(output, everywhere, no_headers)
    if watched:
        before: Listed = {}
        for pods in server.watch(place):
            now = {one.uid: as_object(one) for one in pods if not names or one.name in names}
            printer.print(list(changed(before, now.values())))
            before = now
    listed = server.listed(place)
    found = [as_object(one) for one in listed.pods if not names or one.name in names]
    lacking = [name for name in names if all(one["metadata"]["name"] != name for one in found)]
    if output in ("json", "yaml") and (found or not names):
        alone = len(names) == 1
        show(found[0] if alone else {"apiVersion": "v1", "items": found, "kind": "List"}, output)
    elif found:
        printer.print(found)
    elif not names:
        click.echo(f"No resources found{f' in {place} namespace' if place else ''}.", err=True)
    for name in lacking:
        click.echo(f"holdfast: {missing(name, place)}", err=True)
    for file, why in listed.unread.items():
        click.echo(f"Warning: {file}: {why}", err=True)
    return 1 if lacking else 0


def _pods(what: Sequence[str]) -> list[str]:
    """The names, of "pods", "pod web api" or "pod/web". Raises UsageError."""
    names = what[1:] if what[0] in PODS else what
    if names is what and any("/" not in one for one in what):
        raise click.UsageError(f"{what[0]!r} is nothing that can be listed here (hint: pods)")
    return [name_of(one) for one in names]


class Printer:
    """Pods bit by bit. The columns of a table are as wide as its first rows need."""

    def __init__(self, output: str, everywhere: bool, no_headers: bool) -> None:
        self._output = output
        self._everywhere = everywhere
        self._headers = not no_headers
        self._widths: list[int] = []

    def print(self, pods: Sequence[Object]) -> None:
        if self._output == "json":
            texts = [json.dumps(one, indent=2) for one in pods]
        elif self._output == "yaml":
            import yaml

            texts = ["---\n" + yaml.safe_dump(one, sort_keys=False).rstrip() for one in pods]
        elif self._output == "name":
            texts = [f"pod/{one['metadata']['name']}" for one in pods]
        else:
            texts = self._table(pods)
        for text in texts:
            click.echo(text)
        sys.stdout.flush()

    def _table(self, pods: Sequence[Object]) -> list[str]:
        wide = self._output == "wide"
        rows = [self._row(one, wide=wide) for one in pods]
        if not rows:
            return []
        if self._headers and not self._widths:
            rows.insert(0, (*(("NAMESPACE",) if self._everywhere else ()), *(WIDE if wide else COLUMNS)))
        self._widths = self._widths or [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return lines(rows, self._widths)

    def _row(self, pod: Object, *, wide: bool) -> tuple[str, ...]:
        found = row(pod, wide=wide)
        return (pod["metadata"].get("namespace", DEFAULT), *found) if self._everywhere else found


@click.command("describe")
@click.argument("what", nargs=-1, required=True, metavar="pod NAME...", shell_complete=pod_names)
@namespace_option
@agent_option
@click.pass_context
def describe_command(ctx: click.Context, what: tuple[str, ...], namespace: str, agent: str) -> int:
    """Show what a pod is, does and has met with: containers, conditions, volumes, events.

    A container's last state is how its run before ended. A volume has a status if it is not ready, if something that
    others had mounted in it was detached, or if it is kept, and says why. Events are counted when they happen again;
    they are remembered for as long as the agent runs.

    Exit status: 0, or 1 when there is no pod of a name.

    \b
    holdfast describe pod web
    """
    from holdfast.cli.pod_described import described

    server, names = agent_of(ctx, agent), _pods(what)
    if not names:
        raise click.UsageError("say which pod")
    for number, name in enumerate(names):
        one, _ = server.pod(name, namespace)
        click.echo("\n\n" * bool(number) + "\n".join(described(one, as_object(one))))
    return 0
