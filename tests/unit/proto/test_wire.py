"""Our .proto files say on the wire what the published interfaces say: checked against bytes written by hand."""

import subprocess
import sys

import pytest
from google.protobuf.message import Message

from holdfast.proto import cgroups_v1_pb2 as v1
from holdfast.proto import cgroups_v2_pb2 as v2
from holdfast.proto import containerd_task_pb2, node_pb2, task_pb2, ttrpc_pb2
from holdfast.proto import containerd_types_pb2 as types
from holdfast.proto import runtime_v1_pb2 as cri

# A tag is field << 3 | type: 0 a varint, 2 a length and that many bytes; from 16 on it takes two bytes.
WIRE: list[tuple[Message, bytes]] = [
    (cri.VersionRequest(version="v1"), b"\x0a\x02v1"),
    (cri.PodSandboxMetadata(name="n", uid="u", namespace="s", attempt=3), b"\x0a\x01n\x12\x01u\x1a\x01s\x20\x03"),
    (cri.ImageSpec(image="i", user_specified_image="t", image_ref="r"), b"\x0a\x01i\x92\x01\x01t\xa2\x01\x01r"),
    (cri.Mount(container_path="/c", host_path="/h", readonly=True), b"\x0a\x02/c\x12\x02/h\x18\x01"),
    (cri.Mount(propagation=cri.PROPAGATION_BIDIRECTIONAL), b"\x28\x02"),
    (cri.Mount(recursive_read_only=True, image_sub_path="p"), b"\x40\x01\x52\x01p"),
    (cri.NamespaceOption(network=2, pid=3, target_id="t"), b"\x08\x02\x10\x03\x22\x01t"),
    (cri.LinuxContainerSecurityContext(run_as_group=cri.Int64Value(value=5)), b"\x62\x02\x08\x05"),
    (cri.LinuxContainerSecurityContext(supplemental_groups_policy=1), b"\x88\x01\x01"),
    (cri.LinuxSandboxSecurityContext(run_as_group=cri.Int64Value(value=5)), b"\x42\x02\x08\x05"),
    (cri.LinuxContainerResources(oom_score_adj=-1), b"\x28" + b"\xff" * 9 + b"\x01"),
    (cri.ContainerConfig(log_path="l", tty=True, stop_signal=cri.SIGTERM), b"\x5a\x01l\x70\x01\x90\x01\x17"),
    (cri.ContainerConfig(CDI_devices=[cri.CDIDevice(name="d")]), b"\x8a\x01\x03\x0a\x01d"),
    (cri.Namespace(options=cri.NamespaceOption(pid=1)), b"\x12\x02\x10\x01"),
    (cri.ContainerStatus(id="c", exit_code=-1, reason="r"), b"\x0a\x01c\x38" + b"\xff" * 9 + b"\x01\x52\x01r"),
    (cri.ContainerStatus(image_id="i", stop_signal=1), b"\x8a\x01\x01i\x98\x01\x01"),
    (cri.ExecSyncResponse(stdout=b"o", stderr=b"e", exit_code=7), b"\x0a\x01o\x12\x01e\x18\x07"),
    (cri.ExecRequest(container_id="c", audit_request_id="a"), b"\x0a\x01c\x3a\x01a"),
    (cri.StreamContainersResponse(containers=[cri.Container(id="c")]), b"\x0a\x03\x0a\x01c"),
    (cri.MemoryUsage(psi=cri.PsiStats(Some=cri.PsiData(Total=1))), b"\x42\x04\x12\x02\x08\x01"),
    (cri.StatusResponse(features=cri.RuntimeFeatures(supplemental_groups_policy=True)), b"\x22\x02\x08\x01"),
    (task_pb2.CreateTaskRequest(id="i", bundle="/b", terminal=True), b"\x0a\x01i\x12\x02/b\x20\x01"),
    (task_pb2.CreateTaskRequest(rootfs=[types.Mount(type="bind", source="s")]), b"\x1a\x09\x0a\x04bind\x12\x01s"),
    (task_pb2.CreateTaskRequest(rootfs=[types.Mount(target="t", options=["o"])]), b"\x1a\x06\x1a\x01t\x22\x01o"),
    (task_pb2.StateResponse(status=containerd_task_pb2.STOPPED, exit_status=137), b"\x20\x03\x48\x89\x01"),
    (task_pb2.KillRequest(id="i", signal=9, all=True), b"\x0a\x01i\x18\x09\x20\x01"),
    (task_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="3"), b"\x08\x01\x10\x02\x1a\x013"),
    (ttrpc_pb2.Request(service="s", method="m", payload=b"p", timeout_nano=1), b"\x0a\x01s\x12\x01m\x1a\x01p\x20\x01"),
    (ttrpc_pb2.Request(metadata=[ttrpc_pb2.KeyValue(key="k", value="v")]), b"\x2a\x06\x0a\x01k\x12\x01v"),
    (ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="m")), b"\x0a\x05\x08\x05\x12\x01m"),
    (v1.Metrics(pids=v1.PidsStat(current=1)), b"\x12\x02\x08\x01"),
    (v1.Metrics(cpu=v1.CPUStat(usage=v1.CPUUsage(total=2))), b"\x1a\x04\x0a\x02\x08\x02"),
    (v1.Metrics(memory=v1.MemoryStat(usage=v1.MemoryEntry(usage=3))), b"\x22\x05\x8a\x02\x02\x10\x03"),
    (v2.Metrics(pids=v2.PidsStat(current=1), cpu=v2.CPUStat(usage_usec=2)), b"\x0a\x02\x08\x01\x12\x02\x08\x02"),
    (v2.Metrics(memory=v2.MemoryStat(inactive_file=4, active_file=5)), b"\x22\x04\x68\x04\x70\x05"),
    (v2.Metrics(memory=v2.MemoryStat(usage=6, usage_limit=7)), b"\x22\x06\x80\x02\x06\x88\x02\x07"),
    (node_pb2.ImportChunk(data=b"d", name="n"), b"\x0a\x01d\x12\x01n"),
]  # fmt: skip

