"""A TCP proxy that makes connections bad: cut, half-open, stalled, slow, refused.

One `Door` is what one role sees of the broker: a listener for each server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

BUFFER_MAX = 1 << 20
"""Bytes on their way in one direction, beyond which the sender is not read from."""
SLOW_BYTES_S = 200_000
SLOW_TURN_S = 0.1


class _Side(asyncio.Protocol):
    """One end of a connection; what it gets goes out at the other end."""

    def __init__(self, door: Door, port: int, peer: _Side | None = None) -> None:
        self.door = door
        self.port = port
        self.peer = peer
        self.transport: asyncio.Transport | None = None
        self.deaf = False
        self._early: list[bytes] = []
        self._later: list[bytes] = []
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(BUFFER_MAX)
        if self.peer is not None:
            return  # we dialled the server for it
        if self.door.refusing:
            _reset(transport)
            return
        self.door.sides.add(self)
        self._dialling = asyncio.create_task(self._dial(), name="proxy dials")

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(
                lambda: _Side(self.door, self.port, self), "127.0.0.1", self.port
            )
        except OSError:
            assert self.transport is not None
            _reset(self.transport)
            return
        self.peer = other
        self.door.sides.add(other)
        for data in self._early:
            other.write(data)
        self._early.clear()
        if self.transport is None or self.transport.is_closing():
            other.abort()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return  # half-open: gone without a word, in both directions
        if self.peer is None:
            self._early.append(data)
        elif self.door.slow or self._later:
            self._later.append(data)
            self.door.pace(self)
        else:
            self.peer.write(data)

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def flush(self, most: int) -> bool:
        """Hand on at most so much of what waits; whether nothing is left."""
        data = b"".join(self._later)
        self._later = [data[most:]] if len(data) > most else []
        if self.peer is not None and data:
            self.peer.write(data[:most])
        return not self._later

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            with contextlib.suppress(RuntimeError):
                self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        if self.peer is not None and not self.door.stalled:
            self.peer.resume()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _: Exception | None) -> None:
        self.door.sides.discard(self)
        if self.peer is not None and not self.deaf:
            self.flush(1 << 30)
            if self.peer.transport is not None:
                self.peer.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            _reset(self.transport)


def _reset(transport: asyncio.BaseTransport) -> None:
    """Close with an RST, as a machine that forgot the connection does."""
    taken: socket.socket | None = transport.get_extra_info("socket")
    if taken is not None:
        with contextlib.suppress(OSError):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
    transport.abort()  # type: ignore[attr-defined]


class Door:
    """One role's way to the broker, by one listener for each server."""

    def __init__(self, name: str, ports: list[int]) -> None:
        self.name = name
        self.sides: set[_Side] = set()
        self.refusing = False
        self.stalled = False
        self.slow = False
        self._ports = ports
        self._listeners: list[asyncio.Server] = []
        self._pacing: asyncio.Task[None] | None = None
        self._paced: set[_Side] = set()
        self.url = ""

    async def open(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        for port in self._ports:
            listener = await loop.create_server(
                lambda port=port: _Side(self, port),  # type: ignore[misc]
                "127.0.0.1",
                0,
            )
            self._listeners.append(listener)
        here = [each.sockets[0].getsockname()[1] for each in self._listeners]
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in here)

    async def close(self) -> None:
        """Close it, with all connections."""
        for listener in self._listeners:
            listener.close()
        self.cut()
        if self._pacing is not None:
            self._pacing.cancel()

    # -- what goes wrong --------------------------------------------------------------------------
    def cut(self) -> None:
        """Reset all connections."""
        for side in list(self.sides):
            side.abort()

    def half_open(self) -> None:
        """From now on nothing of the present connections arrives, and nobody is told."""
        for side in self.sides:
            side.deaf = True

    async def stall(self, seconds: float) -> None:
        """Read from nobody: buffers fill up to both ends."""
        self.stalled = True
        for side in list(self.sides):
            side.pause()
        await asyncio.sleep(seconds)
        self.stalled = False
        for side in list(self.sides):
            side.resume()

    async def refuse(self, seconds: float) -> None:
        """Cut, and let nobody in again for a while."""
        self.refusing = True
        self.cut()
        await asyncio.sleep(seconds)
        self.refusing = False

    async def slow_down(self, seconds: float) -> None:
        """A thin line: SLOW_BYTES_S in each direction."""
        self.slow = True
        await asyncio.sleep(seconds)
        self.slow = False

    def pace(self, side: _Side) -> None:
        """Something waits at `side`."""
        self._paced.add(side)
        if self._pacing is None or self._pacing.done():
            self._pacing = asyncio.create_task(self._pace(), name=f"pace {self.name}")

    async def _pace(self) -> None:
        # It goes on until all is handed on: what came while it was slow stays before what follows.
        while self._paced:
            await asyncio.sleep(SLOW_TURN_S)
            most = int(SLOW_BYTES_S * SLOW_TURN_S)
            for side in list(self._paced):
                if side.flush(most if self.slow else 1 << 30):
                    self._paced.discard(side)
