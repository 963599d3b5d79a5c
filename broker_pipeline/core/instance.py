"""One life of an instance: its controllers' states, its producers, and whether it is closing."""

from __future__ import annotations

import msgspec

from broker_pipeline.core.controller import ControllerSnapshot, ControllerState
from broker_pipeline.core.events import Arrived, Closed, Opened
from broker_pipeline.core.plan import Plan
from broker_pipeline.core.producers import Producer

Parked = Arrived | Opened | Closed
"""What waits for the next life while this one ends."""

PRODUCERS_MAX = 64
"""Producers remembered for an instance; the one silent longest is forgotten first."""


class InstanceSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """An `InstanceState` as it is stored."""

    token: str
    epoch: int
    sequence: int
    active: int
    closing: bool
    controllers: list[ControllerSnapshot]
    producers: dict[str, Producer]
    parked: list[Parked]


class InstanceState:
    """What the machine knows of one instance.

    Attributes:
        epoch: the stream sequence with which this life began.
        sequence: how many packages have arrived in it.
        active: when it last saw something, ns of log time.
        inside: how many packages are in it.
        closing: no more are taken; the rest goes to `parked`, for the next life.
        held_by: the number of the slice that holds it, unless it has changed since; -1 for none.
    """

    __slots__ = (
        "active",
        "closing",
        "controllers",
        "epoch",
        "held_by",
        "inside",
        "parked",
        "producers",
        "sequence",
        "token",
    )

    def __init__(self, token: str, epoch: int, plan: Plan) -> None:
        self.token = token
        self.epoch = epoch
        self.sequence = 0
        self.active = 0
        self.inside = 0
        self.closing = False
        self.held_by = -1
        self.controllers = [ControllerState(rules) for rules in plan.controllers]
        self.producers: dict[str, Producer] = {}
        self.parked: list[Parked] = []

    @property
    def drained(self) -> bool:
        """Nothing is inside, and nothing is held for a missing package."""
        return not self.inside and not any(p.held for p in self.producers.values())

    def producer(self, name: str) -> Producer:
        """The producer of that name, remembered as the one heard last."""
        producer = self.producers.pop(name, None) or Producer()
        self.producers[name] = producer
        return producer

    def one_too_many(self) -> str | None:
        """The producer to forget, never the one heard last: the one silent longest of those for
        which nothing is held, if there is one; None while there is room."""
        if len(self.producers) <= PRODUCERS_MAX:
            return None
        *others, _ = self.producers
        return next((name for name in others if not self.producers[name].held), others[0])

    def oldest_source(self) -> int | None:
        """The lowest stream sequence whose bytes are needed again, to publish them or to compute a
        state from them; None where none is."""
        sources = [held.stream_seq for p in self.producers.values() for held in p.held.values()]
        sources += [event.stream_seq for event in self.parked]
        for state in self.controllers:
            floors = (state.oldest_source(), state.oldest_state_input(self.epoch))
            sources += [floor for floor in floors if floor is not None]
        return min(sources, default=None)

    def oldest_by_controller(self) -> list[int | None]:
        """For each controller the lowest id of the packages in it, or None; empty where all are."""
        if not self.inside:
            return []
        return [min(state.ids_inside(), default=None) for state in self.controllers]

    def oldest_inside(self, by_controller: list[int | None]) -> int | None:
        """The lowest id of the packages that are inside, or will be; None where there is none."""
        ids = [event.stream_seq for event in self.parked]
        for producer in self.producers.values():
            ids += [held.stream_seq for held in producer.held.values()]
        ids += [oldest for oldest in by_controller if oldest is not None]
        return min(ids, default=None)

    def dump(self) -> InstanceSnapshot:
        """As it is stored."""
        return InstanceSnapshot(
            self.token,
            self.epoch,
            self.sequence,
            self.active,
            self.closing,
            [state.dump() for state in self.controllers],
            self.producers,
            self.parked,
        )

    @classmethod
    def load(cls, stored: InstanceSnapshot, plan: Plan) -> InstanceState:
        """From what was stored."""
        instance = cls.__new__(cls)  # not by __init__, whose controllers would be thrown away
        instance.token = stored.token
        instance.epoch = stored.epoch
        instance.held_by = -1
        instance.sequence = stored.sequence
        instance.active = stored.active
        instance.closing = stored.closing
        instance.controllers = [
            ControllerState.load(rules, state)
            for rules, state in zip(plan.controllers, stored.controllers, strict=True)
        ]
        instance.producers = stored.producers
        instance.parked = stored.parked
        instance.inside = sum(state.inside for state in instance.controllers)
        return instance
