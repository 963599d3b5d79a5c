"""The controllers of a shard as one pure, deterministic state machine over its log.

    step(event) -> commands          # no clock, no random, no I/O, no asyncio

The same events give the same commands, in the simulation, in memory and in production; that is what
lets a new leader compute again what the last one decided. What one controller emits arrives at the
next inside the machine: there is no message for it.
"""

from __future__ import annotations

from collections import OrderedDict

from broker_pipeline.core.ages import Ages, deadline_of
from broker_pipeline.core.commands import Command, Dispatch, Emit, Entered, Left, PackageRef, Stamp
from broker_pipeline.core.controller import Ticket
from broker_pipeline.core.events import Arrived, Closed, Completed, Deployed, Event, Opened, Ticked
from broker_pipeline.core.gaps import Gaps
from broker_pipeline.core.instance import InstanceState
from broker_pipeline.core.oldest import Oldest
from broker_pipeline.core.plan import Plan, unfollowable
from broker_pipeline.core.producers import Held
from broker_pipeline.core.release import Leaving
from broker_pipeline.core.tallies import Tallies
from broker_pipeline.journey import Outcome

_UNCHANGED = (Outcome.ERROR, Outcome.OUTDATED)
"""A phase in which a worker ended a package so has left its states as they were."""
IDLE_STEPS = 8
"""An instance ends when idle between `instance_idle` and 1/8 more: one tick ends many."""


