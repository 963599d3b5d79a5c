"""Module servers as a caller that knows only the .proto sees them; and modules to serve."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec

from broker_pipeline import (
    Client,
    CombinationModule,
    ConditionModule,
    DataPackage,
    ExecutionModule,
    ModuleOptions,
    Run,
    StatefulModule,
    serve,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline._proto.v1 import module_service_pb2_grpc as rpc
from broker_pipeline.external.registry import Watch
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.runtime.module_server import RunningServer
from tests.integration.processes import until

SUCCESS, EXIT, ERROR, WAITING = (
    STATUS_TO_PB[status] for status in (Status.SUCCESS, Status.EXIT, Status.ERROR, Status.WAITING)
)


class Words(ExecutionModule[bytes]):
    """Does what its payload says."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """exit, raise, label, grow: a word and what belongs to it."""
        word, _, rest = package.data.partition(b" ")
        run.message = word.decode()
        if word == b"exit":
            run.exit(rest.decode())
        elif word == b"raise":
            package.data = b"changed before it failed"
            raise ValueError(rest.decode())
        elif word == b"label":
            package.attributes["label"] = rest.decode()
        elif word == b"upper":
            package.data = rest.upper()
        elif word == b"grow":
            package.data = b"x" * int(rest)


class Gate(ExecutionModule[bytes]):
    """Stays in each package until it is opened; knows which ones it has begun."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options=ModuleOptions(**options))
        self.open = threading.Event()
        self.begun: list[bytes] = []

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Wait."""
        self.begun.append(package.data)
        self.open.wait(30)


class FileGate(ExecutionModule[bytes]):
    """A gate for another process: the file that the environment names, and one beside it."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Wait until the file is there."""
        gate = Path(os.environ["GATE"])
        gate.with_suffix(".begun").touch()
        end = time.monotonic() + 30
        while not gate.exists() and time.monotonic() < end:
            threading.Event().wait(0.01)


def stuck() -> Gate:
    """A gate that nobody opens, and no patience with it."""
    return Gate(timeout_s=0.1)


class AsyncUpper(ExecutionModule[bytes]):
    """On the module loop."""

    async def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Shout."""
        await asyncio.sleep(0)
        package.data = package.data.upper()


class Utterance(msgspec.Struct):
    """A payload of the user's."""

    text: str


class Shout(ExecutionModule[Utterance]):
    """Reads and writes structured payloads."""

    def execute(self, package: DataPackage[Utterance], run: Run) -> None:
        """Shout."""
        package.data = Utterance(package.data.text.upper())


class Sum(msgspec.Struct):
    """A state."""

    total: int = 0


class Adds(StatefulModule[bytes, Sum]):
    """Adds numbers up."""

    def initial_state(self) -> Sum:
        """Nothing."""
        return Sum()

    def execute(self, package: DataPackage[bytes], run: Run, state: Sum) -> Sum:
        """The sum so far; `last N` ends the journey, `raise N` fails after adding."""
        word, _, rest = package.data.rpartition(b" ")
        state.total += int(rest)
        if word == b"raise":
            raise ValueError("added and failed")
        if word == b"last":
            run.exit("done")
        package.data = b"%d" % state.total
        return state


def nested() -> CombinationModule[Any]:
    """A tree: numbers are added up twice, other payloads do what they say."""
    both = CombinationModule([Adds(name="first"), Adds(name="second")], name="both")
    return CombinationModule(
        [ConditionModule(both, Words(), condition=_is_number, name="which")], name="tree"
    )


def _is_number(package: DataPackage[bytes]) -> bool:
    return package.data.isdigit()


def request(
    call: int, data: bytes = b"", *, timeout_s: float = 0, state: bytes | None = None, **more: Any
) -> service.RunRequest:
    """A package as a worker sends it: with a journey, and ids."""
    package = pb.DataPackage(
        id=1000 + call, pipeline="p", instance="i", sequence=call, data=data, **more
    )
    package.controllers.add(name="c", sequence=call).phases.add(name="before", worker="w-1")
    return service.RunRequest(
        call=call, package=package, timeout_ns=round(timeout_s * 1e9), state=state
    )


class Caller:
    """A stream, and all that has come back on it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.messages: list[service.StreamResponse] = []
        self.answers: dict[int, service.RunResponse] = {}
        self.order: list[int] = []
        self.credits: list[int] = []
        self._reading = asyncio.create_task(self._read())

    @property
    def credit(self) -> int:
        """What has been granted last."""
        return self.credits[-1]

    async def _read(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            self.messages.append(message)
            for answer in message.responses:
                assert answer.call not in self.answers, "answered twice"
                self.answers[answer.call] = answer
                self.order.append(answer.call)
            if message.HasField("credit"):
                self.credits.append(message.credit)

    async def send(self, *requests: service.RunRequest, cancelled: tuple[int, ...] = ()) -> None:
        """In one message."""
        await self.call.write(service.StreamRequest(requests=requests, cancelled=cancelled))

    async def answered(self, *calls: int) -> list[service.RunResponse]:
        """Wait for the answers to these."""
        await until(
            lambda: all(call in self.answers for call in calls) or self._reading.done(),
            f"answers to {calls[:10]}",
        )
        return [self.answers[call] for call in calls]

    async def ended(self) -> grpc.StatusCode:
        """Wait for the end of the stream; the status with which it ended."""
        async with asyncio.timeout(20):
            await asyncio.wait((self._reading,))
            if not self._reading.cancelled():
                self._reading.exception()  # what a status other than OK raises
            code: grpc.StatusCode = await self.call.code()
            return code

    async def close(self) -> None:
        """Break it off."""
        self.call.cancel()
        self._reading.cancel()
        await asyncio.wait((self._reading,))


class Calls:
    """What a caller may do."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = rpc.ModuleServiceStub(channel)  # type: ignore[no-untyped-call]
        self._streams: list[Caller] = []

    async def stream(self, **options: Any) -> Caller:
        """Open a stream, and wait for its first message."""
        caller = Caller(self.stub.Stream(**options))
        self._streams.append(caller)
        await until(lambda: caller.messages, "the first message of a stream")
        return caller

    async def run(self, each: service.RunRequest, **options: Any) -> service.RunResponse:
        """Run one package."""
        answer: service.RunResponse = await self.stub.Run(each, **options)
        return answer

    async def close(self) -> None:
        """Break off what is open."""
        for stream in self._streams:
            await stream.close()


@asynccontextmanager
async def calling(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Calls]:
    """A channel to a server."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        calls = Calls(channel)
        try:
            yield calls
        finally:
            await calls.close()


@asynccontextmanager
async def served(module: Any, **options: Any) -> AsyncIterator[tuple[RunningServer, Calls]]:
    """A module server in this process, and a channel to it."""
    async with serve(module, **options) as server, calling(server.address) as calls:
        yield server, calls


async def watched(client: Client, name: str) -> tuple[Watch, dict[str, Any]]:
    """The servers that are announced, as they come and go."""
    seen: dict[str, Any] = {}

    def changed(servers: Mapping[str, Any]) -> None:
        seen.clear()
        seen.update(servers)

    watch = Watch(client.broker, name, changed)
    await watch.start()
    return watch, seen
