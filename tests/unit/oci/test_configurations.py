"""Whatever is configured becomes a spec or is refused by name: the pure half of tests/e2e/test_any_configuration.py."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from kit import configurations
from kit.configurations import Example, Surroundings
from kit.fields import named_field

from holdfast.model.errors import HoldfastError
from holdfast.model.image import Image
from holdfast.oci.build import build
from holdfast.oci.request import SpecRequest
from holdfast.oci.users import ResolvedUser
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb

AROUND = Surroundings(Path("/nowhere"), "/cgroup", "f" * 64)
FIELDS = sorted(configurations.FIELDS)
EXAMPLES = [configurations.examples(AROUND, FIELDS[part::20]) for part in range(20)]


@settings(max_examples=500)
@given(example=st.one_of(EXAMPLES))
def test_it_becomes_a_spec_or_is_refused_by_name(example: Example) -> None:
    pod = configurations.pod_config(AROUND, example.pod, 1)
    for path, new in example.pod_changes:
        configurations.change(pod, path, new, AROUND)
    container = configurations.container_config(pod, 1)
    for path, new in example.changes:
        configurations.change(container, path, new, AROUND)
    root = pod.DESCRIPTOR
    try:
        validate_pod(pod)
        root = container.DESCRIPTOR
        validate_container(container, pod)
        spec = build(request(pod, container))
    except HoldfastError as exc:
        named = named_field(str(exc), root)
        changed = [path for path, _ in (*example.pod_changes, *example.changes)]
        assert any(related(named, path) for path in changed), f"{exc}, but what was changed is {changed}"
    else:
        assert json.loads(json.dumps(spec)) == spec


def related(named: str, changed: str) -> bool:
    """Whether the field that an error names is in what was changed, or what was changed is in the same message."""
    return f"{named}.".startswith(f"{changed}.") or changed.startswith(f"{named.rpartition('.')[0]}.")


def request(pod: pb.PodSandboxConfig, container: pb.ContainerConfig) -> SpecRequest:
    """With what is looked up on the host: namespaces, and no device for each that is asked for."""
    kinds = ("net", "ipc", "uts", "pid", "user", "target_pid")
    image = Image(id="sha256:1", config=b"{}", size=1, cmd=("/bin/sh",))
    return SpecRequest(
        pod_id="p",
        container_id="c",
        pod=pod,
        container=container,
        image=image,
        user=ResolvedUser(0, 0),
        cgroups_path="/c",
        hostname="h",
        namespaces={kind: f"/ns/{kind}" for kind in kinds},
        devices=tuple(() for _ in container.devices),
    )