class Machine:
    """The state of a shard's controllers.

    Attributes:
        plan: the plan in force; None before the first deploy.
        applied: the stream sequence of the last event.
        time: log time, ns; never goes back.
        instances: by token, the one that saw something longest ago first.
        gaps: which producers' missing packages are waited for, and until when.
        ages: packages that wait where there is a `max_age_s`. It follows from the rest.
        unplanned: what came before the first plan.
        tallies: how many packages came, left and are inside.
        changed: tokens of instances that changed or ended since the last snapshot, in order.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.applied = 0
        self.time = 0
        self.instances: OrderedDict[str, InstanceState] = OrderedDict()
        self.gaps = Gaps()
        self.ages = Ages()
        self.unplanned: list[Event] = []
        self.changed: dict[str, None] = {}
        self.tallies = Tallies()
        self._oldest = Oldest()

    # -- the only ways in -----------------------------------------------------------------------
    def step(self, event: Event) -> list[Command]:
        """Apply one event of the log, in log order; returns what is to be published, in order."""
        self.applied = event.stream_seq
        if event.time > self.time:
            self.time = event.time
        commands: list[Command] = []
        if isinstance(event, Deployed):
            self._deployed(event, commands)
            return commands
        if self.plan is None:
            self.unplanned.append(event)
            return commands
        self._pass_deadlines(commands)
        self._apply(event, commands)
        return commands

    def next_deadline(self) -> int | None:
        """When a tick is due, ns of log time; None where nothing waits for time."""
        if self.plan is None:
            return None
        deadline = self.gaps.soonest()
        if self.instances:
            oldest = next(iter(self.instances.values()))
            idle = self.plan.instance_idle_ns
            ends = oldest.active + idle + idle // IDLE_STEPS
            deadline = ends if deadline is None else min(deadline, ends)
        if self.ages and (waiting := self.ages.soonest()) is not None:
            deadline = waiting[0] if deadline is None else min(deadline, waiting[0])
        return deadline

    def oldest_source(self) -> int | None:
        """The lowest stream sequence whose bytes are needed again; None where none is."""
        return self.oldest()[0]

    def oldest(self) -> tuple[int | None, int | None]:
        """The lowest stream sequence whose bytes are needed again, and the lowest id of the
        packages that are inside; None where there is none."""
        for token in self.changed:  # what is known of the others still holds
            self._oldest.note(token, self.instances.get(token))
        early = [event.stream_seq for event in self.unplanned]
        return self._oldest.source(early), self._oldest.inside(early)

    def oldest_by_controller(self) -> list[int | None]:
        """For each controller the lowest id of the packages in it; None where there is none."""
        self.oldest()  # looks at what has changed
        return self._oldest.in_controllers(len(self.tallies.controllers))

    def fill(self, instances: list[InstanceState]) -> None:
        """Take in what was stored, into an empty machine."""
        instances.sort(key=_by_activity)
        for instance in instances:
            self.instances[instance.token] = instance
            self._oldest.note(instance.token, instance)

    def rebuild_ages(self) -> None:
        """Watch what waits; for a machine whose state was loaded, or whose plan has changed."""
        assert self.plan is not None  # without one nothing has come in
        self.ages.rebuild(self.plan, self.instances)

    # -- events ---------------------------------------------------------------------------------
    def _apply(self, event: Event, commands: list[Command]) -> None:
        if isinstance(event, Completed):
            self._completed(event, commands)
        elif isinstance(event, Arrived):
            self._arrived(event, commands)
        elif isinstance(event, Opened):
            self._opened(event)
        elif isinstance(event, Closed):
            self._closed(event, commands)
        elif isinstance(event, Ticked) and event.paused is not None:
            self._pause_gaps(event.paused)

    def _deployed(self, event: Deployed, commands: list[Command]) -> None:
        if self.plan is not None and unfollowable(self.plan, event.plan):
            if any(not instance.drained for instance in self.instances.values()):
                return  # packages are on their way under the old plan: it stays in force
            self.changed.update(dict.fromkeys(self.instances))
            self.instances.clear()
        self.plan = event.plan
        self.tallies.follow(event.plan)
        for token, name in self.gaps:
            since = self.instances[token].producers[name].gap_since
            self.gaps[token, name] = since + event.plan.producer_gap_ns
        self.rebuild_ages()
        self._pass_ages(commands)
        for instance in sorted(self.instances.values(), key=_by_activity):
            for index, state in enumerate(instance.controllers):
                for ticket in state.start_waiting(event.plan.controllers[index]):
                    self.changed[instance.token] = None
                    self.tallies.started(index)
                    commands.append(self._dispatch(instance, index, ticket))
        early, self.unplanned = self.unplanned, []
        for waited in early:
            self._apply(waited, commands)

    def _arrived(self, event: Arrived, commands: list[Command]) -> None:
        instance = self._instance(event.instance, event.stream_seq)
        if instance.closing:
            instance.parked.append(event)
            return
        arrival = Held(event.stream_seq, event.time, event.malformed)
        if not event.producer:
            self._admit(instance, arrival, commands)
            return
        producer = instance.producer(event.producer)
        key = (event.instance, event.producer)
        for ready in producer.take(event.number, arrival, self.time):
            self._admit(instance, ready, commands)
        self._watch_gap(key, producer.gap_since)
        forgotten = instance.one_too_many()
        if forgotten is not None:
            self._give_up(instance, forgotten, commands)
            del instance.producers[forgotten]

    def _pause_gaps(self, paused: bool) -> None:
        self.gaps.paused = paused
        for token, name in () if paused else list(self.gaps):
            self.changed[token] = None
            producer = self.instances[token].producers[name]
            producer.gap_since = self.time
            self._watch_gap((token, name), self.time)

    def _opened(self, event: Opened) -> None:
        instance = self._instance(event.instance, event.stream_seq)
        if instance.closing:
            instance.parked.append(event)

    def _closed(self, event: Closed, commands: list[Command]) -> None:
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        self.changed[event.instance] = None
        if instance.closing:
            instance.parked.append(event)
            return
        instance.closing = True
        for name in instance.producers:
            self._give_up(instance, name, commands)
        self._end_if_drained(instance, commands)

    def _completed(self, event: Completed, commands: list[Command]) -> None:
        plan = self.plan
        instance = self.instances.get(event.instance)
        if plan is None or instance is None or instance.epoch != event.epoch:
            return
        index = plan.controller_index(event.controller)
        if index < 0:
            return
        state = instance.controllers[index]
        changed = event.phases - (event.outcome in _UNCHANGED)
        if not state.complete(event.sequence, event.id, changed, event.states):
            return
        self._touch(instance)
        package = PackageRef(event.id, 0, event.arrived, event.stream_seq)
        rules, outcome = plan.controllers[index], event.outcome
        aged = rules.max_age_ns is not None
        if aged and outcome is Outcome.SUCCESS and deadline_of(rules, package) <= self.time:
            outcome = Outcome.OUTDATED
        leaving = state.let_go(event.sequence, package, outcome)
        if aged and not leaving:  # it waits for its turn
            self.ages.watch(instance, index, event.sequence, package)
        self.tallies.came_back(index, len(leaving))
        self._leave(instance, index, leaving, (), commands)
        for ticket in state.start_waiting(rules):
            self.tallies.started(index)
            commands.append(self._dispatch(instance, index, ticket))
        if instance.closing:
            self._end_if_drained(instance, commands)

    def _give_up(self, instance: InstanceState, name: str, commands: list[Command]) -> None:
        """Wait no longer for what a producer's held packages wait for."""
        producer = instance.producers[name]
        while producer.held:
            for ready in producer.give_up(self.time):
                self._admit(instance, ready, commands)
        self.gaps.pop((instance.token, name), None)

    # -- packages on their way ------------------------------------------------------------------
    def _admit(self, instance: InstanceState, arrival: Held, commands: list[Command]) -> None:
        instance.sequence += 1
        package = PackageRef(
            arrival.stream_seq, instance.sequence, arrival.time, arrival.stream_seq
        )
        self.tallies.came()
        if why := arrival.malformed:
            self.tallies.gone(Outcome.ERROR)
            commands.append(
                Emit(instance.token, instance.epoch, package, Outcome.ERROR, self.time, (), why)
            )
            return
        instance.inside += 1
        self._enter(instance, 0, package, (), commands)

    def _enter(
        self,
        instance: InstanceState,
        index: int,
        package: PackageRef,
        stamps: tuple[Stamp, ...],
        commands: list[Command],
    ) -> None:
        assert self.plan is not None
        state, rules = instance.controllers[index], self.plan.controllers[index]
        aged = rules.max_age_ns is not None
        if aged and deadline_of(rules, package) <= self.time:
            self.tallies.refused(index)
            refused = state.refuse(package, self.time, stamps)
            self._give_back(instance, index, refused, Outcome.OUTDATED, commands)
            return
        start, overflow = state.admit(rules, package, self.time, stamps)
        self.tallies.admitted(index, start is not None, len(overflow))
        if start is not None:
            commands.append(self._dispatch(instance, index, start))
        elif aged:
            self.ages.watch(instance, index, state.next_sequence - 1, package)
        for ticket in overflow:
            self._give_back(instance, index, ticket, Outcome.OVERFLOW, commands)

    def _give_back(
        self,
        instance: InstanceState,
        index: int,
        ticket: Ticket,
        outcome: Outcome,
        commands: list[Command],
    ) -> None:
        """A package that was never dispatched leaves."""
        entered = Entered(index, ticket.sequence, ticket.admitted)
        leaving = instance.controllers[index].let_go(ticket.sequence, ticket.package, outcome)
        self._leave(instance, index, leaving, (*ticket.stamps, entered), commands)

    def _dispatch(self, instance: InstanceState, index: int, ticket: Ticket) -> Dispatch:
        previous = tuple(instance.controllers[index].reached)
        entered = Entered(index, ticket.sequence, ticket.admitted, previous)
        return Dispatch(
            instance.token, instance.epoch, ticket.package, index, (*ticket.stamps, entered)
        )

    def _leave(
        self,
        instance: InstanceState,
        index: int,
        leaving: list[Leaving],
        stamps: tuple[Stamp, ...],
        commands: list[Command],
    ) -> None:
        """Let packages go on to the next controller, or out. `stamps` are the first one's."""
        for _, package, outcome in leaving:
            stamped = (*stamps, Left(index, outcome, self.time))
            stamps = ()
            self.tallies.controllers[index].leave(outcome)
            if outcome is Outcome.SUCCESS and index + 1 < len(instance.controllers):
                self._enter(instance, index + 1, package, stamped, commands)
                continue
            instance.inside -= 1
            self.tallies.gone(outcome)
            commands.append(
                Emit(instance.token, instance.epoch, package, outcome, self.time, stamped)
            )

    # -- lives and deadlines --------------------------------------------------------------------
    def _instance(self, token: str, stream_seq: int) -> InstanceState:
        """The instance, which begins here if it is new, marked as active now."""
        assert self.plan is not None
        instance = self.instances.get(token)
        if instance is None:
            instance = self.instances[token] = InstanceState(token, stream_seq, self.plan)
        self._touch(instance)
        return instance

    def _touch(self, instance: InstanceState) -> None:
        token = instance.token
        instance.active = self.time
        self.instances.move_to_end(token)
        self.changed[token] = None

    def _watch_gap(self, key: tuple[str, str], since: int) -> None:
        assert self.plan is not None
        self.gaps.watch(key, since, self.plan.producer_gap_ns)

    def _pass_ages(self, commands: list[Command]) -> None:
        """Let those leave that wait and are too old. None is left whose deadline is over: what is
        dispatched, or let go in its turn, in the rest of the step is not too old.

        No instance is drained by it: who waits, waits for one that is with the workers.
        """
        while (watched := self.ages.soonest()) is not None:
            deadline, token, index, sequence = watched
            if deadline > self.time:
                break
            self.changed[token] = None
            instance = self.instances[token]
            state = instance.controllers[index]
            ticket = state.withdraw(sequence)
            if ticket is not None:
                self.tallies.withdrawn(index)
                self._give_back(instance, index, ticket, Outcome.OUTDATED, commands)
            else:
                package = state.waiting_package(sequence)
                assert package is not None  # `soonest` gives what waits
                leaving = state.let_go(sequence, package, Outcome.OUTDATED)
                self.tallies.released(index, len(leaving))
                self._leave(instance, index, leaving, (), commands)

    def _pass_deadlines(self, commands: list[Command]) -> None:
        assert self.plan is not None
        if self.ages:
            self._pass_ages(commands)
        while self.gaps and (due := self.gaps.take_due(self.time)) is not None:
            token, name = due
            self.changed[token] = None
            instance = self.instances[token]
            producer = instance.producers[name]
            for ready in producer.give_up(self.time):
                self._admit(instance, ready, commands)
            self._watch_gap(due, producer.gap_since)
        while self.instances:
            token, instance = next(iter(self.instances.items()))
            if instance.active + self.plan.instance_idle_ns > self.time:
                break
            if instance.drained:
                del self.instances[token]
                self.changed[token] = None
            else:
                self._touch(instance)

    def _end_if_drained(self, instance: InstanceState, commands: list[Command]) -> None:
        """End a closing instance, and begin its next life with what waited for that."""
        if not instance.drained:
            return
        del self.instances[instance.token]
        for event in instance.parked:
            self._apply(event, commands)


def _by_activity(instance: InstanceState) -> tuple[int, int]:
    """The order of `Machine.instances`, but that it does not depend on a snapshot in between which
    of two comes first that were active at the same time. No two have the same epoch."""
    return instance.active, instance.epoch
