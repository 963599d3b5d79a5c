"""A bare grpc.aio echo of bytes, client and server in a process each: what gRPC itself costs."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import uvloop

SERVICE = "Echo"
WINDOW = 64
"""Requests under way at the same time, flat out."""


async def _stream(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def _unary(request: bytes, _: object) -> bytes:
    return request


async def serve() -> None:
    """Serve on a free port, and print it."""
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "stream": grpc.stream_stream_rpc_method_handler(_stream),
        "unary": grpc.unary_unary_rpc_method_handler(_unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@asynccontextmanager
async def echoing() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.grpc_echo"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        process.kill()
        await process.wait()


def _opened(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    echo: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
    echo = channel.stream_stream(f"/{SERVICE}/stream")
    return echo()


async def flat_out(kind: str, count: int, payload: int) -> float:
    """Echoes a second of `payload` bytes, over one stream or as unary calls."""
    data = os.urandom(payload)
    async with echoing() as channel:
        begun = time.perf_counter()
        if kind == "unary":
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/{SERVICE}/unary"
            )

            async def calls() -> None:
                for _ in range(count // WINDOW):
                    await call(data)

            await asyncio.gather(*(calls() for _ in range(WINDOW)))
            return count // WINDOW * WINDOW / (time.perf_counter() - begun)
        room = asyncio.Semaphore(WINDOW)
        stream = _opened(channel)

        async def write() -> None:
            for _ in range(count):
                await room.acquire()
                await stream.write(data)
            await stream.done_writing()

        writing = asyncio.create_task(write())
        while await stream.read() is not grpc.aio.EOF:
            room.release()
        await writing
        return count / (time.perf_counter() - begun)


async def lock_step(count: int, payload: int) -> float:
    """The median of `count` round trips on a stream, one after the other, ms."""
    data = os.urandom(payload)
    times = []
    async with echoing() as channel:
        stream = _opened(channel)
        for _ in range(count):
            begun = time.perf_counter()
            await stream.write(data)
            await stream.read()
            times.append((time.perf_counter() - begun) * 1e3)
        await stream.done_writing()
    return statistics.median(times)


if __name__ == "__main__":
    uvloop.run(serve())
