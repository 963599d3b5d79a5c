"""Planted bugs: each a switch that breaks one thing in the core or the roles, for the simulation to
find. A simulation that finds none of them would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from broker_pipeline.broker.lease import Lease
from broker_pipeline.core import producers as core_producers
from broker_pipeline.core import snapshot
from broker_pipeline.core.controller import ControllerState
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.release import FirstWins, InOrder
from broker_pipeline.journey import Outcome
from broker_pipeline.runtime import leader as leading
from broker_pipeline.runtime import snapshots

Patches = Iterator[tuple[Any, str, Any]]
MUTATIONS: dict[str, Callable[[], Patches]] = {}


def mutation(make: Callable[[], Patches]) -> Callable[[], Patches]:
    """Register one, under its name."""
    MUTATIONS[make.__name__.replace("_", " ")] = make
    return make


@contextmanager
def planted(name: str) -> Iterator[None]:
    """With the bug in place."""
    with ExitStack() as stack:
        for place, attribute, value in MUTATIONS[name]():
            stack.enter_context(patch.object(place, attribute, value))
        yield


# -- the core -----------------------------------------------------------------------------------
@mutation
def a_repeated_completion_counts() -> Patches:
    """`complete` takes whatever number comes."""

    def complete(self: Any, sequence: int, package_id: int, phases: int) -> bool:
        self.in_flight.pop(sequence, None)
        return True

    yield ControllerState, "complete", complete


@mutation
def an_early_leaver_holds_up_the_order() -> Patches:
    """ORDER_BY_SEQUENCE waits for what left early."""
    yield InOrder, "left_early", lambda self, sequence: []


@mutation
def overflow_drops_the_newest() -> Patches:
    """Instead of the oldest waiting."""
    real = ControllerState.admit

    def admit(self: Any, rules: Any, package: Any, time: int, stamps: Any) -> Any:
        start, overflow = real(self, rules, package, time, stamps)
        if overflow and self.waiting:
            newest = self.waiting.pop()
            self.waiting.appendleft(overflow.pop())
            overflow.append(newest)
        return start, overflow

    yield ControllerState, "admit", admit


@mutation
def the_window_is_one_too_large() -> Patches:
    """One package more than `max_workers` starts from the queue."""

    def start_waiting(self: Any, rules: Any) -> Any:
        started = []
        while self.waiting and (rules.window is None or len(self.in_flight) <= rules.window):
            ticket = self.waiting.popleft()
            self.in_flight[ticket.sequence] = ticket.package.id
            started.append(ticket)
        return started

    yield ControllerState, "start_waiting", start_waiting


@mutation
def completions_of_another_life_count() -> Patches:
    """The epoch of a completion is not looked at."""
    real = Machine._completed

    def completed(self: Any, event: Any, commands: Any) -> None:
        instance = self.instances.get(event.instance)
        if instance is not None:
            import msgspec

            event = msgspec.structs.replace(event, epoch=instance.epoch)
            for state in instance.controllers:
                if event.sequence in state.in_flight:
                    event = msgspec.structs.replace(event, id=state.in_flight[event.sequence])
        real(self, event, commands)

    yield Machine, "_completed", completed


@mutation
def first_wins_lets_older_pass() -> Patches:
    """Nobody is OUTDATED."""
    yield (
        FirstWins,
        "succeeded",
        lambda self, sequence, package: [(sequence, package, Outcome.SUCCESS)],
    )


@mutation
def a_number_is_taken_twice() -> Patches:
    """A repeat of a producer's is no repeat."""
    yield core_producers.Producer, "_was_skipped", lambda self, number: True


@mutation
def a_gap_is_never_given_up() -> Patches:
    """What waits for a number that never comes waits for ever."""

    def watch(self: Any, key: Any, since: int) -> None:
        self.gaps.pop(key, None)

    yield Machine, "_watch_gap", watch


@mutation
def a_gap_is_not_waited_for() -> Patches:
    """A package that comes early is taken at once."""

    def take(self: Any, number: int, arrival: Any, now: int) -> Any:
        if number < self.next_number:
            return []
        self.next_number = number + 1
        return [arrival]

    yield core_producers.Producer, "take", take


@mutation
def arrivals_of_a_closing_instance_are_dropped() -> Patches:
    """What should wait for the next life is forgotten."""
    real = Machine._end_if_drained

    def end(self: Any, instance: Any, commands: Any) -> None:
        instance.parked.clear()
        real(self, instance, commands)

    yield Machine, "_end_if_drained", end


