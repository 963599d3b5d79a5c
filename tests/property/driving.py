"""A log, a machine and workers that do what a test says: everything but a broker."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import strategies as st

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core import envelope, snapshot
from broker_pipeline.core.commands import Command, Dispatch, Emit
from broker_pipeline.core.events import Event
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
    TICK_PAUSE,
    TICK_RESUME,
    Subjects,
)
from broker_pipeline.core.plan import ControllerPlan, ModulePlan, PhasePlan, Plan
from broker_pipeline.journey import STATUS_TO_PB, Mode, Outcome
from broker_pipeline.package import CONTENT_TYPE

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
Rule = tuple[Mode, int | None, int | None] | tuple[Mode, int | None, int | None, int | None]
"""`(mode, window, queue_size)`, and `max_age_ns` if it likes."""


def make_plan(
    rules: list[Rule], *, idle_s: float = 3600, gap_s: float = 2, phases: int = 2
) -> Plan:
    """A plan of one controller a rule."""
    stages = tuple(
        PhasePlan(f"p{n}", (ModulePlan("m", "execution"),), 5.0, 5) for n in range(phases)
    )
    return Plan(
        "demo",
        tuple(
            ControllerPlan(f"c{index}", mode, stages, *bounds)
            for index, (mode, *bounds) in enumerate(rules)
        ),
        instance_idle_ns=int(idle_s * SECOND),
        producer_gap_ns=int(gap_s * SECOND),
    )


@dataclass
class Message:
    """One message of the log."""

    subject: str
    headers: dict[str, str]
    data: bytes
    stream_seq: int
    time: int


@dataclass
class World:
    """A shard without a broker: what is published is stored, and the machine reads it.

    Attributes:
        given: what each step decided, as `(subject, message id, bytes)`.
        queue: dispatches that no worker has finished.
    """

    plan: Plan
    machine: Machine = field(default_factory=Machine)
    subjects: Subjects = field(default_factory=lambda: Subjects("demo"))
    log: list[Message] = field(default_factory=list)
    now: int = START
    given: list[list[tuple[str, str, bytes]]] = field(default_factory=list)
    queue: list[tuple[Dispatch, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deploy(self.plan)

    def publish(self, subject: str, data: bytes = b"", **headers: str) -> list[Command]:
        """Store a message and step the machine with it; returns its commands."""
        names = {
            "producer": HEADER_PRODUCER,
            "number": HEADER_NUMBER,
            "control": HEADER_CONTROL,
            "content_type": HEADER_CONTENT_TYPE,
        }
        self.now += 1
        message = Message(
            subject,
            {names[key]: value for key, value in headers.items()},
            data,
            len(self.log) + 1,
            self.now,
        )
        self.log.append(message)
        commands = self.machine.step(self.read(message)[0])
        given = []
        for command in commands:
            raw = self.bytes_of(command)
            given.append((*envelope.message_of(self.machine.plan, self.subjects, command), raw))
            if isinstance(command, Dispatch):
                self.queue.append((command, raw))
        self.given.append(given)
        return commands

    def read(self, message: Message) -> tuple[Event, pb.DataPackage | None]:
        """The event that a message is."""
        return envelope.read_event(
            self.subjects,
            message.subject,
            message.headers,
            message.data,
            message.stream_seq,
            message.time,
        )

    def bytes_of(self, command: Command) -> bytes:
        """What is published for a command."""
        _, source = self.read(self.log[command.package.source - 1])
        assert source is not None
        assert self.machine.plan is not None
        return envelope.write(self.machine.plan, 0, command, source)

    def deploy(self, plan: Plan) -> list[Command]:
        """Publish a plan."""
        return self.publish(self.subjects.plan, plan.to_bytes())

    def arrive(self, token: str, data: bytes = b"x", **headers: str) -> list[Command]:
        """Publish a package."""
        return self.publish(self.subjects.arrival(token), data, **headers)

    def arrive_packed(self, token: str, data: bytes) -> list[Command]:
        """Publish bytes that claim to be a DataPackage."""
        return self.arrive(token, data, content_type=CONTENT_TYPE)

    def open(self, token: str) -> list[Command]:
        """Open an instance."""
        return self.arrive(token, control=CONTROL_OPEN)

    def close(self, token: str) -> list[Command]:
        """Close an instance."""
        return self.arrive(token, control=CONTROL_CLOSE)

    def tick(self, at: int | None = None) -> list[Command]:
        """Publish a tick, at a time or now."""
        if at is not None:
            self.now = max(self.now, at - 1)
        return self.publish(self.subjects.tick)

    def completion(self, raw: bytes, outcome: Outcome, phases: int) -> bytes:
        """What a worker makes of a dispatch."""
        package = pb.DataPackage.FromString(raw)
        for number in range(phases):
            last = number + 1 == phases
            package.controllers[-1].phases.add(
                name=f"p{number}",
                status=STATUS_TO_PB[outcome if last else Outcome.SUCCESS],
                worker="w",
                start_time_ns=self.now,
                total_time_ns=7,
            )
        return package.SerializeToString()

    def complete(
        self, position: int, outcome: Outcome = Outcome.SUCCESS, phases: int = 2
    ) -> list[Command]:
        """Let a worker finish one of the queue."""
        dispatch, raw = self.queue.pop(position)
        return self.repeat(dispatch, raw, outcome, phases)

    def repeat(
        self, dispatch: Dispatch, raw: bytes, outcome: Outcome = Outcome.SUCCESS, phases: int = 2
    ) -> list[Command]:
        """Publish a completion, whether or not there was one."""
        name = f"c{dispatch.controller}"
        data = self.completion(raw, outcome, phases)
        return self.publish(self.subjects.completion(name, dispatch.instance), data)

    def finish(self) -> list[Command]:
        """Let the workers finish everything."""
        commands = []
        while self.queue:
            commands += self.complete(0)
        return commands


def whole(machine: Machine) -> tuple[bytes, list[bytes]]:
    """A machine as the bytes of one snapshot, which it does not notice."""
    changed, held = dict(machine.changed), [i.held_by for i in machine.instances.values()]
    taken = snapshot.Chain().take(machine)
    machine.changed = changed
    for instance, number in zip(machine.instances.values(), held, strict=True):
        instance.held_by = number
    return taken.head, taken.parts


def state_of(machine: Machine) -> tuple[object, ...]:
    """All that a machine knows, in the order that counts: two that are equal decide alike."""
    instances = [msgspec.msgpack.encode(i.dump()) for i in machine.instances.values()]
    actives = [instance.active for instance in machine.instances.values()]
    assert actives == sorted(actives)
    held = (machine.applied, machine.time, machine.plan, list(machine.gaps.items()))
    return (*held, machine.unplanned, machine.oldest_source(), sorted(instances))


@dataclass
class Shelf:
    """Where a chain of snapshots is stored: the parts that the newest head needs, in order."""

    head: bytes = b""
    parts: list[bytes] = field(default_factory=list)

    def put(self, taken: snapshot.Taken) -> None:
        """Store one, as a store does."""
        self.head = taken.head
        self.parts = self.parts[len(self.parts) - taken.kept :] + taken.parts

    def restore(self) -> tuple[Machine, snapshot.Chain]:
        """Read it again."""
        return snapshot.restore(snapshot.read_head(self.head), self.parts)


def emits(commands: list[Command]) -> list[Emit]:
    """Those that leave."""
    return [command for command in commands if isinstance(command, Emit)]


def dispatches(commands: list[Command]) -> list[Dispatch]:
    """Those that go to workers."""
    return [command for command in commands if isinstance(command, Dispatch)]


bounds = st.one_of(
    st.just((None, None)),
    st.tuples(st.integers(1, 3), st.one_of(st.none(), st.integers(0, 3))),
)


ages = st.one_of(st.none(), st.integers(1, 30), st.integers(1, 4 * SECOND))
"""Of some messages of a `World`, or of some of its waits."""


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    """One to three controllers of mixed modes, bounds and ages."""
    rules: list[Rule] = []
    for mode in draw(st.lists(st.sampled_from(Mode), min_size=1, max_size=3)):
        window, queue_size = draw(bounds)
        if mode is Mode.NOT_PARALLEL:
            window, queue_size = 1, draw(st.one_of(st.none(), st.integers(0, 3)))
        rules.append((mode, window, queue_size, draw(ages)))
    return rules


outcomes = st.sampled_from(
    [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.SUCCESS, Outcome.EXIT, Outcome.ERROR]
)
tokens = st.sampled_from(["a", "b", "mic-1"])
actions = st.one_of(
    st.tuples(st.just("arrive"), tokens, st.integers(0, 5)),
    st.tuples(st.just("arrive"), tokens, st.integers(0, 5)),
    st.tuples(st.just("complete"), st.integers(0, 9), outcomes),
    st.tuples(st.just("complete"), st.integers(0, 9), outcomes),
    st.tuples(st.just("repeat"), st.integers(0, 9), outcomes),
)
rough_actions = st.one_of(
    actions,
    st.tuples(st.just("number"), tokens, st.integers(1, 6)),
    st.tuples(st.just("open"), tokens, st.none()),
    st.tuples(st.just("close"), tokens, st.none()),
    st.tuples(st.just("malformed"), tokens, st.none()),
    st.tuples(st.just("wait"), st.integers(0, 5 * SECOND), st.none()),
    st.tuples(st.just("pause"), st.sampled_from([TICK_PAUSE, TICK_RESUME]), st.none()),
    st.tuples(st.just("deploy"), st.integers(1, 4), st.one_of(st.none(), st.integers(0, 3))),
)


def act(world: World, action: tuple) -> list[Command]:
    """Do one of the `rough_actions`; one that is not possible now is none."""
    kind, what, how = action
    if kind == "arrive":
        return world.arrive(what, bytes([how]))
    if kind == "complete":
        return world.complete(what % len(world.queue), how) if world.queue else []
    if kind == "repeat":
        done = [d for given in world.given for d in given if ".work." in d[0]]
        if not done:
            return []
        subject, _, raw = done[what % len(done)]
        package = pb.DataPackage.FromString(raw)
        if any(raw == waiting for _, waiting in world.queue):
            return []
        controller, token = subject.split(".")[4], subject.rpartition(".")[2]
        data = world.completion(raw, how, 2)
        assert package.controllers[-1].name == controller
        return world.publish(world.subjects.completion(controller, token), data)
    if kind == "number":
        return world.arrive(what, b"n", producer="p", number=str(how))
    if kind == "open":
        return world.open(what)
    if kind == "close":
        return world.close(what)
    if kind == "malformed":
        return world.arrive_packed(what, b"\xff\xff")
    if kind == "wait":
        return world.tick(world.now + what)
    if kind == "pause":
        return world.publish(world.subjects.tick, what)
    rules = [
        (c.mode, 1 if c.mode is Mode.NOT_PARALLEL else what, how, c.max_age_ns and what * SECOND)
        for c in world.machine.plan.controllers
    ]
    idle_s = world.machine.plan.instance_idle_ns / SECOND
    return world.deploy(make_plan(rules, idle_s=idle_s))
