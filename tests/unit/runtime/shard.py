"""A shard over the in-memory broker: leaders, workers that do as they are told, and checkers that
look at what left and at nothing else."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Broker, Message, OrderedPublisher
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects, completion_id, ingress_subject, stream_name
from broker_pipeline.errors import BrokerPipelineError, ConnectionLostError
from broker_pipeline.journey import NS, STATUS_TO_PB, Outcome, Status
from broker_pipeline.runtime.leader import Leader
from broker_pipeline.runtime.leader_meter import LeaderMeter

BOUND_S = 30.0
NAME = "demo"
STREAM = stream_name(NAME)
SUBJECTS = Subjects(NAME)


class Clock:
    """Log time: the broker's and the leaders'."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000 * NS

    def __call__(self) -> int:
        return self.ns


class Pass(ExecutionModule[bytes]):
    """Does nothing."""

    def execute(self, package: Any, run: Any) -> None:
        """Nothing."""


def pipeline(*modes: Mode, **options: Any) -> Pipeline:
    """Controllers c0, c1, ... of these modes, with one phase each."""
    controllers = []
    for index, mode in enumerate(modes):
        bounds = {} if mode is Mode.NOT_PARALLEL else {"max_workers": 3}
        phase = Phase("p", [Pass()], ack_wait_s=5.0)
        controllers.append(Controller(f"c{index}", mode=mode, phases=[phase], **bounds))
    return Pipeline(NAME, controllers, **options)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Give way until it is true; fail after BOUND_S seconds."""
    try:
        async with asyncio.timeout(BOUND_S):
            while not condition():  # noqa: ASYNC110 - the broker in memory has no event for it
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S} s: {what or condition}") from None


async def turns(count: int) -> None:
    """Let the others have so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


class Shard:
    """A deployed pipeline on a broker in memory."""

    def __init__(self, server: MemoryServer, clock: Clock) -> None:
        self.server = server
        self.clock = clock
        self.broker: MemoryBroker = server.connect()
        self.sent: dict[str, list[bytes]] = defaultdict(list)
        self.leaders: list[Running] = []

    @classmethod
    async def begin(cls, deployed: Pipeline, **options: Any) -> Shard:
        """Deploy a pipeline on a new broker."""
        clock = Clock()
        shard = cls(MemoryServer(now_ns=clock, **options), clock)
        await deploy(shard.broker, deployed)
        return shard

    async def send(self, instance: str, data: bytes, **headers: str) -> None:
        """Publish raw bytes, as any NATS client does."""
        self.clock.ns += 1_000
        self.sent[instance].append(data)
        await self.broker.publish(ingress_subject(NAME, instance), data, headers=headers or None)

    def lead(self, broker: Broker | None = None, meter: LeaderMeter | None = None) -> Running:
        """Start a leader."""
        running = Running(self, broker or self.server.connect(), meter)
        self.leaders.append(running)
        return running

    async def end(self) -> None:
        """Stop all leaders that still run."""
        for leader in self.leaders:
            await leader.kill()
        await self.broker.close()

    # -- what is in the log ---------------------------------------------------------------------
    def messages(self, prefix: str) -> list[Message]:
        """The messages whose subjects begin so."""
        stream = self.server.stream(STREAM)
        return list(stream.messages_from(1, lambda subject: subject.startswith(prefix)))

    def left(self) -> list[pb.DataPackage]:
        """What has left, in order."""
        return [pb.DataPackage.FromString(m.data) for m in self.messages(SUBJECTS.out)]

    async def until_all_left(self) -> None:
        """Wait until as many have left as were sent."""
        total = sum(len(each) for each in self.sent.values())
        await until(
            lambda: len(self.messages(SUBJECTS.out)) >= total, f"all {total} packages have left"
        )
        await turns(50)  # a double would come now

    def check(self, last: Mode) -> None:
        """Each package has exactly one outcome and none is lost; the order is that of the mode."""
        left = self.left()
        ids = [package.id for package in left]
        assert len(ids) == len(set(ids)), "a package has two outcomes"
        for instance, payloads in self.sent.items():
            mine = [package for package in left if package.instance == instance]
            by_sequence = {package.sequence: package.data for package in mine}
            assert by_sequence == dict(enumerate(payloads, start=1)), "lost, or another's payload"
            check_order(mine, last)
        for message in self.messages(SUBJECTS.work):
            assert message.headers["Nats-Msg-Id"], "dispatched without an id"
        dispatched = [m.headers["Nats-Msg-Id"] for m in self.messages(SUBJECTS.work)]
        assert len(dispatched) == len(set(dispatched)), "dispatched twice"


