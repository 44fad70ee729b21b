"""Debian's containerd in directories of its own, and ctr, for tests of our shim under it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from image import build_busybox_image

from holdfast.linux import cgroup, files, mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub
from kit.node import until

IMAGE = "docker.io/test/busybox:latest"
PAUSE = "docker.io/test/pause:latest"
RUNTIME = "io.containerd.holdfast.v1"
SECONDS = 30.0


class Containerd:
    """One containerd. Containers are run by our shim, in a cgroup of this kit; through the CRI by whichever `shim`."""

    def __init__(self, *, cri: bool = False, inject: bool = False, shim: str = RUNTIME) -> None:
        """With `inject` see linux.inject."""
        self._cri = cri
        self._shim = shim
        self.base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
        self.socket = self.base / "c.sock"
        self.shims = self.base / "s"
        self.cgroup = f"/{self.base.name}"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOLDFAST_SHIM_STATE": str(self.shims),
        }
        self.inject = self.base / "inject"
        if inject:
            self.inject.mkdir()
            self.environment["HOLDFAST_INJECT"] = str(self.inject)
        self._config = self.base / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{self.base}/root"\nstate = "{self.base}/state"\n'
            + ("" if cri else 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
            + f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.base}/c.sock.ttrpc"\n'
            + (self._cri_config() if cri else "")
        )

    def _cri_config(self) -> str:
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""
[{plugin}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_tcp_service = true
[{plugin}.cni]
bin_dir = "{self.base}/cni-bin"
conf_dir = "{self.base}/cni-conf"
[{plugin}.containerd]
default_runtime_name = "tried"
[{plugin}.containerd.runtimes.tried]
runtime_type = "{self._shim}"
"""

    # -- the daemon

    def start(self) -> None:
        cgroup.create(self.cgroup)
        with open(self.base / "log", "ab") as log:
            command = ["containerd", "--config", str(self._config), "--log-level", "debug"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        until(self._answers, "containerd to answer")

    def _answers(self) -> bool:
        if not self._cri:
            return self.ctr("version", check=False).returncode == 0
        try:
            self.call("ListContainers", pb.ListContainersRequest())
        except grpc.RpcError:  # not there, or "not initialized yet"
            return False
        return True

    def load(self, namespace: str = "default") -> None:
        """Import busybox, and busybox asleep for a sandbox container."""
        for name, config in ((IMAGE, {}), (PAUSE, {"Cmd": ["/bin/sleep", "100000"]})):
            archive = build_busybox_image(self.base, name.removeprefix("docker.io/"), **config)
            self.ctr("--namespace", namespace, "images", "import", str(archive))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=SECONDS)

    def restart(self) -> None:
        self.kill()
        self.start()

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def call(self, method: str, request: Any) -> Any:
        """One CRI call."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            return getattr(RuntimeServiceStub(channel), method)(request, timeout=SECONDS)

    # -- ctr

    def command(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--timeout", f"{SECONDS:g}s", *arguments]

    def ctr(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert not check or done.returncode == 0, f"ctr {arguments}: {done.stderr}\n{self.log()[-3000:]}"
        return done

    def run_command(self, name: str, script: str, *flags: str) -> list[str]:
        where = ["--fifo-dir", str(self.base / "fifo"), "--cgroup", f"{self.cgroup}/{name}"]
        return self.command("run", "--runtime", RUNTIME, *where, *flags, IMAGE, name, "sh", "-c", script)

    def run(self, name: str, script: str, *flags: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.run_command(name, script, *flags),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def exec(self, name: str, script: str, *flags: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        where = ["--fifo-dir", str(self.base / "fifo"), "--exec-id", f"e{os.urandom(4).hex()}"]
        return self.ctr("task", "exec", *where, *flags, name, "sh", "-c", script, check=False, stdin=stdin)

    def tasks(self) -> dict[str, tuple[int, str]]:
        """(pid, status) of each task, as `ctr task ls` has it."""
        lines = self.ctr("task", "ls").stdout.splitlines()[1:]
        return {name: (int(pid), status) for name, pid, status in (line.split() for line in lines)}

    @contextlib.contextmanager
    def events(self) -> Iterator["Events"]:
        """What `ctr events` says meanwhile."""
        path = self.base / f"events-{os.urandom(4).hex()}"
        with path.open("wb") as out:
            listener = subprocess.Popen(self.command("events"), stdout=out, stderr=subprocess.DEVNULL)
        heard = Events(path)
        try:
            # Nothing says that it listens but that it hears something.
            until(lambda: self._touch() and heard.all(), "ctr events to hear something")
            yield heard
        finally:
            listener.kill()
            listener.wait()

    def _touch(self) -> bool:
        name = f"touch-{os.urandom(4).hex()}"
        self.ctr("namespaces", "create", name)
        self.ctr("namespaces", "remove", name)
        return True

    # -- the end

    def shim_pids(self) -> list[int]:
        return [*self._ours(), *self._others()]

    def _ours(self) -> Iterator[int]:
        for path in self.shims.glob("*/shim.json"):
            with contextlib.suppress(FileNotFoundError):  # a shim that ends takes it along
                shim = json.loads(path.read_bytes())
                if process.start_time(shim["pid"]) == shim["start_time"]:  # one that was killed leaves it
                    yield shim["pid"]

    def _others(self) -> Iterator[int]:
        """Shims of others, which are told on their command line whose they are."""
        for path in Path("/proc").glob("[0-9]*/cmdline") if self._shim != RUNTIME else ():
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and os.fsencode(self.socket) in words:
                    yield int(path.parent.name)

    def processes(self) -> set[int]:
        """Shims, and whoever lives in a container."""
        return {*cgroup.pids(self.cgroup), *self.shim_pids()}

    def stop(self) -> None:
        """End all of it, whether the test has passed or not; returns once nothing is there any more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=SECONDS)
        for pid in (pids := self.shim_pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: all(process.state(pid) in ("", "Z") for pid in pids), "the shims to end")
        if cgroup.exists(self.cgroup):
            until(self._cgroup_is_gone, "the cgroups to go")
        mount.unmount_tree(self.base)
        files.remove_tree(self.base)

    def _cgroup_is_gone(self) -> bool:
        with contextlib.suppress(OSError):
            cgroup.kill(self.cgroup)
            cgroup.remove(self.cgroup)
        return not cgroup.exists(self.cgroup)


class Events:
    """The lines of `ctr events`: time, namespace, topic, JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[tuple[str, dict]]:
        """(topic, event) of each event whose line is whole by now."""
        found = []
        for line in self._path.read_text().split("\n")[:-1]:
            topic, start, content = line.partition(" {")
            if start:
                found.append((topic.split()[-1], json.loads(start + content)))
        return found


@contextlib.contextmanager
def serving_cri(shim: str = RUNTIME) -> Iterator[Containerd]:
    """A started one that serves the CRI, with its images."""
    one = Containerd(cri=True, shim=shim)
    try:
        one.start()
        one.load("k8s.io")
        yield one
    finally:
        one.stop()