UNARY = [
    "Version",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListContainers",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "UpdateRuntimeConfig",
    "Status",
    "CheckpointContainer",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
]
STREAMS = [
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
    "GetContainerEvents",
]
TASK = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
]


@pytest.mark.parametrize(("message", "wire"), WIRE, ids=lambda value: type(value).__name__)
def test_the_wire_form_is_the_published_one(message: Message, wire: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == wire
    assert type(message).FromString(wire) == message


def test_every_runtime_call_is_there() -> None:
    service = cri.DESCRIPTOR.services_by_name["RuntimeService"]
    assert service.full_name == "runtime.v1.RuntimeService"
    assert {method.name for method in service.methods} == {*UNARY, *STREAMS}
    assert {method.name for method in service.methods if method.server_streaming} == set(STREAMS)
    assert not [method.name for method in service.methods if method.client_streaming]


def test_every_image_call_is_there() -> None:
    service = cri.DESCRIPTOR.services_by_name["ImageService"]
    assert service.full_name == "runtime.v1.ImageService"
    unary = {"ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"}
    assert {method.name for method in service.methods} == {*unary, "StreamImages"}
    assert service.methods_by_name["StreamImages"].server_streaming


def test_messages_are_named_after_their_calls() -> None:
    for service in cri.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if method.name != "GetContainerEvents":
                assert (method.input_type.name, method.output_type.name) == (
                    f"{method.name}Request",
                    f"{method.name}Response",
                )


def test_every_task_call_is_there() -> None:
    service = task_pb2.DESCRIPTOR.services_by_name["Task"]
    assert service.full_name == "containerd.task.v2.Task"
    assert [method.name for method in service.methods] == TASK


def test_every_signal_has_its_number() -> None:
    assert cri.Signal.keys()[0] == "RUNTIME_DEFAULT"
    assert (cri.SIGABRT, cri.SIGKILL, cri.SIGTERM, cri.SIGXFSZ) == (1, 13, 23, 34)
    assert (cri.SIGRTMIN, cri.SIGRTMINPLUS15, cri.SIGRTMAXMINUS14, cri.SIGRTMAX) == (35, 50, 51, 65)
    assert cri.Signal.values() == list(range(66))


def test_secrets_are_marked_as_such() -> None:
    shown = str(
        cri.AuthConfig(username="u", password="hush", auth="hush", identity_token="hush", registry_token="hush")
    )
    fields = cri.AuthConfig.DESCRIPTOR.fields
    marked = {field.name for field in fields if field.GetOptions().debug_redact}
    assert marked == {"password", "auth", "identity_token", "registry_token"}, shown


def test_messages_are_imported_without_grpc() -> None:
    names = ["runtime_v1", "task", "containerd_types", "containerd_task", "ttrpc", "node", "cgroups_v1", "cgroups_v2"]
    code = "import sys\n" + "".join(f"import holdfast.proto.{name}_pb2\n" for name in names)
    code += "sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
