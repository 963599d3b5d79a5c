"""One phase in one worker process: pull its queue, run the modules, publish the result, then ack.

At-least-once in; the log's dedup and the leader make it once. A message is acked only when its
result is stored, kept alive while it is here, and given back (nak) when the worker drains before it
has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker, Message, Subscription
from broker_pipeline.core.names import Subjects, consumer_name
from broker_pipeline.core.plan import lanes_in
from broker_pipeline.errors import MalformedPackageError
from broker_pipeline.external.port import RelayFactory
from broker_pipeline.journey import Status
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.about import in_phase
from broker_pipeline.observe.context import span_in_phase
from broker_pipeline.observe.meter import Meter, Sample
from broker_pipeline.package import DataPackage, parse_envelope
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.ages import Ages
from broker_pipeline.runtime.execution.executor import Finished, Job, PhaseExecutor
from broker_pipeline.runtime.execution.program import in_servers
from broker_pipeline.runtime.failures import Failures
from broker_pipeline.runtime.lanes import Lanes
from broker_pipeline.runtime.loading import Loading
from broker_pipeline.runtime.phase_meter import PhaseMeter
from broker_pipeline.runtime.preparing import Preparing
from broker_pipeline.runtime.results import Here, Results
from broker_pipeline.runtime.states import StateKeeper, States
from broker_pipeline.runtime.suspects import Suspects

log = logging.getLogger(__name__)

DRAIN_STALL_S = 2.0
"""A drain in which nothing runs and no result was stored for so long ends: the broker is gone, and
will redeliver."""
SIGNS_OF_LIFE = 3
"""How often in its `ack_wait_s` a package that is still here is reported as alive."""


class PhaseWorker:
    """Runs one phase; `Worker` runs several on one connection.

    Args:
        slots: how many packages run at the same time.
        worker: this process's name in journeys.
        target: the pipeline's TARGET, for modules that are isolated in processes.
        relays: makes what calls module servers; None: no module of the phase is external.
        suspects_turn: shared by the phases of a process; None: the phase is alone in it.
        meter: counts what it does; None: nothing does.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: Pipeline,
        controller: Controller,
        phase: Phase,
        *,
        slots: int,
        worker: str,
        host: str,
        target: str | None,
        shard: int = 0,
        relays: RelayFactory | None = None,
        suspects_turn: asyncio.Lock | None = None,
        meter: Meter | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = f"{controller.name}.{phase.name}"
        self._broker, self._controller = broker, controller.name
        self._loading = Loading(broker, pipeline, self.name, room=self._ask_soon)
        self._types = pipeline.payload_types
        self._phase = phase
        self._failures = Failures(controller, phase, worker=worker, host=host, now_ns=now_ns)
        self._subjects = Subjects(pipeline.name, shard)
        self._worker = worker
        self._ages = Ages(broker, self._subjects.stream, controller)
        self._executor = PhaseExecutor(
            controller, phase, types=self._types, slots=slots, worker=worker, host=host,
            target=target, deliver=self._finished, relays=relays, room=self._ask_soon,
            load=self._loading.fetch_again, now_ns=now_ns,
        )  # fmt: skip
        self._states = (
            StateKeeper(broker, pipeline.name, shard, controller, phase) if phase.stateful else None
        )
        self._lanes: Lanes | None = None
        self._here: dict[int, Here] = {}
        self._results = Results(
            broker, self._subjects, controller, phase,
            failures=self._failures, states=self._states, loading=self._loading,
            gone=self._gone, done=self._done, room=self._ask_soon,
        )  # fmt: skip
        self._suspects = Suspects(
            broker,
            pipeline.name,
            shard,
            controller,
            phase,
            turn=suspects_turn or asyncio.Lock(),
            begin=lambda here, envelope: self._preparing.begin(here, envelope),
            fail=lambda here, envelope, begun: self._results.fail(
                here, envelope, self._failures.poison(begun)
            ),
            leave=self._gone,
        )
        self._preparing = Preparing(
            self.name, self._types, self._ages, self._states, self._loading, self._results,
            external=phase.external, in_servers=in_servers(controller, phase),
            submit=self._submit, rerun=self._executor.submit, done=self._ask_soon,
        )  # fmt: skip
        self._external, self._quota = phase.external, 0
        self._returning: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._asking = self._draining = False
        self._emptied = asyncio.Event()
        self._meter: PhaseMeter | None = None
        if meter is not None:
            self._measure(meter, pipeline.name)

    def _measure(self, meter: Meter, pipeline: str) -> None:
        labels = (pipeline, self._controller, self._phase.name)
        self._meter = self._results.meter = PhaseMeter(
            meter, labels, self._executor.program, partial(self._samples, labels)
        )
        self._executor.count_batches(self._meter.sizes_of)
        self._executor.relays.count(meter, pipeline)

    def _samples(self, labels: tuple[str, ...]) -> Iterator[Sample]:
        """What is known at a reading beside what was counted."""
        yield catalogue.PHASE_HERE.sample(*labels, value=len(self._here))
        yield catalogue.PHASE_HELD.sample(*labels, value=self._results.held)
        yield catalogue.PHASE_SLOTS.sample(*labels, value=self._executor.slots)
        yield catalogue.PHASE_LOST_SLOTS.sample(*labels, value=self._executor.lost_slots)
        if self._states is not None:
            yield catalogue.STATES_HELD.sample(*labels, value=self._states.held)
            yield catalogue.STATES_RERUN.sample(*labels, value=self._states.caught_up)
            yield catalogue.STATES_STORED.sample(*labels, value=self._states.stored)

    @property
    def exhausted(self) -> bool:
        """Whether too many slots are lost in modules that do not come back."""
        return self._executor.exhausted

    def look(self) -> None:
        """Say which module servers have gone or come; to be called now and then."""
        self._executor.look()

    async def start(self) -> None:
        """Set the modules up. Raises SetupError, and what a relay raises that will never work."""
        await self._executor.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain. Raises when the broker ends the consumption."""
        await self._ages.begin()
        least = 0 if self._external else 1
        self._subscription = subscription = await self._pull(max(least, self._executor.wanted()))
        self._ask_soon()  # servers may have come meanwhile, which are told of once
        try:
            await self._work(subscription, stop)
        finally:
            self._draining = True
            self._preparing.cancel()
            for task in self._returning:
                task.cancel()
            self._results.close()
            await self._results.settle(0)
            await subscription.stop()

    async def _pull(self, credit: int) -> Subscription:
        broker, names = self._broker, (self._controller, self._phase.name)
        if self._states is None:
            stream, consumer = self._subjects.stream, consumer_name(*names)
            return await broker.consume(stream, consumer, self._delivered, credit=credit)
        self._lanes = lanes = Lanes(
            broker, self._subjects, names, lanes_in(self._phase), worker=self._worker,
            states=self._states, handler=self._delivered, give_back=self._give_back,
            is_here=lambda token: any(each.token == token for each in self._here.values()),
        )  # fmt: skip
        return await lanes.start(credit)

    async def _work(self, subscription: Subscription, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._results.publish_all(), name=f"publish {self.name}"),
                group.create_task(self._results.finish_all(), name=f"ack {self.name}"),
                group.create_task(self._suspects.serve(), name=f"suspects {self.name}"),
                group.create_task(self._keep_alive(), name=f"keep alive {self.name}"),
            ]
            helpers += self._ages.keep(group, f"clock {self.name}")
            stopping = group.create_task(stop.wait(), name=f"stop {self.name}")
            await asyncio.wait((subscription.failed, stopping), return_when=asyncio.FIRST_COMPLETED)
            if subscription.failed.done():
                subscription.failed.result()
            await self._drain(subscription)
            for task in (stopping, *helpers):
                task.cancel()

    async def close(self) -> None:
        """Tear the modules down."""
        await self._executor.close()
        if self._meter is not None:
            self._meter.close()

    async def _drain(self, subscription: Subscription) -> None:
        """Take no more, give back what has not begun, finish the rest."""
        self._draining = True
        await subscription.stop()
        await self._give_back(lambda token: True)
        self._executor.recall()
        self._check_emptied()
        while not self._emptied.is_set():
            before = len(self._here)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_STALL_S):
                    await self._emptied.wait()
            idle = self._executor.idle and not self._loading.putting
            if idle and len(self._here) == before:
                log.warning(
                    "%d packages of %s are left to other workers: the broker stores no results",
                    before,
                    self.name,
                    extra=in_phase(self.name),
                )
                return
        if self._states is not None:
            await self._results.settle(DRAIN_STALL_S)
            await self._states.store_all(DRAIN_STALL_S)

    async def _give_back(self, gone: Callable[[str], bool]) -> None:
        """Leave to others what has not begun of these instances."""
        not_begun = await self._preparing.withdraw(gone)
        not_begun += self._suspects.withdraw(gone)
        for job in self._executor.withdraw():
            if isinstance(job.token, Here) and gone(job.token.token):
                not_begun.append(job.token)
                if self._meter is not None:
                    self._meter.given_back(job)
            elif not (isinstance(job.token, asyncio.Future) and job.token.done()):
                self._executor.submit([job])
        for here in not_begun:
            self._gone(here)
        await self._suspects.spare(not_begun)
        for here in not_begun:
            await self._broker.nak(here.message)

    # -- in -------------------------------------------------------------------------------------
    def _delivered(self, message: Message) -> None:
        if (known := self._here.get(message.stream_seq)) is not None:
            known.message = message  # it is still being run here, for longer than the broker knew
            return
        here = Here(message, message.subject.rpartition(".")[2], asyncio.get_running_loop().time())
        self._here[message.stream_seq] = here
        if self._meter is not None:
            self._meter.came(here)
        self._quota -= 1
        if self._quota == 0 and self._external and self._subscription is not None:
            self._subscription.set_credit(0)  # until `_ask`: another bridge's servers may have room
        try:
            envelope = parse_envelope(message.data)
            envelope.controllers[-1].mode  # noqa: B018 - a package on its way has a record here
        except (MalformedPackageError, IndexError) as error:
            log.error(
                "message %d in queue %s is no package: %s", message.stream_seq, self.name, error,
                extra=in_phase(self.name, here.token),
            )  # fmt: skip
            self._results.put_stored(here)
            return
        if message.delivered > self._suspects.trusted:
            self._suspects.park(here, envelope)
        else:
            self._preparing.begin(here, envelope)
        self._ask_soon()

    def _ask_soon(self) -> None:
        """Ask once for all that comes in this turn of the loop: it costs as much as a message."""
        if not self._asking:
            self._asking = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._asking = False
        if self._subscription is not None and not self._draining:
            wanted = self._executor.wanted() - self._preparing.count
            self._quota = 0 if self._results.full else max(0, wanted)
            self._subscription.set_credit(self._quota)

    def _submit(self, here: Here, envelope: pb.DataPackage, states: States | None) -> None:
        if self._ages.too_old(envelope):
            self._failures.pass_over(envelope)
            if self._meter is not None:
                self._meter.passed_over.value += 1
            job = Job(DataPackage.wrap(envelope), here, None)
            self._results.put(Finished(job, envelope, Status.OUTDATED, None))
            return
        gate = None if here.attempt is None else partial(self._suspects.admit, here)
        package = DataPackage.wrap(envelope, self._types)
        span = span_in_phase(here.message.headers, envelope, self._phase.name)
        job = Job(package, here, states, gate, span)
        if self._meter is not None:
            self._meter.submitted(job)
        self._executor.submit([job])

    # -- out ------------------------------------------------------------------------------------
    def _finished(self, finished: list[Finished]) -> None:
        for each in finished:
            if self._meter is not None:
                self._meter.finished(each)
            token = each.job.token
            if isinstance(token, asyncio.Future):
                if not token.done():
                    token.set_result(each)
            elif each.status is not Status.WAITING:
                self._results.put(each)
            elif isinstance(token, Here) and token.message.stream_seq in self._here:
                task = asyncio.create_task(self._return(each, token), name=f"give back {self.name}")
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
        self._ask_soon()

    async def _return(self, finished: Finished, here: Here) -> None:
        """No module server has it, and nobody waits for one here any more."""
        if not finished.begun:
            await self._suspects.spare([here])
        await self._broker.nak(here.message)
        self._gone(here)

    def _gone(self, here: Here) -> None:
        self._here.pop(here.message.stream_seq, None)
        self._loading.let_go(here)
        if here.attempt is not None:
            here.attempt.ended.set()
        self._check_emptied()

    async def _done(self, token: str) -> None:
        if self._lanes is not None:
            await self._lanes.let_go_of_another(token)

    def _check_emptied(self) -> None:
        if self._draining and not self._here:
            self._emptied.set()

    async def _keep_alive(self) -> None:
        """Report packages that are here for long as alive, before the broker gives them away."""
        period = self._phase.ack_wait_s / SIGNS_OF_LIFE
        while True:
            await asyncio.sleep(period)
            now = asyncio.get_running_loop().time()
            for here in list(self._here.values()):
                if now - here.since < period / 2:
                    break  # the others came later
                await self._broker.in_progress(here.message)