# -- the leader ---------------------------------------------------------------------------------
@mutation
def the_leader_publishes_without_ids() -> Patches:
    """And does not skip what exists."""
    from tests.fault.session import SimSession

    real, recover = SimSession.publish, leading.Leader._recover

    async def publish(self: Any, subject: str, data: bytes, *, msg_id: str, **rest: Any) -> None:
        await real(self, subject, data, msg_id=None, **rest)  # type: ignore[arg-type]

    async def forgetful(self: Any) -> None:
        await recover(self)
        self._published.clear()

    yield SimSession, "publish", publish
    yield leading.Leader, "_recover", forgetful


@mutation
def recovery_ignores_what_was_published() -> Patches:
    """Only the dedup window stands between it and doubles."""
    recover = leading.Leader._recover

    async def forgetful(self: Any) -> None:
        await recover(self)
        self._published.clear()

    yield leading.Leader, "_recover", forgetful


@mutation
def recovery_skips_one_message() -> Patches:
    """The log is read from one too late."""
    load = snapshots.SnapshotStore.load

    async def skipping(self: Any) -> Any:
        machine = await load(self)
        if machine.applied:
            machine.applied += 1
        return machine

    yield snapshots.SnapshotStore, "load", skipping


@mutation
def a_snapshot_is_taken_before_the_seal() -> Patches:
    """It claims output that may not be stored."""
    from tests.fault.session import SimSession

    async def seal(self: Any) -> None:
        await asyncio.sleep(0)

    yield SimSession, "seal", seal


@mutation
def an_older_snapshot_wins_and_parts_are_purged() -> Patches:
    """A stale leader's head replaces whatever is there, and the parts of a newer one go."""

    async def save(self: Any, taken: snapshot.Taken) -> None:
        import msgspec

        broker = self._broker
        places = self._places[len(self._places) - taken.kept :]
        for part in taken.parts:
            places.append((await broker.publish(self._subject, part)).stream_seq)
        value = msgspec.msgpack.encode(snapshots._Stored(taken.applied, taken.head, places))
        await broker.purge(self._stream, below=places[0])
        await broker.kv_put(snapshots.STATE_BUCKET, self._key, value)
        self._places = places

    yield snapshots.SnapshotStore, "save", save


@mutation
def what_changes_while_a_snapshot_is_saved_is_forgotten() -> Patches:
    """It counts as changed no more when the saving ends, not when the snapshot is taken."""
    take, save = snapshots.SnapshotStore.take, snapshots.SnapshotStore.save

    def taking(self: Any, machine: Any) -> Any:
        self._machine = machine
        return take(self, machine)

    async def forgetful(self: Any, taken: Any) -> None:
        await save(self, taken)
        self._machine.changed.clear()

    yield snapshots.SnapshotStore, "take", taking
    yield snapshots.SnapshotStore, "save", forgetful


@mutation
def a_slice_is_dropped_that_is_needed() -> Patches:
    """A chain that is too long is cut, and what only its oldest slice holds is not moved on."""

    def due(self: Any, machine: Any) -> Any:
        if not self._held:
            return list(machine.instances), []
        while len(self._held) >= snapshot.SLICES:
            self._held.popleft()
        changed, there = machine.changed, machine.instances
        return [t for t in changed if t in there], [t for t in changed if t not in there]

    yield snapshot.Chain, "_due", due


@mutation
def two_lead_and_do_not_decide_alike() -> Patches:
    """The lease is not asked, and what a leader publishes depends on who it is."""

    async def acquire(self: Any) -> bool:
        self._term, self._revision = 1, 1
        self._expires = asyncio.get_running_loop().time() + 1e6
        return True

    async def renew(self: Any) -> None:
        return None

    real = leading.message_of

    def message_of(plan: Any, subjects: Any, command: Any) -> tuple[str, str]:
        from tests.fault.loop import PROCESS

        subject, msg_id = real(plan, subjects, command)
        return subject, f"{msg_id}.{PROCESS.get().name}"

    yield Lease, "acquire", acquire
    yield Lease, "renew", renew
    yield leading, "message_of", message_of


@mutation
def no_ticks() -> Patches:
    """Deadlines pass only when something else happens."""
    yield leading.Leader, "_tick_in", lambda self, now: None


@mutation
def a_refused_publish_is_overlooked() -> Patches:
    """The leader goes on behind a gap in what it published."""
    from tests.fault.session import SimSession

    def ignored(self: Any, error: BaseException) -> None:
        self._at_broker = None
        self._acknowledged = 1 << 30
        self._committed = True
        self._news.set()

    yield SimSession, "fail", ignored
