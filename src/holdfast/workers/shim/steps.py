"""What the shim's children do with the OCI runtime: it may block, and what it changes in memory is lost."""

import contextlib
import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, mount, process
from holdfast.linux.inject import crashpoint
from holdfast.model.spec import Mount
from holdfast.model.witness import INIT_FILE, InitRecord, encode
from holdfast.proto import task_pb2
from holdfast.workers.shim import criu, grace, gvisor, remains, rootfs
from holdfast.workers.shim.loop import Failed
from holdfast.workers.shim.oci import Runtime, memory_file, path_of, without_endless_quota
from holdfast.workers.shim.task import Process, State, Task

PID_LIMIT: Final = 64


class Steps:
    """Each is done by a child, whole; what it returns is all that the shim gets to know. Raises Failed, OSError."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def mount(self, task: Task, request: task_pb2.CreateTaskRequest) -> None:
        mounts = [Mount(one.type, one.source, one.target, tuple(one.options)) for one in request.rootfs]
        forks = any(map(rootfs.is_mapped, mounts))
        if not forks:
            grace.begin()
        if mounts:
            files.mkdir(task.rootfs, 0o700, exist_ok=True)
            for one in mounts:
                rootfs.mount_on(one, task.rootfs)
        if forks:  # which is for processes without threads
            grace.begin()
        crashpoint("shim.mounted")

    def make(self, task: Task, request: task_pb2.CreateTaskRequest, options: list[str]) -> str:
        """Returns "1" or "0", for whether the init is process 1 of a namespace of its own, and its record."""
        self.mount(task, request)
        pid_file = task.bundle / "init.pid"
        where = ["--bundle", str(task.bundle), "--pid-file", str(pid_file)]
        self._runtime.run("create", *where, *options, task.id, fds=task.init.stdio.fds)
        crashpoint("shim.created")
        pid = _read_pid(pid_file)
        if (started := process.start_time(pid)) is None:
            raise Failed("its init ended before it was started")
        path = cgroup.of_process(pid)
        record = encode(InitRecord(pid, started, process.boot_id(), path, cgroup.oom_kills(path)))
        files.write_atomic(task.bundle / INIT_FILE, record, sync=False)
        crashpoint("shim.init")
        return f"{int(self._runtime.gvisor or remains.is_first_in_namespace(pid))}{record.decode()}"

    def revive(self, task: Task) -> str:
        """As `make`, of a container that is restored, and runs."""
        found = (gvisor if self._runtime.gvisor else criu).restore(self._runtime, task)
        kills = 0
        with contextlib.suppress(OSError):  # it has ended, and its cgroup with it
            kills = cgroup.oom_kills(found.cgroup)
        record = InitRecord(found.pid, found.start_time, process.boot_id(), found.cgroup, kills, started=True)
        files.write_atomic(task.bundle / INIT_FILE, encode(record), sync=False)
        crashpoint("shim.revived")
        return f"{int(found.own_pids)}{encode(record).decode()}"

    def start(self, task: Task) -> None:
        assert task.record is not None
        files.write_atomic(task.bundle / INIT_FILE, encode(replace(task.record, started=True)), sync=False)
        crashpoint("shim.starting")
        self._runtime.run("start", task.id, fds=task.init.stdio.fds)
        crashpoint("shim.started")

    def exec(self, task: Task, one: Process, options: list[str]) -> str:
        pid_file = exec_file(task, one.exec_id)
        wanted = json.loads(one.spec).get("oomScoreAdj")
        if wanted is not None:
            process.set_oom_score_adj(int(wanted))  # crun leaves it as it finds it; we are a child, whose it may be
        with memory_file("process", one.spec) as spec:
            where = ["--process", path_of(spec), "--detach", "--pid-file", str(pid_file)]
            if self._runtime.gvisor:
                where += ["--internal-pid-file", str(inner_file := pid_file.with_suffix(".inner"))]
            crashpoint("shim.exec")
            self._runtime.run("exec", *where, *options, task.id, fds=one.stdio.fds)
        pid = int(files.read_bounded(pid_file, PID_LIMIT))
        inner = _read_pid(inner_file) if self._runtime.gvisor else 0
        files.write_atomic(pid_file, f"{pid} {process.start_time(pid) or 0} {inner}".encode(), sync=False)
        crashpoint("shim.execing")
        return f"{pid} {inner}"

    def update(self, task: Task, content: bytes) -> None:
        content, free = without_endless_quota(content)
        with memory_file("resources", content) as resources:
            self._runtime.run("update", "--resources", path_of(resources), task.id)
        if free and task.record is not None:
            cgroup.change(task.record.cgroup, [("cpu", "cpu.cfs_quota_us", "-1")])

    def forget(self, task: Task) -> None:
        """Have the runtime delete the container, and unmount its rootfs. One that is not known is deleted."""
        force = () if task.init.state is State.STOPPED and not self._runtime.gvisor else ("--force",)
        try:
            crashpoint("shim.delete")
            self._runtime.run("delete", *force, task.id)
        except Failed:
            if self._runtime.knows(task.id):
                raise
        if self._runtime.gvisor:
            self._runtime.forget(task.id)  # its lock files, which any command makes anew
        crashpoint("shim.forgotten")
        _unmount(task.rootfs)
        crashpoint("shim.unmounted")

    def wipe(self, task: Task) -> None:
        """The runtime may have been killed at any point: what it does not know of is looked for all the same."""
        path = remains.cgroup_of_bundle(task.bundle)
        if path:
            cgroup.kill(path)
        with contextlib.suppress(Failed):
            self.forget(task)
        self._runtime.forget(task.id)
        _unmount(task.rootfs)
        if path:
            cgroup.remove(path)
        for name in ("init.pid", "console.sock"):
            files.unlink(task.bundle / name)


def exec_file(task: Task, exec_id: str) -> Path:
    """Says which process was executed, "pid start-time", for whoever has to end it."""
    return task.bundle / f"exec.{exec_id}.pid"


def _read_pid(path: Path) -> int:
    """The pid that the runtime has written; the file is not needed again."""
    pid = int(files.read_bounded(path, PID_LIMIT))
    path.unlink()
    return pid


def _unmount(target: Path) -> None:
    """Take away what is mounted at `target`, however often; what is busy goes when its last user goes."""
    while True:
        try:
            mount.unmount(target)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):  # not a mount (any more)
                return
            if exc.errno != errno.EBUSY:
                raise
            mount.detach(target)
