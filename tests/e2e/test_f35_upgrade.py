"""F35: a release is deleted under its pods, the next one adopts them, and the one before adopts them back."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import google.protobuf
import pytest
from kit import invariants
from kit.crash import recovered
from kit.node import Node, node, until
from kit.streams import Stream, exec_url

import holdfast
from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

LIBRARY = f"python{sys.version_info.major}.{sys.version_info.minor}"


def install(where: Path, version: str) -> Path:
    """An installation of its own: our code and what workers need besides, in a copy. Returns its bin directory."""
    packages = where / "lib" / LIBRARY / "site-packages"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(holdfast.__file__).parent, packages / "holdfast", ignore=ignore)
    shutil.copytree(Path(google.protobuf.__file__).parents[1], packages / "google", ignore=ignore)
    init = packages / "holdfast" / "__init__.py"
    init.write_text(init.read_text().replace(holdfast.__version__, version))
    (packages / "others.pth").write_text(f"{Path(google.protobuf.__file__).parents[2]}\n")
    programs = where / "bin"
    programs.mkdir()
    base = Path(sys.base_prefix, "bin")
    (where / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (programs / "python").symlink_to(base / LIBRARY)
    daemon = programs / "holdfastd"
    daemon.write_text(f"#!{programs}/python\nimport sys\nfrom holdfast.__main__ import daemon\nsys.exit(daemon())\n")
    daemon.chmod(0o755)
    return programs


def change_to(one: Node, version: str, away: str = "") -> None:
    """Stop the daemon, delete its release, start another one."""
    one.end(signal.SIGTERM)
    if away:
        shutil.rmtree(one.base / away)  # noqa: TID251
    one.bin = install(one.base / version, version)
    one.start()
    assert one.call("Version", pb.VersionRequest()).runtime_version == version


def keeper_of(one: Node, pod: str) -> int:
    """The parent of the pod's shim."""
    shim = next(worker.pid for worker in keeper.workers(one.state) if worker.id == pod)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{shim}/status").read_text().splitlines())
    return int(status["PPid"])


def keeper_version(one: Node) -> str:
    found = keeper._ask(one.state / keeper.SOCKET, "hello")
    assert found is not None
    return str(found["version"])


def verdicts(one: Node) -> set[str]:
    return {found["verdict"] for found in json.loads(one.cli("doctor", "-o", "json", check=False).stdout)["findings"]}


def shims_of(one: Node) -> dict[str, int]:
    return {worker.id: worker.pid for worker in keeper.workers(one.state) if worker.kind == "shim"}


@pytest.mark.parametrize("pid", [pb.CONTAINER, pb.POD])
def test_f35_pods_outlive_the_files_of_their_release(pid: pb.NamespaceMode) -> None:
    with node() as one:
        change_to(one, "7.0.0")
        pod = one.run_pod(one.pod_config(pid=pid))
        doomed = one.run_pod(one.pod_config(pid=pid))
        script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"
        running = [one.run(where, script, pid=pid) for where in (pod, doomed)]
        created = one.create(pod, one.container_config("exit 4", "created", pid=pid))
        pids = [one.pid(container_id) for container_id in running]
        shims = shims_of(one)
        assert keeper_version(one) == "7.0.0"
        old = keeper_of(one, pod)

        change_to(one, "7.1.0", away="7.0.0")
        assert [one.pid(container_id) for container_id in running] == pids
        assert shims_of(one) == shims
        assert keeper_version(one) == "7.1.0"
        for container_id in running:
            assert one.exec(container_id, ["/bin/echo", "hello"]).stdout == b"hello\n"
        one.start_container(created)
        assert one.exited(created).exit_code == 4
        assert one.exited(one.run(pod, "exit 6", "new", pid=pid)).exit_code == 6
        os.kill(shims[doomed], signal.SIGKILL)
        until(lambda: process.state(shims[doomed]) == "", "the shim to end")
        assert one.pid(running[1]) == pids[1] and process.state(pids[1])
        until(lambda: one.works(running[1]), "another shim")
        assert keeper_of(one, doomed) == old, "who has its descriptors"
        another = one.run_pod(one.pod_config(pid=pid))
        assert one.exited(one.run(another, "exit 8", pid=pid)).exit_code == 8
        new = keeper_of(one, another)
        assert (keeper_of(one, pod), new != old) == (old, True)
        until(lambda: verdicts(one) == {"ok"}, "the doctor to be content")

        change_to(one, "7.0.0", away="7.1.0")
        assert [one.pid(container_id) for container_id in running] == pids
        assert one.exec(running[0], ["/bin/echo", "hello"]).stdout == b"hello\n"
        for container_id in running:
            one.stop_container(container_id)
            assert one.status(container_id).exit_code == 137
        numbers = [int(line.split()[3]) for line in one.container_log(running[0]).splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))
        one.remove_pod(pod)
        assert process.state(old), "it has another pod"
        one.remove_pod(doomed)
        until(lambda: not process.state(old), "the keeper of the pods that are gone to leave")
        assert process.state(new)
        one.remove_pod(another)
        until(lambda: not list(one.state.glob("keeper.*.*")), "the other one to leave as well")
        assert not one.leftovers()
        one.end(signal.SIGTERM)
        one.bin = install(one.base / "7.2.0", "7.2.0")
        one.start()
        assert keeper_version(one) == "7.2.0", "a keeper without workers gives way to that of the release"


def test_f35_a_session_outlives_the_files_of_its_release() -> None:
    """Its keeper is set aside; the daemon of the next release knows the session, and clears up after it."""
    with node() as one:
        change_to(one, "7.0.0")
        pod = one.run_pod()
        container = one.run(pod, "sleep 1000")
        with Stream(exec_url(one, container, ["/bin/sh"], tty=True)) as stream:
            stream.type("echo fi''rst\n")
            stream.until_out("first")
            change_to(one, "7.1.0", away="7.0.0")
            until(lambda: recovered(one), "recovery to end")
            invariants.check(one)
            stream.type("echo sec''ond; exit 5\n")
            stream.until_out("second")
            assert stream.outcome() == 5
        until(lambda: not list((one.state / "pods").glob("*/sessions/*")), "the session to be over")
        one.remove_pod(pod)
        invariants.check(one)
