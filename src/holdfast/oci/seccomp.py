"""Filters of system calls, seccomp(2)."""

from holdfast.model.errors import Unimplemented
from holdfast.proto import runtime_v1_pb2 as pb


def check(context: pb.LinuxContainerSecurityContext, field: str) -> None:
    """Never run without a filter that was asked for. A privileged container has none, whatever it asks for."""
    local = context.seccomp.profile_type == pb.SecurityProfile.Localhost
    if not context.HasField("seccomp"):
        local = context.seccomp_profile_path.startswith("localhost/")
    if local and not context.privileged:
        raise Unimplemented(f"{field}.seccomp: Localhost profiles cannot be used yet")
