"""What must hold of the streams when a run is over: the promises, checked on the outputs alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any, Protocol

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER, Subjects
from broker_pipeline.core.snapshot import Head
from broker_pipeline.journey import STATUS_TO_PB, Mode, Outcome, Status
from broker_pipeline.runtime.suspects import TRUSTED_DELIVERIES
from tests.fault.counts import wrong_counts
from tests.fault.executor import Begun
from tests.fault.model import Model, Start
from tests.fault.modules import ERROR, EXIT, POISON, Expected, orders
from tests.fault.pauses import paused_ns
from tests.fault.scenario import NAME, Scenario

SUBJECTS = Subjects(NAME)


class Large(Protocol):
    """What a run knows of its large payloads."""

    def of(self, message: Message) -> bytes:
        """The payload of an arrival."""

    def whole(self, package: pb.DataPackage) -> pb.DataPackage:
        """A package with its payload in place."""

    def check(self, log: list[Message], window_s: float) -> list[str]:
        """What was removed and should not have been."""


_OUTCOMES = {STATUS_TO_PB[each]: each for each in Outcome}
_ENDS = {"": Outcome.SUCCESS, EXIT: Outcome.EXIT, ERROR: Outcome.ERROR}
_POISON = "PoisonPackageError"


class Checks:
    """All promises, over one log.

    Args:
        begun: how often each message of a queue began to run.
        acked: the payloads that producers were told are stored, with where.
        injected: the faults that there were.
        head: of the newest snapshot.
    """

    def __init__(
        self,
        scenario: Scenario,
        log: list[Message],
        model: Model,
        begun: Begun,
        acked: dict[bytes, list[int]],
        injected: Counter[str],
        payloads: Large,
        head: Head | None,
    ) -> None:
        self.head = head
        self.injected = injected
        self.large = payloads
        self.log = log
        self.scenario = scenario
        self.model = model
        self.begun = begun
        self.acked = acked
        self.violations: list[str] = []
        self.max_deliver = scenario.pipelines[0][1].controllers[0].phases[0].max_deliver
        self.arrivals: dict[int, Message] = {}
        self.left: list[tuple[Message, pb.DataPackage]] = []
        self.queued: list[tuple[Message, pb.DataPackage]] = []
        self.deployed = [m.time for m in log if m.subject == SUBJECTS.plan]
        for message in log:
            if message.subject.startswith(SUBJECTS.ctl_in):
                self.arrivals[message.stream_seq] = replace(message, data=payloads.of(message))
            elif message.subject.startswith(SUBJECTS.out):
                package = payloads.whole(pb.DataPackage.FromString(message.data))
                self.left.append((message, package))
            elif message.subject.startswith(SUBJECTS.work):
                self.queued.append((message, pb.DataPackage.FromString(message.data)))
        for package in model.completed.values():
            payloads.whole(package)

    def run(self) -> list[str]:
        """The promises that were broken."""
        for check in (
            self.one_outcome_each,
            self.nothing_acknowledged_is_lost,
            self.order_by_mode,
            self.outdated_when_too_old_and_only_then,
            self.as_the_model_says,
            self.dispatched_as_the_model_says,
            self.numbered_once_and_in_order,
            self.sent_once,
            self.nothing_is_poison_without_a_reason,
            self.nothing_begins_too_often,
            self.payloads,
            self.payloads_are_there,
            self.counted_once,
        ):
            try:
                check()
            except Exception as error:  # outputs so wrong that a check cannot read them
                self.wrong(f"{check.__name__} could not be checked: {error!r}")
        return self.violations

    def wrong(self, what: str) -> None:
        """A promise is broken."""
        self.violations.append(what)

    # -- without a model --------------------------------------------------------------------------
    def one_outcome_each(self) -> None:
        """Every stored arrival has one outcome, but for a number's repeats; nothing is invented."""
        seen: dict[int, Outcome] = {}
        for message, package in self.left:
            outcome = _OUTCOMES[package.outcome]
            if package.id in seen:
                self.wrong(f"package {package.id} left twice: {seen[package.id]}, {outcome}")
            seen[package.id] = outcome
            if package.id not in self.arrivals:
                self.wrong(f"package {package.id} left and never arrived")
            if message.subject.split(".")[4] != outcome.lower():
                self.wrong(f"package {package.id} left on {message.subject} as {outcome}")
        controls = {seq for seq, m in self.arrivals.items() if "Bp-Control" in m.headers}
        numbered: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for seq in self.arrivals.keys() - controls - seen.keys():
            m = self.arrivals[seq]
            if HEADER_PRODUCER not in m.headers:
                self.wrong(f"arrival {seq} {m.data!r} has no outcome")
        for seq, m in self.arrivals.items():
            if HEADER_PRODUCER in m.headers and seq not in controls:
                key = (m.subject, m.headers[HEADER_PRODUCER], m.headers[HEADER_NUMBER])
                numbered[key].append(seq)
        lives = {send.kind for s in self.scenario.sources for send in s.sends} != {"data"}
        lives = lives or self.scenario.pipelines[0][1].instance_idle_s < 100
        for key, seqs in numbered.items():
            out = [seq for seq in seqs if seq in seen]
            if not out or (len(out) > 1 and not lives):
                self.wrong(f"number {key} has {len(out)} outcomes; it is at {seqs}")

    def nothing_acknowledged_is_lost(self) -> None:
        """What a producer was told is stored is in the log."""
        for data, places in self.acked.items():
            for place in places:
                if place not in self.arrivals or self.arrivals[place].data != data:
                    self.wrong(f"{data!r} was acknowledged as message {place} and is not there")

    def order_by_mode(self) -> None:
        """Within a life of an instance, what succeeds leaves in the order of the last mode."""
        mode = self.scenario.pipelines[0][1].controllers[-1].mode
        last: dict[tuple[str, int], int] = {}
        for _, package in self.left:
            key = (package.instance, package.epoch)
            outcome = _OUTCOMES[package.outcome]
            if outcome is Outcome.SUCCESS:
                sequence = package.controllers[-1].sequence
                if mode is not Mode.NO_ORDER and sequence < last.get(key, 0):
                    self.wrong(f"{package.id} left as {sequence} after {last[key]} of {key}")
                last[key] = max(last.get(key, 0), sequence)

    def outdated_when_too_old_and_only_then(self) -> None:
        """By the log's clock: who leaves a controller with SUCCESS is not too old for it, and who
        leaves as OUTDATED is, or was overtaken."""
        modes = {c.name: c.mode for c in self.scenario.pipelines[0][1].controllers}
        for _, package in self.left:
            for record in package.controllers:
                left_ns = record.start_time_ns + record.total_time_ns
                age_s = (left_ns - package.start_time_ns) / 1e9
                limits = self._ages_at(record.name, left_ns)
                if record.status == _SUCCESS and all(s is not None and age_s >= s for s in limits):
                    self.wrong(f"{package.id} left {record.name} aged {age_s:g} s, of {limits}")
                if record.status != _OUTDATED:
                    continue
                if record.phases and record.phases[-1].status == _OUTDATED:
                    limits = self.scenario.ages_s[record.name]  # of a worker that was not renewed
                elif modes[record.name] is Mode.FIRST_WINS:
                    continue
                if not any(s is not None and age_s >= s for s in limits):
                    self.wrong(f"{package.id} is OUTDATED in {record.name}, aged {age_s:g} s")

    def _ages_at(self, controller: str, time_ns: int) -> list[float | None]:
        """What `max_age_s` was at that time: two where it was changed just then."""
        ages_s = self.scenario.ages_s[controller]
        begun = sum(at <= time_ns for at in self.deployed)
        before = sum(at < time_ns for at in self.deployed)
        return ages_s[max(0, before - 1) : begun]

    # -- against the model ------------------------------------------------------------------------
    def as_the_model_says(self) -> None:
        """The same packages leave with the same outcomes in the same order, by instance."""
        ours: dict[str, list[tuple[int, Outcome]]] = defaultdict(list)
        theirs: dict[str, list[tuple[int, Outcome]]] = defaultdict(list)
        for message, package in self.left:
            token = message.subject.rpartition(".")[2]
            ours[token].append((package.id, _OUTCOMES[package.outcome]))
            if self.model.admitted.get(package.id) != (package.epoch, package.sequence):
                self.wrong(
                    f"{package.id} is number {package.sequence} of epoch {package.epoch}; the "
                    f"model says {self.model.admitted.get(package.id)}"
                )
        for token, label, outcome in self.model.outs:
            theirs[token].append((label, outcome))
        for token in sorted(ours.keys() | theirs.keys()):
            self._same(f"what left {token!r}", ours[token], theirs[token])

    def dispatched_as_the_model_says(self) -> None:
        """The same packages enter each controller's queue, once and in the same order."""
        ours: dict[tuple[str, int], list[Any]] = defaultdict(list)
        theirs: dict[tuple[str, int], list[Any]] = defaultdict(list)
        plan = self.model.plan
        assert plan is not None
        index = {controller.name: n for n, controller in enumerate(plan.controllers)}
        for message, package in self.queued:
            _, _, _, _, controller, phase, *_, token = message.subject.split(".")
            at = index[controller]
            if phase != plan.controllers[at].phases[0].name:
                continue
            number = package.controllers[-1].sequence
            ours[token, at].append(Start(token, package.epoch, at, number, package.id))
        for start in self.model.starts:
            theirs[start.token, start.controller].append(start)
        for key in sorted(ours.keys() | theirs.keys()):
            mine = list(dict.fromkeys(ours[key]))
            if len(mine) != len(ours[key]):
                self.wrong(f"a package was dispatched twice in {key}")
            self._same(f"what was dispatched in {key}", mine, theirs[key])

    def _same(self, what: str, ours: list[Any], theirs: list[Any]) -> None:
        if ours == theirs:
            return
        at = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        self.wrong(
            f"{what}: the log has {ours[at : at + 3]}, the model {theirs[at : at + 3]} "
            f"(at {at} of {len(ours)}/{len(theirs)})"
        )

    def numbered_once_and_in_order(self) -> None:
        """Where no gap was given up, what one producer numbered is taken in its order."""
        orders: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        for _, package in self.left:
            arrival = self.arrivals.get(package.id)
            if arrival is None or HEADER_PRODUCER not in arrival.headers:
                continue
            key = (package.epoch, f"{package.instance} {arrival.headers[HEADER_PRODUCER]}")
            orders[key].append((package.sequence, int(arrival.headers[HEADER_NUMBER])))
        for key, taken in orders.items():
            numbers = [number for _, number in sorted(taken)]
            complete = sorted(numbers) == list(range(1, len(numbers) + 1))
            waited = self._waited_s(key, set(numbers))
            short = waited < self.scenario.pipelines[0][1].producer_gap_s * 0.9
            if complete and short and numbers != sorted(numbers):
                self.wrong(f"{key} were taken as {numbers}")

    def sent_once(self) -> None:
        """Whatever the SDK's producers had to repeat came out once."""
        seen: dict[bytes, int] = {}
        for _, package in self.left:
            arrival = self.arrivals.get(package.id)
            name = "" if arrival is None else arrival.headers.get(HEADER_PRODUCER, "")
            if arrival is None or not name.startswith("s"):
                continue
            if arrival.data in seen:
                self.wrong(f"{arrival.data!r} came out as {seen[arrival.data]} and {package.id}")
            seen[arrival.data] = package.id

    def nothing_is_poison_without_a_reason(self) -> None:
        """Where nothing went wrong and no worker was killed, no package is called poison."""
        killers = any(POISON in orders(m.data).values() for m in self.arrivals.values())
        if self.injected or killers:
            return
        for _, package in self.left:
            if package.errors and package.errors[-1].type == _POISON:
                self.wrong(f"{package.id} is called poison, and nothing went wrong")

    def nothing_begins_too_often(self) -> None:
        """At most `max_deliver` times; and of those that may kill their worker one at a time."""
        self.violations += self.begun.wrong
        for stream_seq, runs in self.begun.runs.items():
            if runs > self.max_deliver:
                self.wrong(f"message {stream_seq} began {runs} times")

    def _waited_s(self, key: tuple[int, str], numbers: set[int]) -> float:
        """From the first of them to the last, in log time that passes for gaps."""
        epoch, name = key
        producer = name.rpartition(" ")[2]
        times = [
            m.time
            for seq, m in self.arrivals.items()
            if m.headers.get(HEADER_PRODUCER) == producer and seq >= epoch
        ]
        begin, end = min(times), max(times)
        return (end - begin - paused_ns(self.log, SUBJECTS, begin, end)) / 1e9

    # -- what the modules make of it --------------------------------------------------------------
    def payloads(self) -> None:
        """Payloads and outcomes are what the modules make of the inputs; states equal the fold."""
        data: dict[int, bytes] = {}
        final = {package.id: package for _, package in self.left}
        for seq, message in self.arrivals.items():
            data[seq] = message.data
        plan = self.model.plan
        assert plan is not None
        queue_of = {
            (p.id, m.subject.split(".")[4], m.subject.split(".")[5]): m.stream_seq
            for m, p in self.queued
        }
        for index, controller in enumerate(plan.controllers):
            phases = {p.name: f"{controller.name}.{p.name}" for p in controller.phases}
            folds: dict[tuple[str, int], dict[str, Expected]] = {}
            done = [
                (self._life(package), package.controllers[-1].sequence, label, package)
                for (label, at), package in self.model.completed.items()
                if at == index
            ]
            for life, _, label, package in sorted(done, key=lambda each: each[:3]):
                fold = folds.setdefault(
                    life,
                    {n: Expected(place, self.scenario.kinds[place]) for n, place in phases.items()},
                )
                data[label] = self._run_through(package, data[label], fold, queue_of)
                if package.data != data[label]:
                    self.wrong(f"{label} came back as {package.data!r}, not {data[label]!r}")
        for label, package in final.items():
            if label in data and package.data != data[label]:
                self.wrong(f"{label} left with {package.data!r}; expected {data[label]!r}")

    def payloads_are_there(self) -> None:
        """What a message refers to is kept for as long as anybody may want it."""
        self.violations += self.large.check(self.log, self.scenario.pipelines[0][1].replay_window_s)

    def counted_once(self) -> None:
        """However often leaders changed: the counts of the newest snapshot are those of the log."""
        head = self.head
        if head is None:
            return  # it was over before there was one
        self.violations += wrong_counts(head, self.log, SUBJECTS)

    def _life(self, package: pb.DataPackage) -> tuple[str, int]:
        return package.instance, package.epoch

    def _run_through(
        self,
        package: pb.DataPackage,
        data: bytes,
        fold: dict[str, Expected],
        queue_of: dict[tuple[int, str, str], int],
    ) -> bytes:
        """The payload behind a controller; what its record says is checked on the way."""
        record = package.controllers[-1]
        said = _OUTCOMES[record.phases[-1].status]
        for phase in record.phases:
            place = f"{record.name}.{phase.name}"
            last = phase is record.phases[-1] or phase.name == record.phases[-1].name
            if last and said is Outcome.ERROR and package.errors[-1].type == _POISON:
                queued = queue_of.get((package.id, record.name, phase.name), 0)
                trusted = min(TRUSTED_DELIVERIES, self.max_deliver)
                if self.begun.asked[queued] < self.max_deliver - trusted:
                    self.wrong(f"{package.id} is called poison in {place} before its time")
                return data
            if phase.status == _OUTDATED and last:
                if phase.modules:
                    self.wrong(f"{package.id} was run in {place}, and called too old for it")
                return data
            if orders(data).get(place) == POISON:
                self.wrong(f"{package.id} kills its worker in {place}, and came out of it")
            data, end = fold[phase.name].run(data)
            ended = _ENDS[end]
            status = Outcome.SUCCESS if phase.status == _SUCCESS else _OUTCOMES[phase.status]
            if status is not ended:
                error = package.errors[-1] if package.errors else ""
                self.wrong(f"{package.id} ended as {status} in {place}, not {ended}: {error}")
                return data
            if end:
                if not last:
                    self.wrong(f"{package.id} went on behind {place}, where it ended")
                return data
        if len(record.phases) != len(fold):
            self.wrong(f"{package.id} went through {len(record.phases)} phases of {record.name}")
        return data


_SUCCESS = STATUS_TO_PB[Status.SUCCESS]
_OUTDATED = STATUS_TO_PB[Status.OUTDATED]
