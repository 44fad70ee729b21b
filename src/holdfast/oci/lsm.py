"""Security modules: AppArmor and SELinux."""

from holdfast.model.errors import Unimplemented
from holdfast.proto import runtime_v1_pb2 as pb


def check(context: pb.LinuxContainerSecurityContext, field: str) -> None:
    """Never run without a confinement that was asked for. A privileged container has none, whatever it asks for."""
    local = context.apparmor.profile_type == pb.SecurityProfile.Localhost
    if not context.HasField("apparmor"):
        local = context.apparmor_profile.startswith("localhost/")
    if local and not context.privileged:
        raise Unimplemented(f"{field}.apparmor: Localhost profiles cannot be used yet")
