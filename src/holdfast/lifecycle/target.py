"""The pid namespace of another container of the pod (NamespaceMode TARGET).

It is held by a bind mount for as long as the container is being created: by then its init is in it, and whether the
target lives on or not the path means that namespace and no other. When the target is the namespace's process 1 and
ends, the kernel ends everybody in it, this container too (pid_namespaces(7)): it exits with 137, SIGKILL.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import in_thread
from holdfast.linux import namespace, process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.state import ContainerState
from holdfast.proto import runtime_v1_pb2 as pb

PIN: Final = "target"  # in the bundle
_FIELD: Final = "config.linux.security_context.namespace_options.target_id"


def find(pod: Pod, config: pb.ContainerConfig) -> Container | None:
    """The container whose processes this one is to see; None when it asks for none.

    Raises InvalidArgument for one that is not of this pod, FailedPrecondition for one that does not run.
    """
    options = config.linux.security_context.namespace_options
    if options.pid != pb.TARGET:
        return None
    target = pod.containers.get(options.target_id)
    if target is None or not target.acknowledged:
        raise InvalidArgument(f"{_FIELD}: pod sandbox {pod.meta.id} has no container {options.target_id!r}")
    if target.state is not ContainerState.RUNNING or target.status.process is None:
        raise FailedPrecondition(f"cannot share the processes of container {target.meta.id}: it is {target.state}")
    return target


@asynccontextmanager
async def held(container: Container, bundle: Path) -> AsyncIterator[None]:
    """While the context lasts its target's namespace is where its OCI spec says."""
    target = find(container.pod, container.config)
    if target is None:
        yield
        return
    await in_thread(_pin, target, bundle / PIN)
    crashpoint("start.target")
    try:
        yield
    finally:
        await in_thread(namespace.unpin, bundle / PIN)


def _pin(target: Container, path: Path) -> None:
    ref = target.status.process
    assert ref is not None
    namespace.unpin(path)  # of an attempt that was cut off
    try:
        if ref.boot_id != process.boot_id():
            raise ProcessLookupError
        namespace.pin_of(ref.pid, ref.start_time, "pid", path)
    except ProcessLookupError as exc:
        raise FailedPrecondition(f"cannot share the processes of container {target.meta.id}: it has ended") from exc
