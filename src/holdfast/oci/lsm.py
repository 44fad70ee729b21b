"""Security modules: AppArmor and SELinux.

On a host without AppArmor its default profile is none, as for CRI-O; a profile by name is refused. (A kubelet admits
neither there.) On a host without SELinux its options have no meaning and are passed over, as they are by containerd and
CRI-O: a kubelet sends them whatever the host has.
"""

import hashlib
from dataclasses import replace
from typing import Final

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.model.spec import Mount
from holdfast.oci import profiles
from holdfast.oci.profiles import Context
from holdfast.oci.request import HostFacts, Spec, SpecRequest
from holdfast.proto import runtime_v1_pb2 as pb

CATEGORIES: Final = 1024
LABEL_PARTS: Final = 4  # user, role, type and level, which may have colons in it
FIELD: Final = "config.linux.security_context"


def check(context: Context, field: str) -> None:
    """Raises InvalidArgument."""
    profiles.asked(context, "apparmor", "apparmor_profile", field)
    for name in ("user", "role", "type", "level"):
        text = getattr(context.selinux_options, name)
        if not text.isprintable() or " " in text or (":" in text and name != "level"):
            raise InvalidArgument(f"{field}.selinux_options.{name}: {text!r} cannot be part of a label")


def apparmor(context: Context, facts: HostFacts, default: str, loaded: frozenset[str], field: str = FIELD) -> str:
    """The profile to apply, "" for none.

    Raises InvalidArgument for one that is not loaded, Unimplemented for one by name where there is no AppArmor.
    """
    profile = profiles.asked(context, "apparmor", "apparmor_profile", field)
    if profile is None:  # the default one is for whoever does not say, too; where it is loaded
        return default if facts.apparmor and default in loaded and not context.privileged else ""
    if profile.kind == pb.SecurityProfile.Localhost:
        if not facts.apparmor:
            raise Unimplemented(f"{profile.field}: cannot apply {profile.ref!r}: this host has no AppArmor")
        return _loaded(profile.ref, loaded, profile.field)
    if profile.kind == pb.SecurityProfile.Unconfined or context.privileged or not (facts.apparmor and default):
        return ""
    return _loaded(default, loaded, profile.field)


def labels(
    facts: HostFacts,
    pod_id: str,
    pod: pb.SELinuxOption,
    own: pb.SELinuxOption | None = None,
    *,
    privileged: bool = False,
) -> tuple[str, str]:
    """SELinux labels of a container's processes and of its files; "" for none.

    Parts that its own options leave out are the pod's, then the host's default. Containers of a pod have one level,
    made from the pod's id: two categories as libselinux would draw them. A privileged container has no label for its
    processes but one that was asked for. Files that a container is to own, volumes too, get the second.
    """
    if (defaults := facts.selinux) is None:
        return "", ""
    own = own or pod
    user, level = own.user or pod.user, own.level or pod.level or level_of(pod_id)
    process = _label(defaults[0], user, own.role or pod.role, own.type or pod.type, level)
    none = privileged and not (own.ByteSize() or pod.ByteSize())
    return "" if none else process, _label(defaults[1], user, "", "", level)


def level_of(pod_id: str) -> str:
    """A level for a pod, the same each time: s0 with two of the 1024 categories."""
    number = int.from_bytes(hashlib.sha256(pod_id.encode()).digest()[:8])
    first, distance = number % CATEGORIES, 1 + number // CATEGORIES % (CATEGORIES - 1)
    low, high = sorted((first, (first + distance) % CATEGORIES))
    return f"s0:c{low},c{high}"


def process_section(profile: str, label: str) -> Spec:
    """For the spec's process section."""
    return {key: value for key, value in (("apparmorProfile", profile), ("selinuxLabel", label)) if value}


def linux_section(label: str) -> Spec:
    """For the spec's linux section: what the runtime labels file systems with that it mounts itself."""
    return {"mountLabel": label} if label else {}


def labelled(mount: Mount, label: str) -> Mount:
    """The mount of a root file system, whose files are to have the label. A bind's cannot be given another one."""
    if not label or mount.type != "overlay":
        return mount
    return replace(mount, options=(*mount.options, f'context="{label}"'))


def of_container(request: SpecRequest) -> tuple[Spec, Spec]:
    """For the process and the linux section."""
    context, facts = request.container.linux.security_context, request.facts
    profile = apparmor(context, facts, request.apparmor_default, request.apparmor_loaded)
    pod = request.pod.linux.security_context.selinux_options
    process, mounts = labels(facts, request.pod_id, pod, context.selinux_options, privileged=context.privileged)
    return process_section(profile, process), linux_section(mounts)


def _loaded(name: str, loaded: frozenset[str], field: str) -> str:
    if name not in loaded:
        raise InvalidArgument(f"{field}: AppArmor profile {name!r} is not loaded")
    return name


def _label(default: str, *parts: str) -> str:
    """The default one with the parts that are given; it may lack a level."""
    have = [*default.split(":", LABEL_PARTS - 1), ""][:LABEL_PARTS]
    return ":".join(part or have[number] for number, part in enumerate(parts))
