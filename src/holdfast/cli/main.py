"""holdfast, the command line: a client of the CRI socket. Verbs are imported only when they are used."""

import importlib
import io
import os
import sys
from typing import Any, Final

import click

from holdfast.cli.errors import RUN_FAILED, CommandError

VERBS: Final = {
    "run": ("run", "Run a container in a pod of its own."),
    "pods": ("pods", "List pods."),
    "stopp": ("pods", "Stop pods."),
    "rmp": ("pods", "Remove pods."),
    "checkpoint": ("checkpoint", "Leave an archive of a pod, with its processes and volumes."),
    "restore": ("checkpoint", "Make a pod again from its archive."),
    "ps": ("containers", "List containers."),
    "inspect": ("inspect", "Show everything about a container, pod or image."),
    "logs": ("logs", "Print the log of a container."),
    "stats": ("stats", "Show what running containers use."),
    "exec": ("exec", "Run a command in a running container."),
    "attach": ("exec", "Show what a running container writes, and type into it."),
    "port-forward": ("forward", "Forward local ports to a pod."),
    "start": ("containers", "Start created containers."),
    "stop": ("containers", "Stop running containers."),
    "rm": ("containers", "Remove containers."),
    "image": ("images", "Manage images."),
    "info": ("node", "Show the state of the runtime."),
    "config": ("node", "Show the configuration of the daemon."),
    "recovery": ("node", "Show what the last start has recovered."),
    "doctor": ("doctor", "Find what nobody owns and what is not as it should be."),
    "events": ("events", "Show what happens to pods and containers."),
    "version": ("node", "Show the versions of client and daemon."),
    "agent": ("agent", "Run the pods of a directory of manifests."),
    "apply": ("agent_pods", "Have the agent run what manifests say."),
    "get": ("agent_pods", "List the agent's pods."),
    "describe": ("agent_pods", "Show what a pod of the agent is, does and has met with."),
    "delete": ("agent_pods", "End pods of the agent."),
    "checkpoints": ("agent_checkpoints", "Make, list and remove checkpoints that the agent keeps of its pods."),
    "completion": ("completion", "Print a shell completion script."),
}


class LazyGroup(click.Group):
    """Knows its verbs by name, and imports a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f"holdfast.cli.{VERBS[name][0]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    envvar="HOLDFAST_SOCKET",
    default="/run/holdfast/holdfast.sock",
    show_default=True,
    help="The daemon's socket. [env: HOLDFAST_SOCKET]",
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for one answer.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.pass_context
def root(ctx: click.Context, socket: str, timeout: float, debug: bool) -> None:
    """Run and look after containers on this node.

    Containers live in pods; `run` makes both. Ids may be shortened, and names will do, as long as they are unique.
    Exit status: 0 done, 1 failed, 2 wrong usage; `run`, `exec` and `attach` end with the command's own
    status.
    """
    ctx.ensure_object(dict).update(socket=socket, timeout=timeout, debug=debug)


def main() -> None:
    """Run the command line; an error is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need be no text
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it has words of its own for a daemon that goes away
    options: dict[str, Any] = {}
    try:
        status: Any = root.main(prog_name="holdfast", standalone_mode=False, obj=options)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        status = exc.exit_code
    except click.UsageError as exc:
        status = _usage(exc)
    except click.ClickException as exc:
        print(f"holdfast: {exc.format_message()}", file=sys.stderr)
        status = exc.exit_code
    except CommandError as exc:
        if options.get("debug"):
            raise
        print(f"holdfast: {exc}", file=sys.stderr)
        status = exc.status
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status if isinstance(status, int) else 0)


def _usage(error: click.UsageError) -> int:
    """Say what is wrong with the command line and where to read on."""
    command = error.ctx.command_path if error.ctx else "holdfast"
    text = error.format_message().rstrip(".").replace("\n", " ")
    print(f"holdfast: {text[:1].lower()}{text[1:]} (hint: {command} --help)", file=sys.stderr)
    return RUN_FAILED if command == "holdfast run" else error.exit_code