def check_order(packages: list[pb.DataPackage], last: Mode) -> None:
    """The order in which an instance's packages have left its last controller."""
    newest = 0
    for package in packages:
        if package.outcome == STATUS_TO_PB[Outcome.SUCCESS]:
            sequence = package.controllers[-1].sequence
            assert last is Mode.NO_ORDER or sequence > newest, f"{sequence} after {newest}"
            newest = max(newest, sequence)
        elif package.outcome == STATUS_TO_PB[Outcome.OUTDATED]:
            assert last is Mode.FIRST_WINS
            assert package.controllers[-1].sequence < newest, "outdated, not overtaken"


class Running:
    """A leader as a task."""

    def __init__(self, shard: Shard, broker: Broker, meter: LeaderMeter | None = None) -> None:
        self.broker = broker
        self.stop = asyncio.Event()
        self.leader = Leader(broker, NAME, 0, now_ns=shard.clock, meter=meter)
        self.task = asyncio.create_task(self.leader.run(self.stop), name="leader")

    async def kill(self) -> None:
        """As SIGKILL: nothing of it runs on."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.broker.close()

    async def stopped(self) -> None:
        """As SIGTERM; raises what it raises."""
        self.stop.set()
        async with asyncio.timeout(BOUND_S):
            await self.task
        await self.broker.close()


class CrashingBroker:
    """A connection that breaks with its k-th operation, before or after that took place."""

    def __init__(self, server: MemoryServer, k: int, *, after: bool = False) -> None:
        self._server = server
        self._real = server.connect()
        self._after = after
        self._left = k
        self.crashed = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not asyncio.iscoroutinefunction(real) or name == "close":
            return real

        async def counted(*args: Any, **options: Any) -> Any:
            return await self.count(real, *args, **options)

        return counted

    def ordered_publisher(self, stream: str) -> OrderedPublisher:
        """Its publishes count too."""
        return _CrashingPublisher(self, self._real.ordered_publisher(stream))

    async def count(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """One operation."""
        self._left -= 1
        if self._left:
            return await call(*args, **options)
        self.crashed = True
        try:
            if self._after:
                await call(*args, **options)
        finally:
            self._server.disconnect(self._real)
        raise ConnectionLostError("this is where it crashes")


class _CrashingPublisher:
    def __init__(self, crashing: CrashingBroker, real: OrderedPublisher) -> None:
        self._crashing = crashing
        self._real = real

    @property
    def failed(self) -> asyncio.Future[None]:
        return self._real.failed

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        await self._crashing.count(self._real.publish, subject, data, msg_id=msg_id)

    async def seal(self) -> None:
        await self._crashing.count(self._real.seal)

    async def close(self) -> None:
        await self._crashing.count(self._real.close)


class Hands:
    """Workers that finish what is in the queues, in an order and with outcomes of chance."""

    def __init__(self, shard: Shard, chance: random.Random) -> None:
        self._shard = shard
        self._chance = chance
        self.waiting: list[Message] = []
        self._broker = shard.server.connect()

    async def begin(self) -> Hands:
        """Watch the queues."""
        await self._broker.read(STREAM, f"{SUBJECTS.work}>", self.waiting.append)
        return self

    async def finish_one(self) -> bool:
        """Complete one of those that wait; False where none does."""
        if not self.waiting:
            return False
        message = self.waiting.pop(self._chance.randrange(len(self.waiting)))
        outcome = self._chance.choice([Status.SUCCESS] * 6 + [Status.EXIT, Status.ERROR])
        await self.complete(message, outcome)
        if self._chance.random() < 0.1:
            await self.complete(message, Status.SUCCESS)  # once more, as after a lost ack
        return True

    async def complete(self, message: Message, outcome: Status) -> None:
        """Publish a result."""
        package = pb.DataPackage.FromString(message.data)
        record = package.controllers[-1]
        record.phases.add(name="p", status=STATUS_TO_PB[outcome], worker="hands")
        self._shard.clock.ns += 1_000
        await self._broker.publish(
            SUBJECTS.completion(record.name, message.subject.rpartition(".")[2]),
            package.SerializeToString(),
            msg_id=completion_id(package.id, record.name),
        )

    async def until_all_left(self) -> None:
        """Finish everything until as much has left as was sent."""
        total = sum(len(each) for each in self._shard.sent.values())
        async with asyncio.timeout(BOUND_S):
            while len(self._shard.messages(SUBJECTS.out)) < total:
                if not await self.finish_one():
                    await asyncio.sleep(0)
        await turns(50)

    async def end(self) -> None:
        """Close the connection."""
        await self._broker.close()


async def outcome_of(task: asyncio.Task[Any]) -> BrokerPipelineError | None:
    """What a role ended with."""
    async with asyncio.timeout(BOUND_S):
        try:
            await task
        except BrokerPipelineError as error:
            return error
    return None
