"""A module server on real gRPC that does as a test tells it: also what no server should.

As a process: `python -m tests.integration.scripted_server PORT`, which echoes.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.credentials import server_credentials

SERVICE = "broker_pipeline.v1.ModuleService"
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


class Side:
    """One stream, as the server sees it."""

    def __init__(self, server: ScriptedServer, context: Any) -> None:
        self.server = server
        self.context = context
        self._turn = asyncio.Lock()  # gRPC takes one write at a time

    async def send(self, raw: bytes) -> None:
        """Any bytes as a message."""
        async with self._turn:
            await self.context.write(raw)

    async def say(self, *responses: service.RunResponse, **fields: Any) -> None:
        """A StreamResponse."""
        message = service.StreamResponse(responses=responses, **fields)
        await self.send(message.SerializeToString())

    async def end(self, code: grpc.StatusCode, details: str = "as told") -> None:
        """The stream's end."""
        await self.context.abort(code, details)


Script = Callable[[Side, service.RunRequest], Awaitable[None]]
RunScript = Callable[[service.RunRequest, Any], Awaitable[bytes] | bytes]


def answer(request: service.RunRequest, status: int = pb.STATUS_SUCCESS, **fields: Any) -> Any:
    """The answer that a good server gives."""
    fields = {"call": request.call, "package": request.package.id} | fields
    return service.RunResponse(status=status, **fields)


async def echo(side: Side, request: service.RunRequest) -> None:
    """SUCCESS, and the payload as it came."""
    payload = service.Payload(data=request.package.data)
    await side.say(answer(request, payload=payload))


async def silent(side: Side, request: service.RunRequest) -> None:
    """Nothing."""


class ScriptedServer:
    """The server.

    Attributes:
        script: called for each request on a stream.
        run: called for each `Run`, returns the answer's bytes; None: UNIMPLEMENTED.
        first: the first message on a stream; None: there is none.
        streams: whether it has them.
        got: the ids of the packages that came.
        cancelled: calls that the caller has cancelled.
        sides: the streams, in the order in which they came.
        metadata: of the newest stream or `Run`.
        refuse: a status for every stream and call.
        tls: files by name, to ask callers for certificates; None: plaintext.
    """

    def __init__(self, script: Script = echo, *, credit: int = 100, **description: Any) -> None:
        description = {"name": "asr", "server": "s"} | description
        self.description = service.Description(**description)
        self.script = script
        self.run: RunScript | None = None
        self.credit = credit
        self.streams = True
        self.says_first = True
        self.refuse: grpc.StatusCode | None = None
        self.got: list[int] = []
        self.messages: list[int] = []
        self.cancelled: list[int] = []
        self.sides: list[Side] = []
        self.metadata: dict[str, Any] = {}
        self.tls: dict[str, str] | None = None
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._heart: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> ScriptedServer:
        """Listen; at the port that it had, if it had one."""
        size = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        server = grpc.aio.server(options=[*size, ("grpc.so_reuseport", 0)])
        handlers: dict[str, Any] = {
            "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
            "Run": grpc.unary_unary_rpc_method_handler(self._run),
            "Describe": grpc.unary_unary_rpc_method_handler(self._describe),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        where = f"{host}:{port or self.port}"
        if self.tls is None:
            self.port = server.add_insecure_port(where)
        else:
            files = (self.tls["gpu.pem"], self.tls["gpu.key"], self.tls["ca.pem"])
            credentials = server_credentials(*files)
            assert credentials is not None
            self.port = server.add_secure_port(where, credentials)
        await server.start()
        self._server = server
        return self

    async def stop(self, grace_s: float | None = None) -> None:
        """Break all connections off."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    async def _describe(self, raw: bytes, context: Any) -> bytes:
        await self._open(context)
        return service.DescribeResponse(description=self.description).SerializeToString()

    async def _open(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        if self.refuse is not None:
            await context.abort(self.refuse, "as told")

    async def _run(self, raw: bytes, context: Any) -> bytes:
        await self._open(context)
        if self.run is None:
            await context.abort(UNIMPLEMENTED, "as told")
            raise AssertionError
        request = service.RunRequest.FromString(raw)
        self.got.append(request.package.id)
        found = self.run(request, context)
        return await found if inspect.isawaitable(found) else found

    async def _stream(self, requests: Any, context: Any) -> None:
        await self._open(context)
        if not self.streams:
            await context.abort(UNIMPLEMENTED, "as told")
        side = Side(self, context)
        self.sides.append(side)
        if self.says_first:
            await side.say(description=self.description, credit=self.credit)
        async for raw in requests:
            message = service.StreamRequest.FromString(raw)
            self.cancelled += message.cancelled
            self.messages.append(len(message.requests))
            for request in message.requests:
                self.got.append(request.package.id)
                await self.script(side, request)


async def _main(port: int, name: str) -> None:
    heartbeat_ns = 200_000_000
    scripted = ScriptedServer(server=name, heartbeat_ns=heartbeat_ns)
    await scripted.start(port)
    print(scripted.port, flush=True)
    while True:
        await asyncio.sleep(heartbeat_ns / 1e9)
        for side in scripted.sides:
            try:
                await side.say()
            except Exception:  # the caller has gone
                scripted.sides.remove(side)
                break


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
