"""A volume manager of plain directories, for tests that are about something else."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.spec import Pod
from holdfast.linux import files


@dataclass(frozen=True)
class Mount:
    container_path: str
    host_path: str
    readonly: bool = False
    recursive_read_only: str = "Disabled"
    propagation: str = "None"
    image: str = ""
    image_pull_policy: str = ""
    image_sub_path: str = ""


class PlainVolumes:
    """`wanted` is what a source of pods would want; `why` keeps all of it from being ready, or gone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wanted: dict[str, Pod] = {}
        self.why = ""

    def want(self, pod: Pod) -> None:
        self.wanted[pod.metadata.uid] = pod

    def leaving(self, uid: str) -> None:
        self.wanted.pop(uid, None)

    def place(self, uid: str, name: str) -> Path:
        return self.root / uid / name

    async def ready(self, uid: str, seconds: float = 0.0) -> Mapping[str, str]:
        if self.why or uid not in self.wanted:
            raise RuntimeError(self.why or "nobody wants them")
        found = {str(one.name): self.place(uid, one.name) for one in self.wanted[uid].spec.volumes}
        for path in found.values():
            path.mkdir(parents=True, exist_ok=True)
        return {name: str(path) for name, path in found.items()}

    async def mounts(self, pod: Pod, container: Container, environment: Mapping[str, str]) -> list[Mount]:
        places = await self.ready(pod.metadata.uid)
        return [Mount(one.mount_path, places[one.name], one.read_only) for one in container.volume_mounts]

    async def gone(self, uid: str, seconds: float = 0.0) -> list[str]:
        assert uid not in self.wanted, "they are wanted"
        if self.why:
            return [self.why]
        if (self.root / uid).exists():
            files.remove_tree(self.root / uid)
        return []

    @contextlib.asynccontextmanager
    async def watched(self, uid: str) -> AsyncIterator[None]:
        yield

    def told(self, uid: str) -> list[str]:
        return [self.why] if self.why else []
