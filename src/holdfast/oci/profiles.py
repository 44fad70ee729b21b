"""Which profile of seccomp or AppArmor was asked for, in the field of today or in the one that it replaces."""

from dataclasses import dataclass
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

Context = pb.LinuxContainerSecurityContext | pb.LinuxSandboxSecurityContext

DEFAULTS: Final = ("runtime/default", "docker/default")
UNCONFINED: Final = "unconfined"
LOCAL: Final = "localhost/"


@dataclass(frozen=True, slots=True)
class Profile:
    """`kind` is one of SecurityProfile's; `ref` names a Localhost one; `field` is where that was said."""

    kind: pb.SecurityProfile.ProfileType
    ref: str
    field: str


def asked(context: Context, name: str, old: str, field: str) -> Profile | None:
    """What `name`, or else the deprecated `old`, says; None when neither does. Raises InvalidArgument."""
    if context.HasField(name):
        found: pb.SecurityProfile = getattr(context, name)
        ref, field = found.localhost_ref.removeprefix(LOCAL), f"{field}.{name}"
        if found.profile_type != pb.SecurityProfile.Localhost:
            if found.localhost_ref:
                raise InvalidArgument(f"{field}.localhost_ref: it is for a Localhost profile only")
            return Profile(found.profile_type, "", field)
        if not ref:
            raise InvalidArgument(f"{field}.localhost_ref: a Localhost profile must be named")
        return Profile(found.profile_type, ref, f"{field}.localhost_ref")
    text = getattr(context, old, "")
    return parse(text, f"{field}.{old}") if text else None


def parse(text: str, field: str) -> Profile:
    """A profile as one string, as it was before there was a message for it. Raises InvalidArgument."""
    if text in DEFAULTS:
        return Profile(pb.SecurityProfile.RuntimeDefault, "", field)
    if text == UNCONFINED:
        return Profile(pb.SecurityProfile.Unconfined, "", field)
    if text.startswith(LOCAL) and text != LOCAL:
        return Profile(pb.SecurityProfile.Localhost, text.removeprefix(LOCAL), field)
    known = ", ".join((*DEFAULTS, UNCONFINED))
    raise InvalidArgument(f"{field}: {text!r} is not one of {known}, nor localhost/ and a profile")
