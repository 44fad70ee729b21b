"""docs/FIELDS.md, held against the descriptors, against the tests that it names and against the validation itself."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.configurations import Surroundings, change, container_config, pod_config
from kit.fields import ROOTS, every_field, named_field, places
from kit.pages import every_test, looks_from_inside, named_tests

from holdfast.cri.boundary import STATUS
from holdfast.model.errors import HoldfastError
from holdfast.model.image import Image
from holdfast.oci.build import build
from holdfast.oci.request import SpecRequest
from holdfast.oci.users import ResolvedUser
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb

PAGE = Path(__file__).parents[2] / "docs" / "FIELDS.md"
VERDICTS = {"done", "refused", "ignored"}
AROUND = Surroundings(Path("/nowhere"), "/cgroup", "f" * 64)
MAPPING = [pb.IDMapping(host_id=200000, container_id=0, length=65536)]
USERNS = pb.UserNamespace(mode=pb.POD, uids=MAPPING, gids=MAPPING)

Setting = tuple[str, Any]
INVALID, UNIMPLEMENTED = "INVALID_ARGUMENT", "UNIMPLEMENTED"
POD, CONTAINER = "PodSandboxConfig", "ContainerConfig"
SANDBOX, SECURITY = "PodSandboxConfig.linux.security_context", "ContainerConfig.linux.security_context"
USERS = f"{SANDBOX}.namespace_options.userns_options"
OWN_USERS: Setting = (USERS, USERNS)
IMAGE_VOLUME = ((f"{CONTAINER}.mounts.image", pb.ImageSpec(image="i")), (f"{CONTAINER}.mounts.readonly", True))
MAPPED = (f"{CONTAINER}.mounts.gidMappings", pb.IDMapping(length=1))


def localhost(name: str) -> Setting:
    """A profile of seccomp or AppArmor that is a file's, or one by name."""
    return (f"{SECURITY}.{name}", pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="p"))


