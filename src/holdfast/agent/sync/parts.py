"""What the workers of all pods share, and what they ask of the volume manager."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.runtime import Runtime
from holdfast.agent.sync.users import Users
from holdfast.agent.volumes.paths import Paths
from holdfast.model.tally import Counter, Measure, Timed

PAUSE: Final = 2_000_000_000  # ns until a step that could not be taken is tried again


class Trouble(Exception):
    """Why a container does not run yet: Kubernetes' word for it, words for people, and for how many ns to wait."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.pause = PAUSE


class Mounted(Protocol):
    """One volumeMount of a container that is there to be mounted."""

    @property
    def container_path(self) -> str: ...
    @property
    def host_path(self) -> str: ...  # "" for an image
    @property
    def readonly(self) -> bool: ...
    @property
    def recursive_read_only(self) -> str: ...  # as in VolumeMount
    @property
    def propagation(self) -> str: ...
    @property
    def image(self) -> str: ...
    @property
    def image_pull_policy(self) -> str: ...
    @property
    def image_sub_path(self) -> str: ...


class Volumes(Protocol):
    """The volume manager. What is not ready is raised; the text says why."""

    async def ready(self, uid: str, seconds: float = 0.0) -> Mapping[str, str]:
        """Wait for all volumes of a pod."""

    async def mounts(self, pod: Pod, container: Container, environment: Mapping[str, str]) -> Sequence[Mounted]:
        """At each start of a container."""

    async def gone(self, uid: str, seconds: float = 0.0) -> list[str]:
        """Empty once nothing of the pod's volumes is left, else why not."""

    def watched(self, uid: str) -> AbstractAsyncContextManager[None]:
        """While a pod's sandboxes are stopped: what the runtime takes out of its volumes then is told."""

    def told(self, uid: str) -> list[str]:
        """Words for people."""


class Counted:
    """What workers count."""

    def __init__(self) -> None:
        self.syncs = Timed("holdfast_agent_sync", "syncs of pods")
        self.restarts = Counter("holdfast_agent_restarts_total", "Containers that were started again.")
        self.rotations = Counter(
            "holdfast_agent_log_rotations_total", "Logs that were rotated, by result.", ("result",)
        )
        self.measures: list[Measure] = [*self.syncs.measures, self.restarts, self.rotations]


@dataclass(frozen=True, slots=True)
class Parts:
    """`leaving` is told of a pod whose volumes nobody wants any more: it is proven dead."""

    runtime: Runtime
    volumes: Volumes
    paths: Paths
    node: Node
    facts: Callable[[Pod], Facts]  # but for the pod's own addresses
    leaving: Callable[[str], None]
    users: Users = field(default_factory=Users)
    counted: Counted = field(default_factory=Counted)
    clock: Callable[[], int] = time.time_ns
