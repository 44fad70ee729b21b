"""A container's image is there, by its pull policy; and if not, why, in Kubernetes' words."""

from collections.abc import Sequence
from typing import Final

from holdfast.agent.pod.logins import Login
from holdfast.agent.sync.parts import Trouble
from holdfast.agent.sync.runtime import Runtime
from holdfast.model.errors import HoldfastError, Unavailable
from holdfast.proto import runtime_v1_pb2 as pb

PULL_FAILED: Final = "ErrImagePull"
BACKS_OFF: Final = "ImagePullBackOff"
NEVER: Final = "ErrImageNeverPull"
INSPECT_FAILED: Final = "ImageInspectError"


async def ensure(
    runtime: Runtime, reference: str, policy: str, sandbox: pb.PodSandboxConfig, logins: Sequence[Login] = ()
) -> pb.Image:
    """The image, pulled if need be: as the first of `logins` that the registry lets, as nobody where there is none.

    Raises Trouble; Unavailable when the runtime did not answer.
    """
    found = None
    if policy != "Always":
        found = await _inspect(runtime, reference)
    if found is None and policy == "Never":
        raise Trouble(NEVER, f"image {reference} is not present, and its pull policy is Never")
    if found is None:
        pulled = await _pull(runtime, reference, sandbox, logins)
        found = await _inspect(runtime, pulled or reference)
    if found is None:
        raise Trouble(PULL_FAILED, f"image {reference} was pulled, and is not there")
    return found


async def _pull(runtime: Runtime, reference: str, sandbox: pb.PodSandboxConfig, logins: Sequence[Login]) -> str:
    whys: list[str] = []
    for login in logins or (None,):
        try:
            return await runtime.pull(reference, sandbox, login)
        except Unavailable as exc:
            await _inspect(runtime, reference)  # it answers: so it is the registry that is not available
            whys.append(str(exc))
        except HoldfastError as exc:
            whys.append(str(exc))
    raise Trouble(PULL_FAILED, f"cannot pull image {reference}: {'; '.join(dict.fromkeys(whys))}")


async def _inspect(runtime: Runtime, reference: str) -> pb.Image | None:
    try:
        return await runtime.image(reference)
    except Unavailable:
        raise
    except HoldfastError as exc:
        raise Trouble(INSPECT_FAILED, f"cannot look at image {reference}: {exc}") from exc
