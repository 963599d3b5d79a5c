"""The relays of a phase's external modules: made, called, asked for their room, and let go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import BrokerError, ModuleServerError, SetupError
from broker_pipeline.external.port import Answer, Relay, RelayFactory, WithdrawnError
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.modules import ExternalModule
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Histogram, Meter, Metric, Sample
from broker_pipeline.runtime.execution.program import Kind, Program, Step

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
"""Between two attempts to load an answer's payload, doubling from the first to the last."""

FAILED = "failed"
"""The outcome of a call to which no answer came."""
_OUTCOMES: dict[Any, str] = {STATUS_TO_PB[Status(end.upper())]: end for end in catalogue.ENDS}

Load = Callable[[pb.DataPackage], Awaitable[None]]


class _Called:
    """A relay with the calls that are in it."""

    __slots__ = ("inside", "module", "named", "relay", "times", "were_there", "withdrawn")

    def __init__(self, relay: Relay, module: ExternalModule, named: str) -> None:
        self.relay = relay
        self.module = module
        self.named = named
        self.inside = 0
        self.were_there = True
        self.withdrawn = False
        self.times: dict[str, Histogram] | None = None

    async def call(
        self,
        package: pb.DataPackage,
        *,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> Answer:
        """See `Relay.call`; on the worker's loop."""
        self.inside += 1
        begun_ns, outcome = time.monotonic_ns(), FAILED
        try:
            answer = await self.relay.call(
                package, state=state, deadline_ns=deadline_ns, traceparent=traceparent
            )
            outcome = _OUTCOMES.get(answer.response.status, FAILED)
            return answer
        except WithdrawnError:
            outcome = catalogue.GIVEN_BACK
            raise
        finally:
            self.inside -= 1
            if self.times is not None:
                self.times[outcome].observe(time.monotonic_ns() - begun_ns)

    async def call_and_load(
        self,
        load: Load,
        package: pb.DataPackage,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str,
    ) -> Answer:
        """The same, with the payload in its place: modules of ours come behind it. Waits for a
        broker that is away, which the walk's deadline ends, or a drain."""
        answer = await self.call(
            package, state=state, deadline_ns=deadline_ns, traceparent=traceparent
        )
        payload = answer.response.payload
        delay = RETRY_MIN_S
        while payload.HasField("reference"):
            holder = pb.DataPackage(reference=payload.reference)
            try:
                await load(holder)
            except BrokerError as error:
                if self.withdrawn:
                    raise self._unloaded(answer, error) from error
                log.warning("an answer of %s is not loaded yet: %s", self.named, error)
                await asyncio.sleep(delay)
                delay = min(RETRY_MAX_S, delay * 2)
            else:
                payload.data = holder.data
                payload.ClearField("reference")
        return answer

    def _unloaded(self, answer: Answer, error: BrokerError) -> Exception:
        """A drain waits for no broker, and gives back only what may run twice."""
        if self.module.options.idempotent:
            return WithdrawnError()
        return ModuleServerError(
            f"module server {answer.server!r} has run it for {self.named!r}, and its answer could "
            f"not be loaded while this worker drained ({error}); it is not run again: where it may "
            f"be, declare the module with idempotent=True",
            server=answer.server,
        )


class Relays:
    """What calls the servers of a phase's external modules. All on the worker's loop, but for the
    calls of walks that run on the module loop, which hop.

    Args:
        program: its external steps get their `remote`.
        factory: makes relays; None: the phase may have no external modules.
        room: called when there is room for more.
        load: puts the payload of a package with a reference into its place; None: none comes so.
    """

    def __init__(
        self,
        program: Program,
        factory: RelayFactory | None,
        room: Callable[[], None],
        load: Load | None = None,
    ) -> None:
        self._load = load
        self._program = program
        self._factory = factory
        self._room = room
        self._all: list[_Called] = []
        self._meter: Meter | None = None
        self._pipeline = ""
        self._uncount: Callable[[], None] = lambda: None

    def count(self, meter: Meter, pipeline: str) -> None:
        """Count what calls take and how servers stand; before `start`."""
        self._meter, self._pipeline = meter, pipeline
        self._uncount = meter.add_source(self._samples)

    def _samples(self) -> Iterator[Sample]:
        sums: Counter[tuple[Metric, tuple[str, ...]]] = Counter()  # two may have the same name
        for each in self._all:
            labels, state = self._labels(each), each.relay.state()
            for name, count in state.servers.items():
                sums[catalogue.RELAY_SERVERS, (*labels, name)] += count
            sums[catalogue.RELAY_CALLS, labels] += state.calls
            sums[catalogue.RELAY_SENT, labels] += state.sent
            sums[catalogue.RELAY_CREDIT, labels] += state.credit
            sums[catalogue.RELAY_REPEATS, labels] += state.repeats
            sums[catalogue.RELAY_EJECTIONS, labels] += state.ejections
        for (metric, labels), value in sums.items():
            yield metric.sample(*labels, value=value)

    def _labels(self, called: _Called) -> tuple[str, ...]:
        controller, phase, module = called.named.split("/", 2)
        return self._pipeline, controller, phase, module, called.module.target

    def _times(self, called: _Called) -> dict[str, Histogram] | None:
        meter, labels = self._meter, self._labels(called)
        outcomes = (*catalogue.ENDS, catalogue.GIVEN_BACK, FAILED)
        if meter is None:
            return None
        return {end: meter.histogram(catalogue.RELAY_TIME, *labels, end) for end in outcomes}

    def check(self) -> None:
        """Raises SetupError where servers are to be called and nothing here can."""
        external = [step for step in self._program.walk() if step.kind is Kind.EXTERNAL]
        if external and self._factory is None:
            raise SetupError(
                f"module {external[0].label!r} runs in module servers, and this worker cannot call "
                f"them; expected a relay factory: start it by `broker-pipeline bridge` or `worker`",
                module=external[0].label,
            )

    async def start(self) -> None:
        """Have them look for servers; waits for none. Raises what `Relay.start` does."""
        by_object: dict[int, _Called] = {}  # a module object may stand at several places
        for step in self._program.walk():
            if step.kind is not Kind.EXTERNAL:
                continue
            called = by_object.get(id(step.module))
            if called is None:
                called = by_object[id(step.module)] = await self._begin(step)
            step.remote = called.call if self._program.external else _hopping(called, self._load)

    async def _begin(self, step: Step) -> _Called:
        assert self._factory is not None and isinstance(step.module, ExternalModule)
        called = _Called(self._factory(step.module, self._room), step.module, step.label)
        called.times = self._times(called)
        self._all.append(called)  # before it starts: one that cannot is closed too
        await called.relay.start()
        return called

    def wanted(self, live: int, outstanding: int) -> int:
        """How many more packages an external phase takes: as many as servers have room for now.

        What no server would take now waits in the broker, where every bridge can have it. A phase
        of several modules takes none while one of them is full.

        Args:
            live: how many may be here at most.
            outstanding: how many are here.
        """
        called = sum(each.inside for each in self._all)
        rooms = [each.relay.room for each in self._all]
        if min(rooms, default=0) <= 0:
            return 0
        return max(0, min(live - outstanding, rooms[0] - (outstanding - called)))

    def withdraw(self) -> None:
        """Take back the calls that no server has, and have none wait from now on."""
        for each in self._all:
            each.withdrawn = True
            each.relay.withdraw()

    def look(self) -> None:
        """Say where no server is there any more, and where one is there again.

        Raises: what has ended a relay, which nobody foresaw: nothing goes through it any more.
        """
        for each in self._all:
            if each.relay.failed is not None:
                raise each.relay.failed
            are_there = each.relay.servers > 0
            if are_there != each.were_there:
                each.were_there = are_there
                target = each.module.target
                if are_there:
                    log.warning("servers of %s are there again, for %s", target, each.named)
                else:
                    log.warning(
                        "no server of %s is there; packages wait, for %s", target, each.named
                    )

    async def close(self) -> None:
        """Let go of the servers."""
        self._uncount()
        ending, self._all = self._all, []
        for each in ending:
            await each.relay.close()


def _hopping(called: _Called, load: Load | None) -> Callable[..., object]:
    """A call from the module loop: the relay lives on the loop that is running now."""
    home = asyncio.get_running_loop()

    async def hop(
        package: pb.DataPackage, *, state: bytes | None, deadline_ns: int | None, traceparent: str
    ) -> Answer:
        if load is None:
            calling = called.call(
                package, state=state, deadline_ns=deadline_ns, traceparent=traceparent
            )
        else:
            calling = called.call_and_load(load, package, state, deadline_ns, traceparent)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(calling, home))

    return hop
