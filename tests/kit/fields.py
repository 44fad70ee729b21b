"""Every field that the CRI's configurations can have, from the descriptors of our .proto.

A field is named by its path from the message that holds all: `ContainerConfig.linux.resources.cpu_shares`. An index
of a repeated field is no part of it, and a map is one field.
"""

import re
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from holdfast.proto import runtime_v1_pb2 as pb

ROOTS = (pb.PodSandboxConfig.DESCRIPTOR, pb.ContainerConfig.DESCRIPTOR)


def is_message(field: FieldDescriptor) -> bool:
    """Whether it has fields of its own; the entries of a map are not counted as such."""
    return field.message_type is not None and not field.message_type.GetOptions().map_entry


def walk(message: Descriptor, path: str) -> Iterator[tuple[str, FieldDescriptor]]:
    """(path, field) of each field of a message and of what it holds, a message before what is in it."""
    for field in message.fields:
        where = f"{path}.{field.name}"
        yield where, field
        if is_message(field):
            yield from walk(field.message_type, where)


def every_field() -> dict[str, FieldDescriptor]:
    """Of a PodSandboxConfig and a ContainerConfig, by path."""
    return {path: field for root in ROOTS for path, field in walk(root, root.name)}


def places() -> dict[str, Descriptor]:
    """Where a message is: the two roots, and every field that holds one."""
    held = {path: field.message_type for path, field in every_field().items() if is_message(field)}
    return {root.name: root for root in ROOTS} | held


def named_field(error: str, root: Descriptor) -> str:
    """The path of the field that an error begins with ("config.mounts[0].host_path: why"), "" when it names none."""
    match = re.match(r"config((?:\.\w+(?:\[.*?\])?)+?)(?:: |$)", error, re.DOTALL)
    path = root.name + re.sub(r"\[.*?\](?=\.|$)", "", match[1], flags=re.DOTALL) if match else ""
    return path if path in every_field() else ""
