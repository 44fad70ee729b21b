"""A container's image is there, by its pull policy; and if not, why, in Kubernetes' words."""

from typing import Final

from holdfast.agent.sync.parts import Trouble
from holdfast.agent.sync.runtime import Runtime
from holdfast.model.errors import HoldfastError, Unavailable
from holdfast.proto import runtime_v1_pb2 as pb

PULL_FAILED: Final = "ErrImagePull"
BACKS_OFF: Final = "ImagePullBackOff"
NEVER: Final = "ErrImageNeverPull"
INSPECT_FAILED: Final = "ImageInspectError"


async def ensure(runtime: Runtime, reference: str, policy: str, sandbox: pb.PodSandboxConfig) -> pb.Image:
    """The image, pulled if need be. Raises Trouble; Unavailable when the runtime did not answer."""
    found = None
    if policy != "Always":
        found = await _inspect(runtime, reference)
    if found is None and policy == "Never":
        raise Trouble(NEVER, f"image {reference} is not present, and its pull policy is Never")
    if found is None:
        try:
            pulled = await runtime.pull(reference, sandbox)
        except Unavailable:
            raise
        except HoldfastError as exc:
            raise Trouble(PULL_FAILED, f"cannot pull image {reference}: {exc}") from exc
        found = await _inspect(runtime, pulled or reference)
    if found is None:
        raise Trouble(PULL_FAILED, f"image {reference} was pulled, and is not there")
    return found


async def _inspect(runtime: Runtime, reference: str) -> pb.Image | None:
    try:
        return await runtime.image(reference)
    except Unavailable:
        raise
    except HoldfastError as exc:
        raise Trouble(INSPECT_FAILED, f"cannot look at image {reference}: {exc}") from exc
