"""What a process inside a container sees, parsed.

Every function takes a *look*: it runs a shell script and returns what that has written to stdout. There are three:
`by_exec` runs it beside a container's init, `by_init` as the init of a container of its own, `on_host` outside.
What a script must not fail at it has to say itself (`|| true`): a script that fails fails the test.
"""

import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.oci.capabilities import CAPABILITIES
from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import Node

Look = Callable[[str], str]

_numbers = itertools.count(1)


def by_exec(node: Node, container_id: str) -> Look:
    """Through ExecSync in a container that runs."""

    def look(script: str) -> str:
        reply = node.exec(container_id, ["/bin/sh", "-c", script])
        assert reply.exit_code == 0, f"{script!r} ended with {reply.exit_code}: {_text(reply.stderr)}"
        return _text(reply.stdout)

    return look


def by_init(node: Node, pod_id: str, **config: Any) -> Look:
    """As the init of a new container with this configuration (see Node.container_config), removed afterwards."""

    def look(script: str) -> str:
        container_id = node.run(pod_id, script, f"look-{next(_numbers)}", **config)
        status = node.exited(container_id)
        out = output(node, container_id)
        assert status.exit_code == 0, f"{script!r} ended with {status.exit_code}: {out} {status.message}"
        node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
        return out

    return look


def on_host(script: str) -> str:
    """What this very host says, to compare with."""
    return _text(subprocess.run(["/bin/sh", "-c", script], check=True, capture_output=True).stdout)


def output(node: Node, container_id: str, stream: str = "stdout") -> str:
    """What a container has written to one of its streams, from its log: partial lines are put together."""
    parts = []
    for line in node.container_log(container_id).split(b"\n")[:-1]:
        _, came_from, tag, text = line.split(b" ", 3)
        if came_from.decode() == stream:
            parts.append(text if tag == b"P" else text + b"\n")
    return _text(b"".join(parts))


# -- proc(5)


def status(look: Look, pid: str = "self") -> dict[str, str]:
    """/proc/PID/status by key, among them "NoNewPrivs" and "Seccomp" (0 none, 1 strict, 2 filter)."""
    rows = (line.partition(":") for line in look(f"cat /proc/{pid}/status").splitlines())
    return {key: value.strip() for key, _, value in rows}


@dataclass(frozen=True)
class Ids:
    """Effective ids; `groups` in ascending order, without the effective one unless it is listed as well."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def ids(look: Look, pid: str = "self") -> Ids:
    found = status(look, pid)
    groups = tuple(sorted(map(int, found["Groups"].split())))
    return Ids(int(found["Uid"].split()[1]), int(found["Gid"].split()[1]), groups)


def capabilities(look: Look, pid: str = "self") -> dict[str, set[str]]:
    """The sets "Inh", "Prm", "Eff", "Bnd" and "Amb", as names without CAP_."""
    found = status(look, pid)
    return {
        key: {name for bit, name in enumerate(CAPABILITIES) if int(found[f"Cap{key}"], 16) >> bit & 1}
        for key in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    }


def namespaces(look: Look, pid: str = "self") -> dict[str, int]:
    """The number of each namespace by kind: "net", "ipc", "uts", "pid", "mnt", "user", "cgroup" and others."""
    links = re.findall(r"(\w+):\[(\d+)\]", look(f"for one in /proc/{pid}/ns/*; do readlink $one; done"))
    return {kind: int(number) for kind, number in links}


def limits(look: Look, pid: str = "self") -> dict[str, tuple[str, str]]:
    """/proc/PID/limits: soft and hard, each a number or "unlimited", by the name there ("Max open files")."""
    rows = look(f"cat /proc/{pid}/limits").splitlines()[1:]
    matches = (re.match(r"(.+?) {2,}(\S+) +(\S+)", row) for row in rows)
    return {match[1]: (match[2], match[3]) for match in matches if match is not None}


def environment(look: Look) -> dict[str, str]:
    """The environment with which the look's own shell was started."""
    rows = look("cat /proc/$$/environ; :").split("\0")
    return dict(row.split("=", 1) for row in rows if "=" in row)


@dataclass(frozen=True)
class Mounted:
    """One line of mountinfo. `options` are the mount's own, `super_options` the filesystem's; `tags` as "shared:1"."""

    root: str
    target: str
    options: frozenset[str]
    tags: tuple[str, ...]
    fstype: str
    source: str
    super_options: frozenset[str]

    @property
    def propagation(self) -> str:
        """ "private", "shared", "slave", or "slave+shared"; "unbindable" counts as itself."""
        kinds = [tag.partition(":")[0].replace("master", "slave") for tag in self.tags]
        return "+".join(sorted((kind for kind in kinds if kind != "propagate_from"), reverse=True)) or "private"


def mounts(look: Look, pid: str = "self") -> dict[str, Mounted]:
    """mountinfo by target; of several at one place the topmost."""
    return {one.target: one for one in map(_mounted, look(f"cat /proc/{pid}/mountinfo").splitlines())}


def _mounted(line: str) -> Mounted:
    before, _, after = line.partition(" - ")
    _, _, _, root, target, options, *tags = before.split(" ")
    fstype, source, more = after.split(" ", 2)
    split = (frozenset(text.split(",")) for text in (options, more))
    return Mounted(_unescape(root), _unescape(target), next(split), tuple(tags), fstype, _unescape(source), next(split))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


# -- cgroups(7)


def cgroup_paths(look: Look, pid: str = "self") -> dict[str, str]:
    """/proc/PID/cgroup: the path by controller, "" for cgroup v2."""
    rows = (line.split(":", 2) for line in look(f"cat /proc/{pid}/cgroup").splitlines())
    return {name: path for _, names, path in rows for name in names.split(",")}


def cgroup_file(look: Look, controller: str, v1: str, v2: str) -> str:
    """A file of the container's own cgroup: `v1` in the hierarchy of a controller, or `v2` in the unified one."""
    return look(f"cat /sys/fs/cgroup/{controller}/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}").strip()


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
