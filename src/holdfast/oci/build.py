"""The OCI runtime spec of a container, from the CRI's words, the image's defaults and this host's facts. Pure.

What containerd and CRI-O would make of it is what is made here; each concern has a module of its own.
"""

from holdfast.oci import capabilities, cdi, devices, lsm, seccomp
from holdfast.oci.masks import masks
from holdfast.oci.mounts import mounts, rootfs_propagation
from holdfast.oci.namespaces import id_mappings, namespaces, suited
from holdfast.oci.process import check_image, process
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.resources import in_force, to_oci


def build(request: SpecRequest) -> Spec:
    """The content of config.json. Raises InvalidArgument or Unimplemented that names the field."""
    context = request.container.linux.security_context
    check_image(request.image)
    spec: Spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "process": process(request),
        "mounts": suited(mounts(request), request),
        "annotations": _annotations(request),
        "linux": _linux(request),
    }
    if "uts" in request.namespaces:
        spec["hostname"] = request.hostname
    cdi.apply(spec, request.cdi)
    if request.bind_devices and any(one["type"] == "user" for one in spec["linux"]["namespaces"]):
        devices.bind(spec, request)
    return spec


def _annotations(request: SpecRequest) -> dict[str, str]:
    """As containerd names them. Labels of the image never become annotations (CVE-2026-53488)."""
    prefix, pod = "io.kubernetes.cri", request.pod.metadata
    return {
        f"{prefix}.container-type": "container",
        f"{prefix}.container-name": request.container.metadata.name,
        f"{prefix}.image-name": request.container.image.image,
        f"{prefix}.sandbox-id": request.pod_id,
        f"{prefix}.sandbox-name": pod.name,
        f"{prefix}.sandbox-namespace": pod.namespace,
        f"{prefix}.sandbox-uid": pod.uid,
    }


def _linux(request: SpecRequest) -> Spec:
    config, context = request.container, request.container.linux.security_context
    limits = request.limits or in_force(config.linux.resources, request.facts, "config.linux.resources")
    linux: Spec = {
        "cgroupsPath": request.cgroups_path,
        "namespaces": namespaces(request),
        **id_mappings(request),
        "resources": {**to_oci(limits), "devices": devices.rules(request)},
        "devices": devices.devices(request),
        **masks(context),
        **lsm.of_container(request)[1],
        **seccomp.section(
            seccomp.wanted(context, seccomp.FIELD, request.unset_seccomp),
            capabilities.sets(context, request.facts.capabilities)["bounding"],
            request.facts,
            request.seccomp_profile,
        ),
    }
    if propagation := rootfs_propagation(config):
        linux["rootfsPropagation"] = propagation
    return linux
