"""Where things lie below the two roots.

root (persistent)                 state (volatile, dies with the boot)
  holdfast.db                       keeper.sock, keeper.*.sock  holdfastd.toml
  content/  ingest/                 oci/<runtime>/
  snapshots/<n>/{fs,work,row,seal}  pods/<pod id>/           shim.sock  hosts  hostname  resolv.conf
  copies/<id>  quarantine/
  checkpoints/<container id>          what is being written of one; restores/<container id>: of what it will be restored
                                      ns/{net,ipc,uts,pid,user} pinned namespaces
                                      shm/                     tmpfs
                                      <container id>/          the OCI bundle, FIFOs, init.json, exit.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKPOINTS: Final = "checkpoints"
RESTORES: Final = "restores"
VOLUMES: Final = "volumes"


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path
    state: Path

    @property
    def events(self) -> Path:
        """Where foreign shims tell of what happens."""
        return self.state / "events.sock"

    @property
    def pods(self) -> Path:
        return self.state / "pods"

    def pod(self, pod_id: str) -> Path:
        return self.pods / pod_id

    def namespaces(self, pod_id: str) -> Path:
        return self.pod(pod_id) / "ns"

    def shm(self, pod_id: str) -> Path:
        return self.pod(pod_id) / "shm"

    def checkpoint(self, container_id: str) -> Path:
        """What is being written of a container until its archive is sealed."""
        return self.root / CHECKPOINTS / container_id

    def restore(self, container_id: str) -> Path:
        """The archive of a container that is to be restored, read and found to be whole."""
        return self.root / RESTORES / container_id

    def volumes(self, pod_id: str) -> Path:
        """The volumes of a pod that was restored without anybody to provide them, named as a kubelet names them."""
        return self.root / VOLUMES / pod_id

    def bundle(self, pod_id: str, container_id: str) -> Path:
        return self.pod(pod_id) / container_id
