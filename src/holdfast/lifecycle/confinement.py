"""What confines processes beyond their namespaces, as far as it lies on this host: profiles in files, in the kernel."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from holdfast.linux import files
from holdfast.model.errors import InvalidArgument
from holdfast.oci import lsm, seccomp
from holdfast.oci.profiles import Profile
from holdfast.oci.request import HostFacts, Spec, SpecRequest
from holdfast.proto import runtime_v1_pb2 as pb

PROFILE_LIMIT: Final = 1024 * 1024
LOADED_LIMIT: Final = 4 * 1024 * 1024
APPARMOR_PROFILES: Final = Path("/sys/kernel/security/apparmor/profiles")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What this node is configured to have. `unset` is the seccomp profile of who names none."""

    seccomp_root: Path = Path("/var/lib/kubelet/seccomp")
    unset: str = ""
    apparmor_default: str = ""

    def completed(self, request: SpecRequest) -> SpecRequest:
        """With the profiles that the container asks for. Blocks. Raises InvalidArgument that names the field."""
        context = request.container.linux.security_context
        return replace(
            request,
            unset_seccomp=self.unset,
            seccomp_profile=self._read(seccomp.wanted(context, seccomp.FIELD, self.unset)),
            apparmor_default=self.apparmor_default,
            apparmor_loaded=loaded(request.facts),
        )

    def of_sandbox(
        self, pod_id: str, context: pb.LinuxSandboxSecurityContext, held: Sequence[str], facts: HostFacts
    ) -> tuple[Spec, Spec]:
        """For the process and the linux section of a sandbox container with these capabilities. Blocks.

        Raises InvalidArgument, Unimplemented.
        """
        profile = seccomp.wanted(context, seccomp.FIELD, self.unset)
        apparmor = lsm.apparmor(context, facts, self.apparmor_default, loaded(facts))
        process, mounts = lsm.labels(facts, pod_id, context.selinux_options, privileged=context.privileged)
        return (
            lsm.process_section(apparmor, process),
            {**lsm.linux_section(mounts), **seccomp.section(profile, held, facts, self._read(profile))},
        )

    def _read(self, profile: Profile | None) -> bytes | None:
        """The file of a Localhost profile, which must be below the root, by whatever links it is reached."""
        if profile is None or profile.kind != pb.SecurityProfile.Localhost:
            return None
        path = PurePosixPath(profile.ref)
        if path.is_absolute() and not path.is_relative_to(self.seccomp_root):
            raise InvalidArgument(f"{profile.field}: {profile.ref!r} is not below {self.seccomp_root}")
        try:
            return _read_below(self.seccomp_root, path.relative_to(self.seccomp_root) if path.is_absolute() else path)
        except OSError as exc:
            why = f"it leaves {self.seccomp_root}" if exc.errno == errno.EXDEV else os.strerror(exc.errno or 0)
            raise InvalidArgument(f"{profile.field}: cannot read profile {profile.ref!r}: {why}") from exc


def loaded(facts: HostFacts) -> frozenset[str]:
    """The AppArmor profiles that the kernel has."""
    if not facts.apparmor:
        return frozenset()
    lines = APPARMOR_PROFILES.read_text().splitlines()
    return frozenset(line.rpartition(" (")[0] for line in lines)


def _read_below(root: Path, path: PurePosixPath) -> bytes:
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = files.open_beneath(directory, path, os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(directory)
    try:
        return files.read_bounded(f"/proc/self/fd/{found}", PROFILE_LIMIT)
    finally:
        os.close(found)
