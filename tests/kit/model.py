"""What a node should say: pods and containers as plain values, and for each call whether it succeeds."""

from dataclasses import dataclass, field, replace

from grpc import StatusCode

READY, NOTREADY = "SANDBOX_READY", "SANDBOX_NOTREADY"
CREATED, RUNNING, EXITED = "CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED"


@dataclass(frozen=True)
class Pod:
    name: str
    attempt: int
    colour: str
    state: str = READY


@dataclass(frozen=True)
class Container:
    pod: str
    name: str
    attempt: int
    colour: str
    code: int | None  # with which it ends by itself as soon as it is started
    state: str = CREATED
    exit_code: int = 0


class Refused(Exception):
    """The call must fail with this status."""

    def __init__(self, code: StatusCode) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass
class Model:
    """The node. Each method is a call; it raises Refused or changes what is there."""

    pods: dict[str, Pod] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)

    def may_run(self, name: str, attempt: int) -> None:
        if any((pod.name, pod.attempt) == (name, attempt) for pod in self.pods.values()):
            raise Refused(StatusCode.ALREADY_EXISTS)

    def run_again(self, pod_id: str) -> None:
        """The same request as before: what it made is still the same only as long as it has not moved on."""
        if self.pods[pod_id].state != READY:
            raise Refused(StatusCode.ALREADY_EXISTS)

    def ran(self, pod_id: str, pod: Pod) -> None:
        assert pod_id not in self.pods, "an id that is in use was given away again"
        self.pods[pod_id] = pod

    def stop_pod(self, pod_id: str) -> None:
        if pod_id in self.pods:
            self.pods[pod_id] = replace(self.pods[pod_id], state=NOTREADY)
            for id in self.of_pod(pod_id):
                self.stop(id, gracefully=False)

    def remove_pod(self, pod_id: str) -> None:
        for id in self.of_pod(pod_id):
            del self.containers[id]
        self.pods.pop(pod_id, None)

    def may_create(self, pod_id: str, name: str, attempt: int) -> None:
        if pod_id not in self.pods:
            raise Refused(StatusCode.NOT_FOUND)
        if self.pods[pod_id].state != READY:
            raise Refused(StatusCode.FAILED_PRECONDITION)
        if any(
            (self.containers[id].name, self.containers[id].attempt) == (name, attempt) for id in self.of_pod(pod_id)
        ):
            raise Refused(StatusCode.ALREADY_EXISTS)

    def create_again(self, container_id: str) -> None:
        one = self.containers[container_id]
        if self.pods[one.pod].state != READY:
            raise Refused(StatusCode.FAILED_PRECONDITION)
        if one.state != CREATED:
            raise Refused(StatusCode.ALREADY_EXISTS)

    def created(self, container_id: str, container: Container) -> None:
        assert container_id not in self.containers, "an id that is in use was given away again"
        self.containers[container_id] = container

    def start(self, container_id: str) -> None:
        one = self._get(container_id)
        if one.state != CREATED or self.pods[one.pod].state != READY:
            raise Refused(StatusCode.FAILED_PRECONDITION)
        self.containers[container_id] = replace(one, state=RUNNING)
        if one.code is not None:
            self.end(container_id, one.code)

    def end(self, container_id: str, code: int) -> None:
        """It ends, by itself or not; once only."""
        one = self.containers[container_id]
        if one.state == RUNNING:
            self.containers[container_id] = replace(one, state=EXITED, exit_code=code)

    def stop(self, container_id: str, *, gracefully: bool) -> None:
        if container_id in self.containers:
            self.end(container_id, 3 if gracefully else 137)

    def remove(self, container_id: str) -> None:
        self.containers.pop(container_id, None)

    def may_exec(self, container_id: str) -> None:
        if self._get(container_id).state != RUNNING:
            raise Refused(StatusCode.FAILED_PRECONDITION)

    def may_update(self, container_id: str) -> None:
        if self._get(container_id).state == EXITED:
            raise Refused(StatusCode.FAILED_PRECONDITION)

    def of_pod(self, pod_id: str) -> list[str]:
        return [id for id, one in self.containers.items() if one.pod == pod_id]

    def _get(self, container_id: str) -> Container:
        if container_id not in self.containers:
            raise Refused(StatusCode.NOT_FOUND)
        return self.containers[container_id]
