"""Filters of system calls, seccomp(2): the default profile, and profiles from files.

A file is JSON as containerd reads it, the seccomp section of the OCI runtime spec; and as Docker and CRI-O do, which
have conditions beside it: `archMap`, and `includes` and `excludes` with `caps`, `arches` and `minKernel` in each rule.
"""

import errno
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.oci import profiles
from holdfast.oci.capabilities import capability_name
from holdfast.oci.profiles import Context, Profile
from holdfast.oci.request import HostFacts, Spec
from holdfast.oci.syscalls import (
    AF_ALG,
    AF_VSOCK,
    ALLOWED,
    BY_CAPABILITY,
    BY_MACHINE,
    NAMESPACE_FLAGS,
    PERSONALITIES,
    REFUSED,
)
from holdfast.proto import runtime_v1_pb2 as pb

FIELD: Final = "config.linux.security_context"
ALLOW: Final = "SCMP_ACT_ALLOW"
ERRNO: Final = "SCMP_ACT_ERRNO"
ARCHITECTURES: Final = {  # with those whose programs a kernel runs beside its own
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "i686": ("SCMP_ARCH_X86",),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
}
OTHERS: Final = frozenset(  # known to libseccomp as well
    f"SCMP_ARCH_{name}"
    for name in (
        "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PARISC", "PARISC64",
        "M68K", "SH", "SHEB",
    )
)  # fmt: skip
GO_NAMES: Final = {"x86_64": "amd64", "i686": "386", "aarch64": "arm64"}  # in `arches`; the others are called the same
ACTIONS: Final = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
WITH_ERRNO: Final = (ERRNO, "SCMP_ACT_TRACE")
OPERATORS: Final = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
FLAGS: Final = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
CALL: Final = re.compile("[a-z0-9_]+")
KERNEL: Final = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})")
ARGUMENTS: Final = 6
MAX_ERRNO: Final = 4095
MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


def check(context: Context, field: str) -> None:
    """Raises InvalidArgument."""
    profiles.asked(context, "seccomp", "seccomp_profile_path", field)


def wanted(context: Context, field: str, unset: str) -> Profile | None:
    """The profile to apply; None for none. `unset` is that of who names none, as the old field would have it.

    A privileged container has none, whatever it asks for. Raises InvalidArgument.
    """
    profile = profiles.asked(context, "seccomp", "seccomp_profile_path", field)
    profile = profile or profiles.parse(unset or profiles.UNCONFINED, "unset_seccomp_profile")
    return None if context.privileged or profile.kind == pb.SecurityProfile.Unconfined else profile


def section(profile: Profile | None, capabilities: Iterable[str], facts: HostFacts, content: bytes | None) -> Spec:
    """{"seccomp": ...} for the spec's linux section; nothing for no profile.

    `capabilities` are those of the bounding set, with CAP_ or without; `content` is the file of a Localhost profile.
    Never without the filter that was asked for: raises InvalidArgument and Unimplemented, which name the field.
    """
    if profile is None:
        return {}
    held = frozenset(map(capability_name, capabilities))
    if not facts.seccomp:
        raise Unimplemented(f"{profile.field}: the kernel of this host has no seccomp filters")
    if profile.kind == pb.SecurityProfile.RuntimeDefault:
        return {"seccomp": default(held, facts.machine)}
    if content is None:
        raise InvalidArgument(f"{profile.field}: profile {profile.ref} has not been read")
    try:
        return {"seccomp": _File(held, facts).read(content)}
    except _Wrong as exc:
        raise InvalidArgument(f"{profile.field}: cannot use profile {profile.ref}: {exc}") from exc


