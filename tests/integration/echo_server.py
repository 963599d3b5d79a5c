"""A module server as small as can be, for what stands before it: it echoes, and does as it is told.

    python -m tests.integration.echo_server --port 0

It prints its port. What a package's attribute `do` says:

- "refuse": `Run` ends with INVALID_ARGUMENT, a text and trailing metadata.
- "wait": no answer until the caller cancels or is out of time.
- "drain", "serve": the health service says NOT_SERVING from now on, or SERVING again.
- "count": how many of those have begun and how many have ended, and how many Streams are open.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from broker_pipeline._proto.v1 import module_service_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2_grpc as stubs

MESSAGE_BYTES_MAX = 64 << 20
CREDIT = 64
REFUSAL = ("the text of the refusal: 50 % of it, in ümlauts", (("why-bin", bytes(range(256))),))


class Echo(stubs.ModuleServiceServicer):
    """Answers with the payload as it came; `message` is the server's name."""

    def __init__(self) -> None:
        self.name = ""
        self.health = health.aio.HealthServicer()
        self.waiting = self.given_up = self.open = 0

    async def Describe(self, request: pb.DescribeRequest, context: object) -> pb.DescribeResponse:
        """Who it is."""
        return pb.DescribeResponse(description=self._description())

    async def Run(
        self, request: pb.RunRequest, context: grpc.aio.ServicerContext[pb.RunRequest, object]
    ) -> pb.RunResponse:
        """Echo one package, or do what it says."""
        match request.package.attributes.get("do"):
            case "refuse":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, *REFUSAL)
            case "wait":
                self.waiting += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.given_up += 1
            case "drain":
                await self.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            case "serve":
                await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
            case "count":
                counts = (self.waiting, self.given_up, self.open)
                return self._answer(request, b"%d %d %d" % counts)
        return self._answer(request, request.package.data)

    async def Stream(
        self, requests: AsyncIterator[pb.StreamRequest], context: object
    ) -> AsyncIterator[pb.StreamResponse]:
        """Echo packages as they come."""
        self.open += 1
        try:
            yield pb.StreamResponse(credit=CREDIT, description=self._description())
            async for message in requests:
                yield pb.StreamResponse(
                    responses=[self._answer(each, each.package.data) for each in message.requests]
                )
        finally:
            self.open -= 1

    def _description(self) -> pb.Description:
        return pb.Description(name="echo", server=self.name, capacity=CREDIT)

    def _answer(self, request: pb.RunRequest, data: bytes) -> pb.RunResponse:
        return pb.RunResponse(
            call=request.call,
            package=request.package.id,
            status="STATUS_SUCCESS",
            payload=pb.Payload(data=data, attributes=request.package.attributes),
            message=self.name,
        )


async def main(port: int) -> None:
    """Serve until killed."""
    sizes = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    server = grpc.aio.server(options=[(size, MESSAGE_BYTES_MAX) for size in sizes])
    echo = Echo()
    stubs.add_ModuleServiceServicer_to_server(echo, server)
    await echo.health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(echo.health, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    echo.name = f"echo-{port}"
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(main(parser.parse_args().port))
