from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class CheckpointPodRequest(_message.Message):
    __slots__ = ("pod_id", "location", "compress", "leave_running", "limit")
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_FIELD_NUMBER: _ClassVar[int]
    LEAVE_RUNNING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    location: str
    compress: str
    leave_running: bool
    limit: int
    def __init__(self, pod_id: _Optional[str] = ..., location: _Optional[str] = ..., compress: _Optional[str] = ..., leave_running: _Optional[bool] = ..., limit: _Optional[int] = ...) -> None: ...

class CheckpointPodReply(_message.Message):
    __slots__ = ("bytes", "frozen_seconds", "left_out")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    frozen_seconds: float
    left_out: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bytes: _Optional[int] = ..., frozen_seconds: _Optional[float] = ..., left_out: _Optional[_Iterable[str]] = ...) -> None: ...

class RestorePodRequest(_message.Message):
    __slots__ = ("location", "name", "runtime_handler", "volumes", "trusted")
    class VolumesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_HANDLER_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    location: str
    name: str
    runtime_handler: str
    volumes: _containers.ScalarMap[str, str]
    trusted: bool
    def __init__(self, location: _Optional[str] = ..., name: _Optional[str] = ..., runtime_handler: _Optional[str] = ..., volumes: _Optional[_Mapping[str, str]] = ..., trusted: _Optional[bool] = ...) -> None: ...

class RestorePodReply(_message.Message):
    __slots__ = ("pod_id",)
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    def __init__(self, pod_id: _Optional[str] = ...) -> None: ...

class RecoveryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecoveryReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class DoctorRequest(_message.Message):
    __slots__ = ("fix",)
    FIX_FIELD_NUMBER: _ClassVar[int]
    fix: bool
    def __init__(self, fix: _Optional[bool] = ...) -> None: ...

class DoctorReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class ConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfigReply(_message.Message):
    __slots__ = ("toml",)
    TOML_FIELD_NUMBER: _ClassVar[int]
    toml: str
    def __init__(self, toml: _Optional[str] = ...) -> None: ...

class ImportChunk(_message.Message):
    __slots__ = ("data", "name")
    DATA_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    name: str
    def __init__(self, data: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class NodePullRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    def __init__(self, image: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("item", "phase", "done", "total", "images")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    item: str
    phase: str
    done: int
    total: int
    images: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item: _Optional[str] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., images: _Optional[_Iterable[str]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("since", "only_known")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ONLY_KNOWN_FIELD_NUMBER: _ClassVar[int]
    since: int
    only_known: bool
    def __init__(self, since: _Optional[int] = ..., only_known: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "at", "kind", "object", "id", "name", "pod_id", "pod_name", "namespace", "state", "exit_code", "reason", "oom_kills")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    number: int
    at: int
    kind: str
    object: str
    id: str
    name: str
    pod_id: str
    pod_name: str
    namespace: str
    state: str
    exit_code: int
    reason: str
    oom_kills: int
    def __init__(self, number: _Optional[int] = ..., at: _Optional[int] = ..., kind: _Optional[str] = ..., object: _Optional[str] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., pod_id: _Optional[str] = ..., pod_name: _Optional[str] = ..., namespace: _Optional[str] = ..., state: _Optional[str] = ..., exit_code: _Optional[int] = ..., reason: _Optional[str] = ..., oom_kills: _Optional[int] = ...) -> None: ...
