"""What a proxy adds to the way to a module server: round trips of 1 KiB, one after the other.

The proxies with the files under infra/, and no proxy, before the same echo servers (grpc.aio), in
turns in one run. A proxy that is not installed is left out.

    python -m benchmarks.proxies --calls 5000
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import grpc.aio

from broker_pipeline._proto.v1 import module_service_pb2 as pb
from broker_pipeline._proto.v1.module_service_pb2_grpc import ModuleServiceStub
from tests.integration.proxies import FILES, echo_servers, find, running

ROUNDS = 10
"""So many turns: what else runs on the machine meets all alike."""
REQUEST = pb.RunRequest(call=1, package={"id": 1, "data": bytes(1024)})
Call = Callable[[], Awaitable[object]]


async def run_call(stub: ModuleServiceStub) -> Call:
    """A round trip of `Run`."""

    async def once() -> object:
        return await stub.Run(REQUEST)

    return once


async def stream_call(stub: ModuleServiceStub) -> Call:
    """A round trip on one `Stream`."""
    stream = stub.Stream()
    await stream.read()
    message = pb.StreamRequest(requests=[REQUEST])

    async def once() -> object:
        await stream.write(message)
        return await stream.read()

    return once


async def measured(call: Call, calls: int) -> list[float]:
    """Milliseconds of each."""
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1e3)
    return took


async def compare(ways: dict[str, str], calls: int) -> None:
    """Print a line for each way and method."""
    async with AsyncExitStack() as stack:
        runs: dict[tuple[str, str], tuple[Call, list[float]]] = {}
        for way, address in ways.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stub = ModuleServiceStub(channel)  # type: ignore[no-untyped-call]
            for method, make in (("Stream", stream_call), ("Run", run_call)):
                call = await make(stub)
                await measured(call, 50)  # connections, caches
                runs[way, method] = (call, [])
        for _ in range(ROUNDS):
            for call, took in runs.values():
                took += await measured(call, calls // ROUNDS)
    print(f"{'way':8} {'method':6} {'median ms':>9} {'p95 ms':>7} {'calls':>6}")
    for (way, method), (_, took) in runs.items():
        p95 = quantiles(took, n=20)[-1]
        print(f"{way:8} {method:6} {median(took):9.2f} {p95:7.2f} {len(took):6}")


def main() -> None:
    """Start what there is, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000, help="of each way and method")
    calls: int = parser.parse_args().calls
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        servers = stack.enter_context(echo_servers())
        ways = {"direct": servers[0].address}
        for name in filter(find, FILES):
            (own := directory / name).mkdir()
            ports = [server.port for server in servers]
            ways[name] = stack.enter_context(running(name, own, ports))
        asyncio.run(compare(ways, calls))


if __name__ == "__main__":
    main()
