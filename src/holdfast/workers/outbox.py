"""Bytes on their way to a descriptor that takes them as it can."""

import collections
from collections.abc import Callable


class Outbox:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._parts: collections.deque[memoryview] = collections.deque()
        self.size = 0

    def put(self, data: bytes) -> None:
        if data:
            self._parts.append(memoryview(data))
            self.size += len(data)

    def drain(self, write: Callable[[memoryview], int]) -> int:
        """Hand over what `write` takes now. Returns how many bytes that were. Raises its OSError, but for "not now"."""
        before = self.size
        try:
            while self._parts:
                part = self._parts[0]
                done = write(part)
                self.size -= done
                if done < len(part):
                    self._parts[0] = part[done:]
                else:
                    self._parts.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        return before - self.size

    def clear(self) -> int:
        """Forget them. Returns how many they were."""
        size, self.size = self.size, 0
        self._parts.clear()
        return size
