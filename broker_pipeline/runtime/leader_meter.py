"""What a controller counts: what the machine knows, what its own output took, and where it stands.

The machine's counts are those of the log, and the same whoever leads. So only who leads tells them,
and a new leader not before it has read what there was when it began: until then they would lie
behind what the one before has told. Times are of what this process has published itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.commands import Command, Dispatch, Entered
from broker_pipeline.core.plan import Plan
from broker_pipeline.core.tallies import OUTCOMES, Tally
from broker_pipeline.errors import BrokerError, ConnectionLostError
from broker_pipeline.journey import Outcome
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Histogram, Meter, Metric, Sample
from broker_pipeline.runtime.leader_looks import LOOK_EVERY_S, Looks
from broker_pipeline.runtime.per_instance import PerInstance

if TYPE_CHECKING:
    from broker_pipeline.runtime.leader import Leader

log = logging.getLogger(__name__)

STANDS_BY = "standing_by"
RECOVERS = "recovering"
CATCHES_UP = "catching_up"
LEADS = "leading"
STATES = (STANDS_BY, RECOVERS, CATCHES_UP, LEADS)


class _ControllerTimes:
    """The histograms of one controller."""

    __slots__ = ("_by_outcome", "_success", "_waited_in", "_waited_out")

    def __init__(self, meter: Meter, *labels: str) -> None:
        self._by_outcome = _by_outcome(meter, catalogue.CONTROLLER_TIME, labels)
        self._success = self._by_outcome[Outcome.SUCCESS]
        self._waited_in = meter.histogram(catalogue.CONTROLLER_WAITED_IN, *labels)
        self._waited_out = meter.histogram(catalogue.CONTROLLER_WAITED_OUT, *labels)

    def left(self, record: pb.ControllerRecord, outcome: Outcome) -> None:
        """A package has left it, with this record."""
        times = self._success if outcome is Outcome.SUCCESS else self._by_outcome[outcome]
        times.observe(record.total_time_ns)
        self._waited_in.observe(record.input_waiting_time_ns)
        self._waited_out.observe(record.output_waiting_time_ns)


class LeaderMeter:
    """Counts for one shard in one process, over all its terms of leadership.

    Args:
        instances: how many instances are told apart; 0: none.

    Attributes:
        state: one of STATES.
        close: ends it.
    """

    def __init__(self, meter: Meter, pipeline: str, shard: int, *, instances: int = 0) -> None:
        self.state = STANDS_BY
        self._meter = meter
        self._labels = labels = (pipeline, str(shard))
        self._times = _by_outcome(meter, catalogue.PACKAGE_TIME, labels)
        self._success = self._times[Outcome.SUCCESS]
        self._terms = meter.counter(catalogue.LEADER_TERMS, *labels)
        self._sealed = meter.histogram(catalogue.LEADER_PUBLISH, *labels)
        self._saved = meter.histogram(catalogue.SNAPSHOT_TIME, *labels)
        self._per_instance = PerInstance(labels, instances) if instances else None
        self._plan: Plan | None = None
        self._controllers: list[_ControllerTimes] = []
        self._leader: Leader | None = None
        self._looks: Looks | None = None
        self._snapshot_bytes = 0
        self._saved_at = 0.0
        self.close = meter.add_source(self.read)

    # -- a term, as the leader tells it ---------------------------------------------------------
    def begins(self, leader: Leader) -> None:
        """A term begins: the leader recovers."""
        self._terms.value += 1
        self._leader, self.state = leader, RECOVERS

    def recovered(self, *, behind: bool) -> None:
        """It applies what comes; `behind`: and what has come."""
        self.state = CATCHES_UP if behind else LEADS
        self._saved_at = asyncio.get_running_loop().time()

    def caught_up(self) -> None:
        """It has applied what there was when it began."""
        self.state = LEADS

    def ends(self) -> None:
        """The term is over."""
        self._leader, self._looks, self.state = None, None, STANDS_BY

    def publishes(self, plan: Plan, command: Command, envelope: pb.DataPackage) -> None:
        """A command is published, with the envelope that was just written. Takes 2 us for a package
        that leaves, and 0.1 us for one that is dispatched as it came."""
        stamps = command.stamps
        if isinstance(command, Dispatch):
            if len(stamps) == 1:
                return  # it has left nothing yet
        else:
            outcome, arrived = command.outcome, command.package.arrived
            if arrived:
                success = outcome is Outcome.SUCCESS  # of others the hash is looked up, slowly
                times = self._success if success else self._times[outcome]
                times.observe(max(0, command.time - arrived))
            if self._per_instance is not None:
                self._per_instance.left(command.instance, outcome)
        if plan is not self._plan:
            self._follow(plan)
        records = envelope.controllers
        place = len(records) - 1
        if len(stamps) > 1:
            place -= sum([isinstance(stamp, Entered) for stamp in stamps])
        for stamp in stamps:
            if isinstance(stamp, Entered):
                place += 1
            else:
                self._controllers[stamp.controller].left(records[place], stamp.outcome)

    def sealed(self, took_ns: int) -> None:
        """The broker has confirmed all that was published."""
        self._sealed.observe(took_ns)

    def saved(self, took_ns: int, size: int) -> None:
        """A snapshot is stored, of so many bytes."""
        self._saved.observe(took_ns)
        self._snapshot_bytes = size
        self._saved_at = asyncio.get_running_loop().time()

    def looking(self, broker: Broker, leader: Leader) -> asyncio.Task[None]:
        """A task that asks the broker now and then for what only it knows, beside the packages;
        what it says is told at the next reading."""
        return asyncio.create_task(
            self._look(broker, leader), name=f"look at {'/'.join(self._labels)}"
        )

    async def _look(self, broker: Broker, leader: Leader) -> None:
        looks = Looks(broker, self._labels)
        while True:
            try:
                await looks.look(leader.machine)
                self._looks = looks
            except ConnectionLostError:
                return  # the leader ends for the same reason
            except BrokerError as error:
                self._looks = None  # better nothing than what is no longer so
                log.debug("the broker does not say how %s is: %s", "/".join(self._labels), error)
            await asyncio.sleep(LOOK_EVERY_S)

    def _follow(self, plan: Plan) -> None:
        self._plan = plan
        self._controllers = [
            _ControllerTimes(self._meter, *self._labels, controller.name)
            for controller in plan.controllers
        ]

    # -- a reading ------------------------------------------------------------------------------
    def read(self) -> Iterator[Sample]:
        """What is known now."""
        labels, leads = self._labels, self.state in (CATCHES_UP, LEADS)
        yield catalogue.LEADER.sample(*labels, value=leads)
        for state in STATES:
            yield catalogue.LEADER_STATE.sample(*labels, state, value=state == self.state)
        leader = self._leader
        if leader is None or not leads:
            return
        messages, seconds = leader.lag()
        yield catalogue.LEADER_LAG.sample(*labels, value=messages)
        yield catalogue.LEADER_LAG_TIME.sample(*labels, value=seconds)
        yield catalogue.SNAPSHOT_BYTES.sample(*labels, value=self._snapshot_bytes)
        age = asyncio.get_running_loop().time() - self._saved_at if leader.unsaved else 0.0
        yield catalogue.SNAPSHOT_AGE.sample(*labels, value=age)
        yield catalogue.INSTANCES.sample(*labels, value=len(leader.machine.instances))
        yield catalogue.PRODUCER_GAPS.sample(*labels, value=len(leader.machine.gaps))
        if self._looks is not None:
            yield from self._looks.samples(leader.machine)
        if self.state == LEADS and leader.machine.plan is not None:
            yield from self._counts(leader, leader.machine.plan)

    def _counts(self, leader: Leader, plan: Plan) -> Iterator[Sample]:
        labels, tallies = self._labels, leader.machine.tallies
        pipeline = tallies.pipeline
        yield catalogue.PACKAGES_IN.sample(*labels, value=pipeline.came)
        yield from _left(catalogue.PACKAGES_OUT, labels, pipeline)
        yield catalogue.PACKAGES_INSIDE.sample(*labels, value=pipeline.inside)
        for rules, tally in zip(plan.controllers, tallies.controllers, strict=True):
            own = (*labels, rules.name)
            yield catalogue.CONTROLLER_IN.sample(*own, value=tally.came)
            yield from _left(catalogue.CONTROLLER_OUT, own, tally)
            yield catalogue.CONTROLLER_PROCESSING.sample(*own, value=tally.processing)
            yield catalogue.CONTROLLER_WAITING_IN.sample(*own, value=tally.waiting_in)
            yield catalogue.CONTROLLER_WAITING_OUT.sample(*own, value=tally.waiting_out)
        if self._per_instance is not None:
            yield from self._per_instance.samples(leader.machine)


def _left(metric: Metric, labels: tuple[str, ...], tally: Tally) -> Iterator[Sample]:
    for outcome, count in zip(OUTCOMES, tally.left, strict=True):
        yield metric.sample(*labels, outcome.lower(), value=count)


def _by_outcome(meter: Meter, metric: Metric, labels: tuple[str, ...]) -> dict[Outcome, Histogram]:
    return {outcome: meter.histogram(metric, *labels, outcome.lower()) for outcome in OUTCOMES}
