"""Paths of /proc and /sys that a container does not see, or cannot write to."""

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb


def check(context: pb.LinuxContainerSecurityContext, field: str) -> None:
    """Raises InvalidArgument."""
    for name in ("masked_paths", "readonly_paths"):
        for number, path in enumerate(getattr(context, name)):
            if not path.startswith("/"):
                raise InvalidArgument(f"{field}.{name}[{number}]: {path!r} is not absolute")


def masks(context: pb.LinuxContainerSecurityContext) -> dict[str, list[str]]:
    """The part of the spec's linux section; nothing for a privileged container."""
    if context.privileged:
        return {}
    return {"maskedPaths": list(context.masked_paths), "readonlyPaths": list(context.readonly_paths)}
