"""A bound on the bytes of large payloads that are in memory at the same time."""

from __future__ import annotations

import asyncio


class HeldBytes:
    """Room for payloads; one that is larger than all of it is held alone.

    Attributes:
        bytes: how many are held.
    """

    def __init__(self, bytes_max: int) -> None:
        self._max = bytes_max
        self.bytes = 0
        self._room = asyncio.Event()
        self._in_line = asyncio.Lock()

    async def take(self, size: int) -> int:
        """Wait for room; what is to be given back."""
        size = min(size, self._max)  # what a producer says, unchecked
        async with self._in_line:  # a large one is not passed by small ones for ever
            while self.bytes and self.bytes + size > self._max:
                self._room.clear()
                await self._room.wait()
            self.bytes += size
        return size

    def give(self, size: int) -> None:
        """So many are not held any more."""
        self.bytes -= size
        self._room.set()
