"""What a daemon can tell of itself and its host."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.userns import Users
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.features import RuntimeFeatures, binds_from_host
from holdfast.runtime.handlers import Handlers


@dataclass(frozen=True, slots=True)
class Node:
    """`facts` are shown by Status(verbose), as is what `gate` finds; `network_ready` gives (ready, reason, message)."""

    handlers: Handlers
    features: RuntimeFeatures
    users: Users
    network_ready: Callable[[], Awaitable[tuple[bool, str, str]]]
    configure_network: Callable[[str], Awaitable[None]]
    facts: dict[str, object]
    storage: Storage
    gate: Gate

    async def runtime_handlers(self) -> list[pb.RuntimeHandler]:
        """Every handler that can be asked for, "" first, and what it can do."""
        found = []
        for name in ("", *self.handlers.all):
            handler = self.handlers.get(name)
            able = binds_from_host(handler) or (await self.features.of(handler)).recursive_read_only_mounts
            users = await self.users.supported(handler)
            features = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=able, user_namespaces=users)
            found.append(pb.RuntimeHandler(name=name, features=features))
        return found
