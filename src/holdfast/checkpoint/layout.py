"""What an archive of a checkpoint has in it, by name.

That of one container is laid out as podman, CRI-O and containerd write and read it, and as checkpointctl shows it
(github.com/checkpoint-restore/checkpointctl, lib/metadata.go):

    config.dump      JSON: id, name, image, runtime, times
    spec.dump        the OCI spec as the container was run with
    status.dump      JSON: what ContainerStatus answers, for containerd; status its own record, for checkpointctl
    network.status   JSON: the pod's addresses, as CNI results
    checkpoint/      CRIU's images
    rootfs-diff.tar  what was changed in the writable layer; deleted.files is a JSON list of what was deleted
    dump.log         CRIU's log; stats-dump its timings
    container.log    the container's log so far

That of a pod has the same for each container, and what is the pod's:

    containers/NAME/...     as above
    sandbox/checkpoint/     images of all containers together, where the runtime makes such (gVisor)
    volumes/NAME.tar        an emptyDir, on disk or in memory
    shm.tar                 /dev/shm, which the containers share
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

Kind = Literal["container", "pod"]

CONFIG_DUMP: Final = "config.dump"
SPEC_DUMP: Final = "spec.dump"
STATUS_DUMP: Final = "status.dump"
STATUS: Final = "status"
NETWORK_STATUS: Final = "network.status"
IMAGES: Final = "checkpoint"
ROOTFS_DIFF: Final = "rootfs-diff.tar"
DELETED_FILES: Final = "deleted.files"
DUMP_LOG: Final = "dump.log"
STATS_DUMP: Final = "stats-dump"
LOG: Final = "container.log"
OF_A_CONTAINER: Final = frozenset(
    {CONFIG_DUMP, SPEC_DUMP, STATUS_DUMP, STATUS, NETWORK_STATUS, ROOTFS_DIFF, DELETED_FILES, DUMP_LOG, STATS_DUMP, LOG}
)

CONTAINERS: Final = "containers"
SANDBOX: Final = "sandbox"
VOLUMES: Final = "volumes"
SHM: Final = "shm.tar"

# A file name that no shell, tar or eye takes for anything else.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:+-]{0,254}")


def permits(kind: Kind, name: str) -> bool:
    """Whether an archive of that kind may have a file of that name, a path with slashes."""
    parts = name.split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        return False
    if kind == "container":
        return _of_a_container(parts)
    match parts:
        case ["shm.tar"]:
            return True
        case ["volumes", volume]:
            return volume.endswith(".tar")
        case ["sandbox", *rest]:
            return _is_image(rest)
        case ["containers", _, *rest]:
            return _of_a_container(rest)
    return False


def _of_a_container(parts: Sequence[str]) -> bool:
    return _is_image(parts) or (len(parts) == 1 and parts[0] in OF_A_CONTAINER)


def _is_image(parts: Sequence[str]) -> bool:
    return len(parts) == 2 and parts[0] == IMAGES


def config_dump(
    id: str, name: str, image_name: str, image_ref: str, runtime: str, created_ns: int, checkpointed_ns: int
) -> bytes:
    """config.dump: `image_name` as it was asked for, `image_ref` by digest, times in ns since the epoch."""
    found = {
        "id": id,
        "name": name,
        "rootfsImage": image_name,
        "rootfsImageRef": image_ref,
        "rootfsImageName": image_name,
        "runtime": runtime,
        "createdTime": _rfc3339(created_ns),
        "checkpointedTime": _rfc3339(checkpointed_ns),
    }
    return json.dumps(found, indent=2).encode()


def network_status(addresses: Sequence[str], interface: str = "eth0") -> bytes:
    """network.status: CNI results (version 1.0.0), here one with the pod's addresses; an empty list without any."""
    if not addresses:
        return b"[]"
    ips = [{"address": f"{one}/{128 if ':' in one else 32}", "interface": 0} for one in addresses]
    return json.dumps([{"cniVersion": "1.0.0", "interfaces": [{"name": interface}], "ips": ips}], indent=2).encode()


def status(created_ns: int, started_ns: int, pid: int) -> bytes:
    """status: a container that runs as containerd records it, as far as that means anything elsewhere."""
    found = {"CreatedAt": created_ns, "StartedAt": started_ns, "FinishedAt": 0, "ExitCode": 0, "Pid": pid}
    return json.dumps(found).encode()


def deleted_files(paths: Iterable[str]) -> bytes:
    """deleted.files: a JSON list of absolute paths. Bytes that are no UTF-8 are told as lone surrogates."""
    return json.dumps([f"/{path}" for path in paths]).encode()


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