# What makes each refusal of the page happen: the error, the field's value, and others that it takes for that. A message
# of which the value is None is absent.
EXAMPLES: list[tuple[str, Setting, *tuple[Setting, ...]]] = [
    (INVALID, (f"{POD}.metadata", None)),
    (INVALID, (f"{POD}.hostname", "x" * 65)),
    (INVALID, (f"{POD}.hostname", "-a")),
    (INVALID, (f"{POD}.log_directory", "logs")),
    *((INVALID, (f"{POD}.metadata.{name}", bad)) for name in ("name", "uid", "namespace") for bad in ("", "a/b", "\n")),
    *((INVALID, (f"{POD}.dns_config.{name}", bad)) for name in ("servers", "searches") for bad in ([""], ["a b"])),
    (INVALID, (f"{POD}.dns_config.options", ["a\nb"])),
    *((INVALID, (f"{POD}.port_mappings.{side}_port", bad)) for side in ("container", "host") for bad in (-1, 65536)),
    *((INVALID, (f"{POD}.linux.cgroup_parent", bad)) for bad in ("/", "a.slice", "/a/../..")),
    *((INVALID, (f"{POD}.linux.sysctls", {bad: "1"})) for bad in ("../x", "vm.swappiness", "kernel.panic")),
    (INVALID, (f"{POD}.linux.sysctls", {"net.core.somaxconn": "1"}), (f"{SANDBOX}.namespace_options.network", pb.NODE)),
    (INVALID, (f"{SANDBOX}.run_as_group", pb.Int64Value(value=1))),
    (INVALID, (f"{SANDBOX}.run_as_user.value", -1)),
    *((INVALID, (f"{one}.supplemental_groups", [bad])) for one in (SANDBOX, SECURITY) for bad in (-1, 2**31)),
    *(
        (INVALID, (f"{one}.namespace_options.{name}", bad))
        for one in (SANDBOX, SECURITY)
        for name in ("network", "ipc")
        for bad in (pb.CONTAINER, pb.TARGET)
    ),
    (INVALID, (f"{SANDBOX}.namespace_options.pid", pb.TARGET)),
    (INVALID, (f"{SECURITY}.namespace_options.target_id", ""), (f"{SECURITY}.namespace_options.pid", pb.TARGET)),
    *((INVALID, (f"{SANDBOX}.namespace_options.{name}", pb.NODE), OWN_USERS) for name in ("pid", "ipc")),
    (INVALID, (f"{SECURITY}.namespace_options.userns_options", USERNS)),
    *((INVALID, (f"{USERS}.mode", bad)) for bad in (pb.CONTAINER, pb.TARGET)),
    *((INVALID, (f"{USERS}.{name}", None)) for name in ("uids", "gids")),
    *((INVALID, (f"{USERS}.uids.{name}", bad)) for name, bad in (("host_id", 0), ("container_id", 1), ("length", 0))),
    *((INVALID, (f"{SECURITY}.{name}.localhost_ref", ""), localhost(name)) for name in ("seccomp", "apparmor")),
    *((INVALID, (f"{SECURITY}.{name}.localhost_ref", "/p")) for name in ("seccomp", "apparmor")),
    (UNIMPLEMENTED, (f"{SECURITY}.apparmor.localhost_ref", "p"), localhost("apparmor")),
    *((INVALID, (f"{one}.seccomp_profile_path", bad)) for one in (SANDBOX, SECURITY) for bad in ("yes", "localhost/")),
    (INVALID, (f"{SECURITY}.apparmor_profile", "yes")),
    *(
        (INVALID, (f"{one}.selinux_options.{name}", bad))
        for one in (SANDBOX, SECURITY)
        for name, bad in [("user", "a:b"), ("role", "a:b"), ("type", "a b"), ("level", "s0 c1")]
    ),
    *(
        (INVALID, (f"{where}.linux.resources.{name}", bad))
        for where in (POD, CONTAINER)
        for name, bad in [
            ("cpu_period", -1), ("cpu_quota", -2), ("cpu_shares", -1), ("memory_limit_in_bytes", -2),
            ("oom_score_adj", 1001), ("oom_score_adj", -1001), ("cpuset_cpus", "all"), ("cpuset_mems", "all"),
            ("cpu_period", 999), ("cpu_quota", 999), ("cpu_shares", 262145), ("unified", {"../x": "1"}),
            ("unified", {"cgroup.procs": "1"}), ("memory_swap_limit_in_bytes", -2), ("memory_swap_limit_in_bytes", 5),
        ]
    ),
    (INVALID, (f"{POD}.linux.resources.hugepage_limits.page_size", "2 MB")),
    (INVALID, (f"{CONTAINER}.metadata", None)),
    (INVALID, (f"{CONTAINER}.command", [])),
    (INVALID, (f"{CONTAINER}.working_dir", "tmp")),
    *((INVALID, (f"{CONTAINER}.log_path", bad)) for bad in ("/x", "../x", "a/..", "a/", "x" * 256)),
    *((INVALID, (f"{CONTAINER}.CDI_devices.name", bad)) for bad in ("", "gpu", "vendor.example/gpu")),
    *((INVALID, (f"{CONTAINER}.metadata.name", bad)) for bad in ("", "a/b", "\n")),
    (INVALID, (f"{CONTAINER}.image.image", "")),
    *((INVALID, (f"{CONTAINER}.envs.key", bad)) for bad in ("", "a=b")),
    *((INVALID, (f"{CONTAINER}.mounts.container_path", bad)) for bad in ("a", "", "/", "/a/..")),
    *((INVALID, (f"{CONTAINER}.mounts.host_path", bad)) for bad in ("a", "")),
    *((INVALID, (f"{CONTAINER}.mounts.{name}Mappings", pb.IDMapping(length=1))) for name in ("uid", "gid")),
    (INVALID, (f"{CONTAINER}.mounts.uidMappings.length", 0), MAPPED),
    *(
        (INVALID, (f"{CONTAINER}.mounts.uidMappings.{name}_id", 2**32 - 1), MAPPED) for name in ("host", "container")
    ),
    (INVALID, (f"{CONTAINER}.mounts.recursive_read_only", True)),
    (INVALID, (f"{CONTAINER}.mounts.image_sub_path", "a")),
    *((INVALID, (f"{CONTAINER}.mounts.image_sub_path", bad), *IMAGE_VOLUME) for bad in ("/a", "../a")),
    (INVALID, (f"{CONTAINER}.mounts.host_path", "/h"), *IMAGE_VOLUME),
    (INVALID, (f"{CONTAINER}.mounts.readonly", False), *IMAGE_VOLUME),
    (INVALID, (f"{CONTAINER}.mounts.propagation", pb.PROPAGATION_BIDIRECTIONAL), *IMAGE_VOLUME),
    (INVALID, (f"{CONTAINER}.mounts.image.image", "")),
    *((INVALID, (f"{CONTAINER}.devices.{name}_path", "x")) for name in ("container", "host")),
    (INVALID, (f"{CONTAINER}.devices.permissions", "x")),
    (INVALID, (f"{SECURITY}.privileged", True)),
    (INVALID, (f"{SECURITY}.run_as_group", pb.Int64Value(value=1))),
    (INVALID, (f"{SECURITY}.run_as_username", "root"), (f"{SECURITY}.run_as_user", pb.Int64Value(value=0))),
    *((INVALID, (f"{SECURITY}.{name}_paths", ["a"])) for name in ("masked", "readonly")),
    *((INVALID, (f"{SECURITY}.capabilities.{name}_capabilities", ["FLY"])) for name in ("add", "drop", "add_ambient")),
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of a table, and the places of its section's message."""

    message: str
    places: tuple[str, ...]
    field: str
    verdict: str
    here: str
    seen_by: str
    refused: str

    def __str__(self) -> str:
        return f"{self.message}.{self.field}"

    @property
    def paths(self) -> list[str]:
        return [f"{place}.{self.field}" for place in self.places]

    @property
    def refusals(self) -> list[str]:
        """Each "CODE: when", perhaps with a test of its own."""
        return [one.strip() for one in self.refused.split(";") if one.strip()]


def parse(page: str) -> Iterator[Row]:
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        head, _, table = text.partition("| --- |")
        at = tuple(re.findall(rf"`((?:{POD}|{CONTAINER})[\w.]*)`", head))
        for line in table.splitlines()[1:]:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            assert len(cells) == 5, f"{title}: {line}"
            yield Row(title.split(" ")[0], at, *cells)


ROWS = list(parse(PAGE.read_text()))


def test_each_field_has_one_row_and_each_row_is_a_field() -> None:
    rows = [path for row in ROWS for path in row.paths]
    assert len(rows) == len(set(rows)), f"twice: {[path for path in rows if rows.count(path) > 1]}"
    fields = every_field().keys()
    assert not (missing := sorted(fields - set(rows))), f"not on the page: {missing}"
    assert not (unknown := sorted(set(rows) - fields)), f"no such fields: {unknown}"


def test_each_section_is_about_the_message_of_its_places() -> None:
    messages = places()
    assert {root.name for root in ROOTS} <= {place for row in ROWS for place in row.places}
    for row in ROWS:
        assert row.places, f"{row}: its section says nothing of where it is used"
        assert {messages[place].name for place in row.places} == {row.message}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_says_what_its_verdict_needs(row: Row) -> None:
    assert row.verdict in VERDICTS
    if row.verdict == "done":
        assert named_tests(row.seen_by), "nobody looks"
        inside = any(looks_from_inside(name) for name in named_tests(row.seen_by))
        assert inside is ("unit tests only" not in row.here), "it does not say truly whether somebody looks from inside"
    if row.verdict == "refused":
        assert row.refusals, "it does not say with which error"
    if row.verdict == "ignored":
        assert row.here, "it does not say why"
    for name in named_tests(f"{row.here} {row.seen_by} {row.refused}"):
        assert name in every_test(), f"there is no test {name}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.refusals], ids=str)
def test_a_refusal_has_an_example_or_a_test(row: Row) -> None:
    shown = {code for code, (path, _), *_ in EXAMPLES if path in row.paths}
    claimed = set()
    for refusal in row.refusals:
        code, _, when = refusal.partition(": ")
        assert code in {one.name for one in STATUS.values()}, refusal
        assert when, "it does not say when"
        if not named_tests(refusal):
            claimed.add(code)
    assert claimed == shown


def test_an_example_is_of_a_row_with_refusals() -> None:
    refusing = {path for row in ROWS if row.refusals for path in row.paths}
    assert not [path for _, (path, _), *_ in EXAMPLES if path not in refusing]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one[1][0]}={one[1][1]!r:.20}")