def default(held: frozenset[str], machine: str) -> Spec:
    """The default profile for a container with these capabilities.

    What is not allowed gets EPERM where it is known and ENOSYS where it is not, also the calls that are allowed with
    some arguments only, as far as their rules do not say otherwise.
    """
    allowed = [*sum(ALLOWED.values(), ()), *BY_MACHINE.get(machine, ())]
    refused = list(REFUSED)
    for capability, names in BY_CAPABILITY.items():
        (allowed if capability in held else refused).extend(names)
    if "SYS_ADMIN" in held:
        allowed += ["clone", "clone3"]
    granted = set(allowed)
    rules = [
        _rule(sorted(granted), ALLOW),
        _rule(sorted(set(refused) - granted), ERRNO, code=errno.EPERM),
        *([] if "SYS_ADMIN" in held else _clone(machine)),
        *(_rule(["personality"], ALLOW, [_compare(0, "EQ", value)]) for value in PERSONALITIES),
        *_socket(),
    ]
    return {
        "defaultAction": ERRNO,
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def _clone(machine: str) -> list[Spec]:
    """No new namespaces. clone3's flags are behind a pointer: whoever tries it is to fall back to clone."""
    flags = 1 if machine == "s390x" else 0  # the argument that has them, clone(2)
    every = sum(NAMESPACE_FLAGS)
    return [
        _rule(["clone"], ALLOW, [_compare(flags, "MASKED_EQ", every, 0)]),
        *(_rule(["clone"], ERRNO, [_compare(flags, "MASKED_EQ", one, one)], errno.EPERM) for one in NAMESPACE_FLAGS),
        _rule(["clone3"], ERRNO, code=errno.ENOSYS),
    ]


def _socket() -> list[Spec]:
    """By address family. (By way of socketcall(2), on architectures that have it, it cannot be told.)"""
    return [
        _rule(["socket"], ALLOW, [_compare(0, "LT", AF_ALG)]),
        _rule(["socket"], ALLOW, [_compare(0, "EQ", AF_ALG + 1)]),  # the only one between them
        _rule(["socket"], ALLOW, [_compare(0, "GT", AF_VSOCK)]),
        *(_rule(["socket"], ERRNO, [_compare(0, "EQ", one)], errno.EPERM) for one in (AF_ALG, AF_VSOCK)),
    ]


def _rule(names: list[str], action: str, args: list[Spec] | None = None, code: int | None = None) -> Spec:
    found: Spec = {"names": names, "action": action}
    if code is not None:
        found["errnoRet"] = code
    return found | ({"args": args} if args else {})


def _compare(index: int, operator: str, value: int, second: int | None = None) -> Spec:
    found = {"index": index, "value": value, "op": f"SCMP_CMP_{operator}"}
    return found | ({} if second is None else {"valueTwo": second})


class _Wrong(Exception):
    """What is wrong with a file, and where in it."""


class _File:
    """Reads the JSON of a profile. What it does not know is passed over, as containerd does."""

    def __init__(self, held: frozenset[str], facts: HostFacts) -> None:
        self._held = held
        self._arch = GO_NAMES.get(facts.machine, facts.machine)
        self._native = ARCHITECTURES.get(facts.machine, ("",))[0]
        self._kernel = facts.kernel

    def read(self, content: bytes) -> Spec:
        try:
            profile = json.loads(content)
        except (ValueError, RecursionError) as exc:
            raise _Wrong(f"it is not JSON: {exc}") from None
        _table(profile, "the profile")
        found: Spec = self._action(profile, "", "defaultAction", "defaultErrnoRet")
        found["architectures"] = self._architectures(profile)
        if flags := _words(profile, "flags", "flags", FLAGS):
            found["flags"] = flags
        for key in ("listenerPath", "listenerMetadata"):
            if (text := profile.get(key)) is not None:
                found[key] = _text(text, key)
        rules = _list(profile, "syscalls", "syscalls")
        found["syscalls"] = [
            self._rule(rule, f"syscalls[{number}]")
            for number, rule in enumerate(rules)
            if self._applies(_table(rule, f"syscalls[{number}]"), f"syscalls[{number}]")
        ]
        return found

    def _architectures(self, profile: Spec) -> list[str]:
        known = frozenset(name for names in ARCHITECTURES.values() for name in names) | OTHERS
        found = _words(profile, "architectures", "architectures", known)
        for number, entry in enumerate(_list(profile, "archMap", "archMap")):
            where = f"archMap[{number}]"
            table = _table(entry, where)
            if _word(table.get("architecture"), f"{where}.architecture", known) == self._native:
                below = _words(table, "subArchitectures", f"{where}.subArchitectures", known)
                found += [name for name in (self._native, *below) if name not in found]
        return found

    def _applies(self, rule: Spec, where: str) -> bool:
        """Whether the conditions of a rule hold: all that it includes, none that it excludes."""
        includes, excludes = (
            self._conditions(_table(rule.get(name) or {}, f"{where}.{name}"), f"{where}.{name}")
            for name in ("includes", "excludes")
        )
        return all(includes) and not any(excludes)

    def _conditions(self, given: Spec, where: str) -> list[bool]:
        found = []
        if arches := _words(given, "arches", f"{where}.arches"):
            found.append(self._arch in arches)
        found += [capability_name(name) in self._held for name in _words(given, "caps", f"{where}.caps")]
        if (least := given.get("minKernel")) is not None:
            match = KERNEL.fullmatch(_text(least, f"{where}.minKernel"))
            if match is None:
                raise _Wrong(f"{where}.minKernel: {least!r} is not a version such as '4.8'")
            found.append(self._kernel >= (int(match[1]), int(match[2])))
        return found

    def _rule(self, rule: Spec, where: str) -> Spec:
        names = _words(rule, "names", f"{where}.names")
        if not names and rule.get("name") is not None:
            names = [_text(rule["name"], f"{where}.name")]
        if not names:
            raise _Wrong(f"{where}.names: there must be one")
        for number, name in enumerate(names):
            if not CALL.fullmatch(name):
                raise _Wrong(f"{where}.names[{number}]: {name!r} is not a system call")
        args = [
            self._argument(_table(one, f"{where}.args[{number}]"), f"{where}.args[{number}]")
            for number, one in enumerate(_list(rule, "args", f"{where}.args"))
        ]
        found = {"names": names, **self._action(rule, f"{where}.", "action", "errnoRet")}
        return found | ({"args": args} if args else {})

    def _action(self, table: Spec, where: str, key: str, code: str) -> Spec:
        action = _word(table.get(key), f"{where}{key}", ACTIONS)
        if (value := table.get(code)) is None:
            return {key: action}
        if action not in WITH_ERRNO:
            raise _Wrong(f"{where}{code}: {action} has no errno")
        return {key: action, code: _number(value, f"{where}{code}", MAX_ERRNO)}

    def _argument(self, given: Spec, where: str) -> Spec:
        found = {
            "index": _number(given.get("index"), f"{where}.index", ARGUMENTS - 1),
            "value": _number(given.get("value"), f"{where}.value", MASK),
            "op": _word(given.get("op"), f"{where}.op", OPERATORS),
        }
        if given.get("valueTwo") is not None:
            found["valueTwo"] = _number(given["valueTwo"], f"{where}.valueTwo", MASK)
        return found


def _table(value: Any, where: str) -> Spec:
    if not isinstance(value, dict):
        raise _Wrong(f"{where}: it is not a table")
    return value


def _list(table: Spec, key: str, where: str) -> list[Any]:
    found = table.get(key)
    if found is not None and not isinstance(found, list):
        raise _Wrong(f"{where}: it is not a list")
    return found or []


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _Wrong(f"{where}: it is not a string")
    return value


def _word(value: Any, where: str, allowed: frozenset[str]) -> str:
    if value is None:
        raise _Wrong(f"{where}: it is missing")
    if _text(value, where) not in allowed:
        raise _Wrong(f"{where}: {value!r} is not one of {', '.join(sorted(allowed))}")
    return str(value)


def _words(table: Spec, key: str, where: str, allowed: frozenset[str] | None = None) -> list[str]:
    found = [_text(one, f"{where}[{number}]") for number, one in enumerate(_list(table, key, where))]
    for number, one in enumerate(found):
        if allowed is not None:
            _word(one, f"{where}[{number}]", allowed)
    return found


def _number(value: Any, where: str, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _Wrong(f"{where}: {value!r} is not a number from 0 to {largest}")
    return value
