"""exec and attach: a command's streams, or those of the container itself."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import Any, Final

import click

from holdfast.cli import targets
from holdfast.cli.client import Client
from holdfast.cli.completion import container_or_pod_names
from holdfast.cli.errors import CommandError, Missing, Unreachable
from holdfast.cli.logs import POLL_SECONDS, status_of
from holdfast.cli.streams import LOST, Line, Trust, dialled, read, run, trust_options, write
from holdfast.cli.terminal import DETACH_KEYS, DetachKeys, key_sequence, raw, size
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.streaming.client import LARGEST_PIECE, Command
from holdfast.streaming.session import STDERR, Outcome

YEAR: Final = 365 * 86400
RECORDED_SECONDS: Final = 30.0  # for the daemon to hear of an end that the session has told of
SYNC_GRACE: Final = 10  # seconds beyond a command's own


class Exec(click.Command):
    """Its own options may follow the name, as kubectl has them, until the command begins or "--" says so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = self._words(ctx, args)
        if len(words) > 1 and words[1].startswith("-"):
            name, *more = words
            command = self._words(ctx, more)
            own = more[: len(more) - len(command)]
            first = args[: len(args) - len(words)]
            args = [*first, *own, *([] if "--" in own else ["--"]), name, *command]
        return super().parse_args(ctx, args)

    def _words(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What comes after options of its own."""
        found, _, _ = self.make_parser(ctx).parse_args(list(args))
        name, command = found.get("name"), found.get("command")
        return [*([name] if isinstance(name, str) else []), *(command if isinstance(command, list | tuple) else [])]


@click.command("exec", cls=Exec, context_settings={"allow_interspersed_args": False})
@click.option(
    "--interactive", "-i", is_flag=True, help="Give the command our stdin; its end is the end of the command's."
)
@click.option(
    "--tty", "-t", is_flag=True, help="Give the command a terminal, of the size of ours. Then it has no stderr."
)
@click.option(
    "--sync", is_flag=True, help="Run it by one call without a stream, and show its output when it has ended."
)
@click.option(
    "--timeout", type=click.IntRange(min=0), default=0, help="Seconds until it is killed; 0 is never. Implies --sync."
)
@trust_options
@targets.pod_options
@click.argument("name", metavar="CONTAINER|POD", shell_complete=container_or_pod_names)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_command(
    ctx: click.Context, interactive: bool, tty: bool, sync: bool, timeout: int, ca: str, insecure: bool,
    container: str, namespace: str, agent: str, name: str, command: tuple[str, ...],
) -> int:  # fmt: skip
    """Run a command in a running container, and show its output as it comes.

    The session does not depend on the daemon: it goes on while the daemon is down or restarts. If this program ends
    before the command does, the command gets SIGHUP, and soon SIGKILL.

    What no container is called is a pod of the agent's (pod/NAME always is), and its container that of -c, that of its
    annotation kubectl.kubernetes.io/default-container, or the first, which is told. Options may follow the name; then
    "--" is before the command.

    Exit status: that of the command; 1 when it could not be run, or nobody knows how it ended.

    \b
    holdfast exec -it web sh
    holdfast exec web tail -f /var/log/access.log
    holdfast exec -i web tar -xf - -C /srv < site.tar
    holdfast exec --timeout 5 web sh -c 'ls | wc -l'
    holdfast exec web -c httpd -it -- sh
    """
    if (sync or timeout) and (interactive or tty):
        raise click.UsageError("--sync and --timeout go with neither -i nor -t")
    if interactive and tty and not os.isatty(0):
        raise CommandError("cannot use a terminal: stdin is none (hint: leave out -t)")
    daemon, found = targets.container(ctx, targets.Wanted(name, namespace, agent, container))
    if sync or timeout:
        return _exec_sync(daemon, found, command, timeout)
    request = pb.ExecRequest(container_id=found, cmd=command, tty=tty, stdin=interactive, stdout=True, stderr=not tty)
    url = daemon.call(daemon.runtime.Exec, request).url
    what = f"exec in container {name}"
    session = Session(interactive, tty)
    status = run(session.run(url, Trust(ca, insecure)), what)
    if (outcome := session.outcome) is None:
        if status:
            return status
        raise CommandError(f"cannot tell how the command in container {name} ended: {LOST}")
    if outcome.error:
        raise CommandError(f"cannot {what}: {' '.join(outcome.error.split())}")
    return outcome.code


def _exec_sync(daemon: Client, container_id: str, command: tuple[str, ...], timeout: int) -> int:
    request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
    reply = daemon.call(daemon.runtime.ExecSync, request, timeout + SYNC_GRACE if timeout else YEAR)
    for stream, data in ((sys.stdout.buffer, reply.stdout), (sys.stderr.buffer, reply.stderr)):
        stream.write(data)
        stream.flush()
    return int(reply.exit_code)


@click.command("attach")
@click.option("--interactive", "-i", is_flag=True, help="Give the container our stdin as well.")
@click.option(
    "--detach-keys",
    default=DETACH_KEYS,
    show_default=True,
    metavar="KEYS",
    help='Keys that end attach and nothing else: letters or ctrl-LETTER, with commas between; "" for none.',
)
@trust_options
@targets.pod_options
@click.argument("name", metavar="CONTAINER|POD", shell_complete=container_or_pod_names)
@click.pass_context
def attach_command(
    ctx: click.Context, interactive: bool, detach_keys: str, ca: str, insecure: bool, container: str, namespace: str,
    agent: str, name: str,
) -> int:  # fmt: skip
    """Show what a running container writes from now on; with -i, type into it.

    What it wrote before is in its log (`holdfast logs`). A container can only be typed into if it was made with stdin,
    and has a terminal if it was made with one. The session goes on while the daemon is down or restarts. An interrupt
    ends attach, and not the container, unless the container has our terminal: then ctrl-c is a key like others. Pods of
    the agent's are named as for `holdfast exec`.

    Exit status: that of the container if it ends; 0 after the detach keys.

    \b
    holdfast attach web
    holdfast attach -i --detach-keys ctrl-x,x shell
    """
    sequence = key_sequence(detach_keys)
    daemon, found = targets.container(ctx, targets.Wanted(name, namespace, agent, container))
    tty = _has_terminal(daemon, found)
    request = pb.AttachRequest(container_id=found, stdin=interactive, tty=tty, stdout=True, stderr=not tty)
    url = daemon.call(daemon.runtime.Attach, request).url
    session = Session(interactive, tty, sequence, redraw=True)
    status = run(session.run(url, Trust(ca, insecure)), f"attach to container {name}")
    if session.detached:
        print(f"holdfast: detached from container {name}, which runs on", file=sys.stderr)
        return 0
    return status or _how_it_ended(daemon, found, name, session.outcome)


def _has_terminal(daemon: Client, container_id: str) -> bool:
    request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = json.loads(daemon.call(daemon.runtime.ContainerStatus, request).info.get("info", "{}"))
    return bool(info.get("runtimeSpec", {}).get("process", {}).get("terminal"))


def _how_it_ended(daemon: Client, container_id: str, name: str, outcome: Outcome | None) -> int:
    """The container's exit code: by the session if it says one, by the daemon otherwise."""
    if outcome is not None and outcome.error:
        raise CommandError(f"cannot go on with container {name}: {' '.join(outcome.error.split())}")
    if outcome is not None and outcome.code:
        return outcome.code
    deadline = time.monotonic() + (RECORDED_SECONDS if outcome is not None else 0)
    with contextlib.suppress(Missing):
        while True:
            with contextlib.suppress(Unreachable):
                status = status_of(daemon, container_id)
                if status.state == pb.CONTAINER_EXITED:
                    return status.exit_code
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    raise CommandError(f"cannot tell how container {name} ended: {LOST if outcome is None else 'nobody can say'}")


class Session:
    """What is typed goes to the command, what it says to our stdout and stderr, until it or the user ends it."""

    def __init__(self, stdin: bool, tty: bool, sequence: bytes = b"", redraw: bool = False) -> None:
        self._stdin = stdin
        self._tty = tty
        self._keys = DetachKeys(sequence)
        self._redraw = redraw
        self._resized = asyncio.Event()
        self.outcome: Outcome | None = None
        self.detached = False

    async def run(self, url: str, trust: Trust) -> int:
        async with dialled(url, trust, Command) as line:
            with raw(0) if self._stdin and self._tty else contextlib.nullcontext():
                async with asyncio.TaskGroup() as group:
                    showing = group.create_task(self._show(line), name="output")
                    others = []
                    if self._stdin:
                        others.append(group.create_task(self._type(line, showing), name="input"))
                    if self._tty:
                        others.append(group.create_task(self._resize(line), name="size"))
                    showing.add_done_callback(lambda _: [one.cancel() for one in others])
        return 0

    async def _show(self, line: Line) -> None:
        async for event in line.events():
            if isinstance(event, Outcome):
                self.outcome = event
                return
            await write(2 if event.stream == STDERR else 1, event.data)

    async def _type(self, line: Line, showing: asyncio.Task[Any]) -> None:
        codec: Command = line.codec
        while True:
            data = await read(0, LARGEST_PIECE)
            typed, self.detached = self._keys.typed(data) if data else (self._keys.rest(), False)
            codec.send(typed)
            if not data:
                codec.end_input()
            await line.flush()
            if self.detached:
                showing.cancel()
            if self.detached or not data:
                return

    async def _resize(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._resized.set)
        try:
            if (found := size()) and self._redraw:  # a size that differs makes a program draw itself anew
                line.codec.resize(found[0], found[1] + 1)
            while True:
                if found := size():
                    line.codec.resize(*found)
                    await line.flush()
                await self._resized.wait()
                self._resized.clear()
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
