"""What there is to be said of gVisor's runsc wherever it is named: its program, its files, its words. Pure.

The processes of a pod's containers are not the host's: their kernel is a process, the sentry, that is the init of the
pod's sandbox container and, for whoever asks runsc for a pid, of every other one. So a container's end is what runsc
says it is, and the sentry's end is that of all of them.
"""

import json
from typing import Final

RUNSC: Final = "runsc"  # whatever program bears this name is taken to be it
PLATFORMS: Final = ("systrap", "ptrace", "kvm")  # by which system calls come to it; the first is the default
KILLED: Final = 137  # how a container ends whose sentry has ended
FILESTORE: Final = ".gvisor.filestore."  # and the sandbox's id: where what is written to an overlaid directory goes
PROC_SYS_NET: Final = "/proc/sys/net"  # on new kernels runsc takes every network namespace for the host's by it
CREATED: Final = "created"  # and not started; a status, as PAUSED is
PAUSED: Final = "paused"
LOOK: Final = "look"  # a program in the root of sandbox containers: it looks for what its arguments name
_LONGEST: Final = 255  # of a name, in bytes
_BETWEEN: Final = "_sandbox:"
_KEPT: Final = (".state", ".lock")


def state_file(container_id: str, pod_id: str) -> str:
    """The name of the file in runsc's root by which it knows a container."""
    return f"{container_id}{_BETWEEN}{pod_id}.state"


def is_of(name: str, container_id: str, pod_id: str) -> bool:
    """Whether a file in runsc's root is of this container; of the sandbox container are those of the whole pod."""
    first, between, rest = name.partition(_BETWEEN)
    if container_id == pod_id and name == f"runsc-{pod_id}.sock":
        return True
    return bool(between) and rest.partition(".")[0] == pod_id and container_id in (first, pod_id)


def owner_of(name: str) -> str:
    """Whose a file in runsc's root is: the id of a container or of a pod; "" for what is none of runsc's."""
    if name.startswith("runsc-") and name.endswith(".sock"):
        return name.removeprefix("runsc-").removesuffix(".sock")
    container_id, between, rest = name.partition(_BETWEEN)
    return container_id if between and rest.endswith(_KEPT) else ""


def status(state: bytes) -> str:
    """What a state file says of a container, as CREATED; "" for what is none."""
    try:
        return str(json.loads(state)["status"])
    except (ValueError, LookupError, TypeError):
        return ""


def usage(said: bytes) -> tuple[int, int, int] | None:
    """(ns of cpu time, bytes of memory, processes) as `runsc events --stats` says; None when it does not.

    It leaves numbers out that are 0, as is the time of what has begun and sleeps.
    """
    try:
        data = json.loads(said)["data"]
        cpu, memory, processes = data["cpu"]["usage"], data["memory"]["usage"], data["pids"]
        return int(cpu.get("total", 0)), int(memory.get("usage", 0)), int(processes.get("current", 0))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def distractions(pid: int) -> list[str]:
    """Paths in the procfs that a container has mounted, where `pid` is one of its processes to the sandbox container.

    It remembers the thousand names that were looked up last. These are descriptors of process 1, with all numbers of
    zeros before them, which is cheap to remember; twice, as a directory is remembered anew once all in it is forgotten.
    """
    top, sizes = f"/proc/{pid}/root/proc/1", range(1, _LONGEST + 1)
    return [f"{top}/{kind}/{one:0{size}}" for kind in ("fd", "fdinfo") for one in range(3) for size in sizes] * 2


def pids(said: bytes) -> list[int]:
    """The processes of a container as `runsc ps` says, as the sandbox container has them; none when it does not."""
    try:
        return sorted(int(one) for one in json.loads(said))
    except (ValueError, TypeError):
        return []


def exit_code(said: bytes) -> int | None:
    """What `runsc wait` says of an end, 128+signal for a signal; None when it says nothing of the kind."""
    for line in said.splitlines():
        try:
            return int(json.loads(line)["exitStatus"]) & 0xFF
        except (ValueError, LookupError, TypeError):
            continue
    return None