def test_an_example_is_refused_as_the_page_says(example: tuple[str, Setting, *tuple[Setting, ...]]) -> None:
    code, (path, value), *others = example
    with pytest.raises(HoldfastError) as failure:
        try_out([*others, (path, value)])
    assert STATUS[type(failure.value)].name == code
    named = named_field(str(failure.value), ROOTS[path.startswith(CONTAINER)])
    assert named and f"{path}.".startswith(f"{named}."), f"it names {named or 'no field'}: {failure.value}"


def try_out(settings: list[Setting]) -> None:
    """Plain configurations with these changes, checked and made into a spec. Raises what the daemon would."""
    pod = pod_config(AROUND, "plain", 1)
    for path, value in settings:
        if path.startswith(POD):
            change(pod, path, value, AROUND)
    container = container_config(pod, 1)
    for path, value in settings:
        if path.startswith(CONTAINER):
            change(container, path, value, AROUND)
    validate_pod(pod)
    validate_container(container, pod)
    pinned = {kind: f"/{kind}" for kind in ("user", "net", "ipc", "uts")}
    image = Image(id="sha256:1", config=b"{}", size=1)
    devices = tuple(() for _ in container.devices)  # these are looked up on the host
    build(SpecRequest("p", "c", pod, container, image, ResolvedUser(0, 0), "/c", "h", pinned, devices=devices))


def test_what_cannot_be_sound_is_refused_everywhere() -> None:
    """Text with a NUL in it and numbers that an enum does not have, in every field there is."""
    for path, field in every_field().items():
        if field.message_type is None and (field.enum_type is not None or field.type == field.TYPE_STRING):
            bad = 99 if field.enum_type is not None else "a\0b"
            with pytest.raises(HoldfastError) as failure:
                try_out([(path, [bad] if field.is_repeated else bad)])
            assert named_field(str(failure.value), ROOTS[path.startswith(CONTAINER)])
