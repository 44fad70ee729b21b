"""Listings, errors and what is asked of the daemon."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import yaml
from click.shell_completion import ShellComplete

from holdfast.cli.main import VERBS, root
from holdfast.config import Config
from holdfast.proto import runtime_v1_pb2 as pb

Run = Callable[..., tuple[int, str, str]]


def test_ps(fake, holdfast: Run) -> None:
    fake.add("1", "old", seconds=7300)
    web = fake.add("2", "web")
    fake.add("3", "gone", "EXITED", seconds=3 * 86400)
    assert holdfast("ps") == (
        0,
        "CONTAINER       IMAGE     CREATED         STATE     NAME   ATTEMPT   POD ID          POD\n"
        "c222222222222   busybox   2 minutes ago   Running   web    0         2222222222222   web\n"
        "c111111111111   busybox   2 hours ago     Running   old    0         1111111111111   old\n",
        "",
    )
    assert "3 days ago   " in holdfast("ps", "-a").out
    assert holdfast("ps", "-q", "--name", "we").out == f"{web}\n"
    assert holdfast("ps", "-aq", "--pod", "web").out == f"{web}\n"
    assert holdfast("ps", "-q", "--state", "exited").out.startswith("c3")
    assert web in holdfast("ps", "--no-trunc").out


def test_ps_without_containers_is_a_heading(holdfast: Run) -> None:
    assert holdfast("ps").out.split() == [
        "CONTAINER",
        "IMAGE",
        "CREATED",
        "STATE",
        "NAME",
        "ATTEMPT",
        "POD",
        "ID",
        "POD",
    ]


def test_labels_are_asked_for(fake, holdfast: Run) -> None:
    holdfast("ps", "--label", "app=web", "--label", "tier=")
    assert dict(fake.last(pb.ListContainersRequest).filter.label_selector) == {"app": "web", "tier": ""}


def test_json_and_yaml_are_the_same_data(fake, holdfast: Run) -> None:
    web = fake.add("2", "web")
    for verb, key, name in (("ps", "containers", web), ("pods", "items", "2" * 64)):
        shown = json.loads(holdfast(verb, "-o", "json").out)
        assert shown[key][0]["id"] == name
        assert yaml.safe_load(holdfast(verb, "-o", "yaml").out) == shown


def test_pods(fake, holdfast: Run) -> None:
    fake.add("1", "web")
    fake.add("2", "done", "EXITED")
    listing = holdfast("pods", "--state", "ready").out.splitlines()
    assert listing[0].split() == ["POD", "ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"]
    assert listing[1:] == ["1111111111111   2 minutes ago   Ready   web    default     0         crun"]
    assert holdfast("pods", "-q", "--namespace", "other").out == ""


def test_images(fake, holdfast: Run) -> None:
    assert holdfast("image", "ls").out.splitlines()[1].split() == [
        "docker.io/library/busybox", "latest", "1111111111111", "2.15MB",
    ]  # fmt: skip
    assert holdfast("image", "ls", "-q").out == f"sha256:{'1' * 64}\n"
    assert json.loads(holdfast("image", "inspect", "busybox").out)["status"]["size"] == "2150000"
    assert holdfast("image", "rm", "busybox").out == "busybox\n"
    assert holdfast("image", "pull", "busybox:2").out == "busybox:2\n"


def test_import_sends_the_file(holdfast: Run, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"x" * 3_000_000)
    assert holdfast("image", "import", str(archive)).out == "imported/3000000:latest\n"
    status, _, err = holdfast("image", "import", "/no/such.tar")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("typed", ["web", "c22", "c" + "2" * 63])
def test_a_container_is_found_by_name_or_beginning_of_its_id(fake, holdfast: Run, typed: str) -> None:
    web = fake.add("2", "web")
    fake.add("1", "other")
    assert holdfast("stop", "-t", "3", typed) == (0, f"{typed}\n", "")
    asked = fake.last(pb.StopContainerRequest)
    assert (asked.container_id, asked.timeout) == (web, 3)


def test_a_name_wins_over_the_beginning_of_an_id(fake, holdfast: Run) -> None:
    fake.add("1", "c2")
    fake.add("2", "web")
    holdfast("stop", "c2")
    assert fake.last(pb.StopContainerRequest).container_id.startswith("c1")


def test_what_matches_more_than_once_is_refused(fake, holdfast: Run) -> None:
    fake.add("1", "web")
    fake.add("2", "web")
    status, _, err = holdfast("stop", "web")
    hint = "(hint: say which by id: c111111111111, c222222222222)"
    assert (status, err) == (1, f"holdfast: cannot find container 'web': 2 match {hint}\n")


def test_the_others_are_done_when_one_fails(fake, holdfast: Run) -> None:
    fake.add("1", "a")
    fake.add("2", "b")
    status, out, err = holdfast("stop", "a", "nobody", "b")
    assert (status, out) == (1, "a\nb\n")
    assert err == "holdfast: cannot find container 'nobody': there is none\n"


@pytest.mark.parametrize(("verb", "what"), [("rm", "is running"), ("rmp", "is ready")])
def test_what_lives_is_removed_by_force_only(fake, holdfast: Run, verb: str, what: str) -> None:
    fake.add("1", "web")
    status, _, err = holdfast(verb, "web")
    assert (status, err.count("\n"), what in err, "hint" in err) == (1, 1, True, True)
    assert holdfast(verb, "-f", "web") == (0, "web\n", "")
    assert holdfast(verb, "--all").out == "" if verb == "rmp" else True


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "stopp", "rmp"])
def test_nothing_named_is_wrong_usage(holdfast: Run, verb: str) -> None:
    status, out, err = holdfast(verb)
    assert (status, out, err.count("\n"), f"holdfast {verb} --help" in err) == (2, "", 1, True)


def test_names_and_all_together_are_wrong_usage(fake, holdfast: Run) -> None:
    fake.add("1", "web")
    assert holdfast("rm", "-f", "-a", "web").status == 2
    assert fake.containers


def test_inspect_says_what_it_found(fake, holdfast: Run) -> None:
    web = fake.add("1", "web")
    assert json.loads(holdfast("inspect", "web").out) == json.loads(holdfast("inspect", web).out)
    assert json.loads(holdfast("inspect", web[:6]).out)["info"] == {"pid": 42}
    assert json.loads(holdfast("inspect", "1111").out)["status"]["id"] == "1" * 64
    assert json.loads(holdfast("inspect", "busybox").out)["status"]["id"] == f"sha256:{'1' * 64}"
    assert holdfast("inspect", "nobody").err.startswith("holdfast: cannot find 'nobody'")


@pytest.mark.parametrize("arguments", [("ps",), ("inspect", "x"), ("stop", "x"), ("image", "ls"), ("logs", "x")])
def test_without_a_daemon(holdfast: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = holdfast(*arguments, socket="/nonexistent.sock")
    hint = "(hint: is holdfastd running?)"
    assert (status, out, err) == (1, "", f"holdfast: cannot reach the daemon at /nonexistent.sock {hint}\n")


def test_recovery_without_a_daemon_names_the_store(holdfast: Run) -> None:
    status, _, err = holdfast("recovery", socket="/nonexistent.sock")
    assert (status, err.count("\n"), "/var/lib/holdfast/holdfast.db" in err) == (1, 1, True)


@pytest.mark.parametrize(
    ("code", "details", "text"),
    [
        ("FAILED_PRECONDITION", "cannot list:\n  no", "holdfast: cannot list: no\n"),
        ("UNAVAILABLE", "cannot serve yet: starting", "holdfast: cannot serve yet: starting\n"),
        ("UNAVAILABLE", "Socket closed", "holdfast: cannot finish the call: the daemon at "),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "holdfast: cannot finish the call: no answer in time (hint: "),
    ],
)
def test_the_daemons_errors_are_one_line(fake, holdfast: Run, code: str, details: str, text: str) -> None:
    fake.fail["ListContainers"] = (grpc.StatusCode[code], details)
    status, out, err = holdfast("ps")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(text)


def test_wrong_usage_is_one_line(holdfast: Run) -> None:
    status, out, err = holdfast("ps", "--stat", "x")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("holdfast: no such option") and err.endswith("(hint: holdfast ps --help)\n")
    assert holdfast("frobnicate").err == "holdfast: no such command 'frobnicate' (hint: holdfast --help)\n"
    assert holdfast("run", "--no-such", "x").status == 125


def test_exec_is_the_command(fake, holdfast: Run) -> None:
    fake.add("1", "web")
    fake.exec_reply = pb.ExecSyncResponse(stdout=b"out\n", stderr=b"err\n", exit_code=9)
    assert holdfast("exec", "--timeout", "5", "web", "ls", "-l", "--all") == (9, "out\n", "err\n")
    asked = fake.last(pb.ExecSyncRequest)
    assert (list(asked.cmd), asked.timeout) == (["ls", "-l", "--all"], 5)
    assert holdfast("exec", "--sync", "web", "ls").out == "out\n"
    assert (fake.last(pb.ExecSyncRequest).timeout, holdfast("exec", "--sync", "-i", "web", "sh").status) == (0, 2)


def test_node_verbs(holdfast: Run) -> None:
    assert holdfast("version").out == f"Client:   {_version()}\nDaemon:   0.9\nRuntime:  holdfast\nCri:      v1\n"
    assert json.loads(holdfast("version", "-o", "json").out)["daemon"] == "0.9"
    assert holdfast("config", "show").out == 'root = "/r"\n\n'
    info = holdfast("info").out
    assert "RuntimeReady" in info and "crun, runc" in info and "5MB, 17 inodes" in info
    assert json.loads(holdfast("info", "-o", "json").out)["config"]["root"] == "/r"
    told = holdfast("recovery").out.splitlines()
    assert told[0] == "2 pods and 3 containers in 12.5 ms (rows loaded in 1.5 ms), after a reboot"
    assert told[2].split() == ["container", "c" * 13, "web", "RUNNING", "EXITED", "the", "shim's", "exit", "file"]
    assert told[3] == "swept: mount /x"
    assert json.loads(holdfast("recovery", "-o", "json").out)["pods"] == 2


def _version() -> str:
    from holdfast import __version__

    return __version__


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(holdfast: Run, verb: str) -> None:
    status, out, _ = holdfast(verb, "--help")
    assert (status, out.startswith(f"Usage: holdfast {verb}")) == (0, True)
    assert verb in holdfast("--help").out


@pytest.mark.parametrize(
    ("typed", "incomplete", "offered"),
    [
        (["stop"], "w", ["web", "worker"]),
        (["rmp", "-f"], "wo", ["worker"]),
        (["inspect"], "docker", ["docker.io/library/busybox:latest"]),
        (["run"], "docker", ["docker.io/library/busybox:latest"]),
        ([], "rec", ["recovery"]),
    ],
)
def test_names_are_completed(fake, typed: list[str], incomplete: str, offered: list[str]) -> None:
    fake.add("1", "web")
    fake.add("2", "worker")
    words = ["--socket", f"{fake.directory}/s", *typed]
    found = ShellComplete(root, {}, "holdfast", "_HOLDFAST_COMPLETE").get_completions(words, incomplete)
    assert [one.value for one in found] == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(holdfast: Run, shell: str) -> None:
    assert "_HOLDFAST_COMPLETE" in holdfast("completion", shell).out


def test_the_socket_is_the_daemons() -> None:
    option = next(one for one in root.params if one.name == "socket")
    assert option.default == str(Config().socket)
