"""What a leader asks the broker now and then, for metrics: the log, the queues, the oldest inside.

Off the way of packages: a few requests every LOOK_EVERY_S. What they say is up to so old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from broker_pipeline.broker.introspection import ConsumerState
from broker_pipeline.broker.port import Broker, StreamStatus
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import Subjects, log_subjects
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Sample

LOOK_EVERY_S = 5.0
"""Prometheus asks every 15 s or so, and alerts wait for minutes."""


class _Queue:
    """The queue of a phase, over all its lanes."""

    def __init__(self, states: list[ConsumerState], oldest: int | None) -> None:
        self.pending = sum(state.pending for state in states)
        self.delivered = sum(state.ack_pending for state in states)
        self.redelivered = sum(state.redelivered for state in states)
        self.oldest = oldest


class Looks:
    """The broker's answers about one shard, for one term of leadership.

    Args:
        labels: the pipeline and the shard.
    """

    def __init__(self, broker: Broker, labels: tuple[str, str]) -> None:
        self._broker = broker
        self._labels = labels
        self._subjects = Subjects(labels[0], int(labels[1]))
        self._ingress = set(log_subjects(labels[0], int(labels[1])))
        self._status: StreamStatus | None = None
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._times: dict[int, int] = {}
        self._oldest: list[int | None] = []

    async def look(self, machine: Machine) -> None:
        """Ask. Raises BrokerError where there is no answer."""
        plan = machine.plan
        if plan is None:
            return
        stream = self._subjects.stream
        self._status = await self._broker.stream_status(stream)
        await self._look_at_queues(plan, await self._broker.consumer_states(stream))
        ids = machine.oldest_by_controller()
        self._oldest = [None if each is None else await self._arrived(each) for each in ids]
        self._times = {
            each: time for each, time in zip(ids, self._oldest, strict=True) if each and time
        }

    async def _look_at_queues(self, plan: Plan, states: Mapping[str, ConsumerState]) -> None:
        for controller in plan.controllers:
            for phase in controller.phases:
                consumers = self._subjects.consumers(controller.name, phase.name, phase.lanes)
                found = [(states[name], filter) for name, filter in consumers if name in states]
                busy = [each for each in found if each[0].pending or each[0].ack_pending]
                oldest = None
                if busy:
                    first, filter = min(busy, key=lambda each: each[0].needs)
                    message = await self._broker.next_message(
                        self._subjects.stream, filter, start_seq=first.needs
                    )
                    oldest = None if message is None else message.time
                queue = _Queue([state for state, _ in found], oldest)
                self._queues[controller.name, phase.name] = queue

    async def _arrived(self, stream_seq: int) -> int | None:
        """When a package arrived, ns: its message may be history, then at the latest."""
        if (known := self._times.get(stream_seq)) is not None:
            return known
        stream = self._subjects.stream
        message = await self._broker.next_message(stream, ">", start_seq=stream_seq)
        return None if message is None else message.time

    # -- a reading ------------------------------------------------------------------------------
    def samples(self, machine: Machine) -> Iterator[Sample]:
        """What the broker said last."""
        labels, status = self._labels, self._status
        if status is None or machine.plan is None:
            return
        yield catalogue.LOG_FIRST.sample(*labels, value=status.state.first_seq)
        yield catalogue.LOG_LAST.sample(*labels, value=status.state.last_seq)
        yield catalogue.LOG_MESSAGES.sample(*labels, value=status.state.messages)
        yield catalogue.LOG_BYTES.sample(*labels, value=status.state.bytes)
        if machine.plan.log_bytes_max is not None:
            yield catalogue.LOG_LIMIT.sample(*labels, value=machine.plan.log_bytes_max)
        is_open = self._ingress <= set(status.subjects)
        yield catalogue.LOG_OPEN.sample(*labels, value=is_open)
        for (controller, phase), queue in self._queues.items():
            own = (*labels, controller, phase)
            yield catalogue.QUEUE_PENDING.sample(*own, value=queue.pending)
            yield catalogue.QUEUE_DELIVERED.sample(*own, value=queue.delivered)
            yield catalogue.QUEUE_REDELIVERED.sample(*own, value=queue.redelivered)
            if queue.oldest is not None:
                yield catalogue.QUEUE_OLDEST.sample(*own, value=queue.oldest / NS)
        tallies = machine.tallies.controllers
        for rules, tally, time in zip(
            machine.plan.controllers, tallies, self._oldest, strict=False
        ):
            if time is not None and tally.inside:
                yield catalogue.CONTROLLER_OLDEST.sample(*labels, rules.name, value=time / NS)
