"""The controllers once more, from the log's ctl messages alone: `tests/property/naive.py` applied.

Slow and plain. What it says must have been dispatched, and must have left, is compared with what
the log holds; it shares no decision with the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
    TICK_PAUSE,
    TICK_RESUME,
    Subjects,
)
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import STATUS_TO_PB, Outcome
from tests.property.naive import NaiveChain, NaiveProducer

_OUTCOMES = {STATUS_TO_PB[each]: each for each in Outcome}


@dataclass
class Life:
    """One life of an instance."""

    token: str
    epoch: int
    chain: NaiveChain
    active: int
    closing: bool = False
    producers: dict[str, NaiveProducer] = field(default_factory=dict)
    parked: list[Message] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    gaps: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def drained(self) -> bool:
        """Nothing is inside and nothing is waited for."""
        return not self.chain.inside and not any(p.early for p in self.producers.values())


@dataclass(frozen=True)
class Start:
    """A dispatch that must be in the log."""

    token: str
    epoch: int
    controller: int
    number: int
    label: int


class Model:
    """Feed it the log's messages; it says what must have come of them.

    Attributes:
        starts: dispatches, in order.
        outs: `(token, package id, outcome)`, in order.
        admitted: `(epoch, sequence)` of each package that was taken.
        repeats: arrivals that were none: of a number that was there already.
        completed: the first completion that counted, by package and controller.
        arrived: when each package arrived, by its id.
        grown_old: how many left because time passed while they waited.
    """

    def __init__(self, subjects: Subjects, chain: type[NaiveChain] = NaiveChain) -> None:
        self._subjects = subjects
        self._chain = chain
        self.plan: Plan | None = None
        self.now = 0
        self.lives: dict[str, Life] = {}
        self.starts: list[Start] = []
        self.outs: list[tuple[str, int, Outcome]] = []
        self.admitted: dict[int, tuple[int, int]] = {}
        self.repeats: list[int] = []
        self.completed: dict[tuple[int, int], pb.DataPackage] = {}
        self.arrived: dict[int, int] = {}
        self.overflows = 0
        self.outdated = 0
        self.grown_old = 0
        self._gaps = 0
        self.paused = False

    @property
    def drained(self) -> bool:
        """Whether nothing is inside."""
        return all(life.drained for life in self.lives.values())

    def feed(self, message: Message) -> None:
        """One message of the log; those that are no events change nothing."""
        subjects = self._subjects
        subject = message.subject
        if not subject.startswith(f"{subjects.prefix}ctl."):
            return
        self.now = max(self.now, message.time)
        if subject == subjects.plan:
            self._plan(Plan.from_bytes(message.data))
            return
        self._pass_time()
        if subject == subjects.tick and message.data in (TICK_PAUSE, TICK_RESUME):
            self._pause(message.data == TICK_PAUSE)
        if subject.startswith(subjects.ctl_in):
            self._arrive(message)
        elif subject.startswith(subjects.ctl_done):
            self._complete(message)

    def _plan(self, plan: Plan) -> None:
        self.plan = plan
        rules = [(c.window, c.queue_size, c.max_age_ns) for c in plan.controllers]
        for life in list(self.lives.values()):
            life.chain.now = self.now
            self._told(life, life.chain.change(rules))
            self._end_if_drained(life)

    def _pass_time(self) -> None:
        plan = self.plan
        assert plan is not None
        for life in list(self.lives.values()):
            starts, outs = life.chain.pass_time(self.now)
            self.grown_old += len(outs)
            self._told(life, (starts, outs))
            self._end_if_drained(life)
        # The oldest gap first, whosever it is; none is given up twice at one moment.
        waiting = [
            (life, name)
            for life in self.lives.values()
            for name, producer in life.producers.items()
            if producer.missing_since is not None and not self.paused
        ]
        for life, name in sorted(waiting, key=lambda each: each[0].gaps[each[1]]):
            self._take(life, life.producers[name].pass_time(self.now))
            self._note_gap(life, name)
        for token, life in list(self.lives.items()):
            if life.active + plan.instance_idle_ns <= self.now:
                if life.drained:
                    del self.lives[token]
                else:
                    life.active = self.now

    def _pause(self, paused: bool) -> None:
        """No gap is given up, or each is waited for the whole time again."""
        if not paused:
            for life in self.lives.values():
                for name, (_, place) in life.gaps.items():
                    life.producers[name].missing_since = self.now
                    life.gaps[name] = self.now, place
        self.paused = paused

    def _note_gap(self, life: Life, name: str) -> None:
        since = life.producers[name].missing_since
        if since is None:
            life.gaps.pop(name, None)
        elif name not in life.gaps or life.gaps[name][0] != since:
            self._gaps += 1
            life.gaps[name] = (since, self._gaps)

    def _arrive(self, message: Message) -> None:
        plan = self.plan
        assert plan is not None
        token = message.subject[len(self._subjects.ctl_in) :]
        control = message.headers.get(HEADER_CONTROL)
        life = self.lives.get(token)
        if control == CONTROL_CLOSE:
            self._close(life, message)
            return
        if life is None:
            rules = [(c.mode, c.window, c.queue_size, c.max_age_ns) for c in plan.controllers]
            life = Life(token, message.stream_seq, self._chain(rules), self.now)
            self.lives[token] = life
        life.active = self.now
        self.arrived[message.stream_seq] = message.time
        if life.closing:
            life.parked.append(message)
            return
        if control == CONTROL_OPEN:
            return
        name = message.headers.get(HEADER_PRODUCER, "")
        if not name:
            self._take(life, [message.stream_seq])
            return
        producer = life.producers.pop(name, None) or NaiveProducer(plan.producer_gap_ns)
        life.producers[name] = producer  # the one heard last is given up last
        number = int(message.headers[HEADER_NUMBER])
        if number in producer.seen:
            self.repeats.append(message.stream_seq)
        self._take(life, producer.arrive(number, message.stream_seq, self.now))
        self._note_gap(life, name)

    def _close(self, life: Life | None, message: Message) -> None:
        if life is None:
            return
        if life.closing:
            life.parked.append(message)
            return
        life.closing = True
        for producer in life.producers.values():
            while producer.early:
                producer.missing_since = self.now - producer.gap_ns
                self._take(life, producer.pass_time(self.now))
        self._end_if_drained(life)

    def _end_if_drained(self, life: Life) -> None:
        if life.closing and life.drained:
            del self.lives[life.token]
            for message in life.parked:
                self._arrive(message)

    def _take(self, life: Life, labels: list[int]) -> None:
        for label in labels:
            life.order.append(label)
            self.admitted[label] = (life.epoch, len(life.order))
            life.chain.now = self.now
            self._told(life, life.chain.arrive(label, self.arrived[label]))

    def _complete(self, message: Message) -> None:
        plan = self.plan
        assert plan is not None
        package = pb.DataPackage.FromString(message.data)
        _, _, token = message.subject[len(self._subjects.ctl_done) :].partition(".")
        life = self.lives.get(token)
        record = package.controllers[-1]
        index = [c.name for c in plan.controllers].index(record.name)
        if life is None or life.epoch != package.epoch:
            return
        controller, labels = life.chain.controllers[index], life.chain.labels[index]
        number = record.sequence
        if number not in controller.running or labels[number - 1] != package.id:
            return  # a repeat
        self.completed[package.id, index] = package
        life.active = self.now
        outcome = _OUTCOMES[record.phases[-1].status]
        life.chain.now = self.now
        self._told(life, life.chain.complete(index, number, outcome))
        self._end_if_drained(life)

    def _told(
        self,
        life: Life,
        told: tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]],
    ) -> None:
        starts, outs = told
        self.starts += [Start(life.token, life.epoch, *start) for start in starts]
        self.outs += [(life.token, label, outcome) for label, outcome in outs]
        self.overflows += sum(outcome is Outcome.OVERFLOW for _, outcome in outs)
        self.outdated += sum(outcome is Outcome.OUTDATED for _, outcome in outs)
