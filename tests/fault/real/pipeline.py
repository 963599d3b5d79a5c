"""The pipeline of the runs on real processes: all four modes in a chain, and a running count.

It bears the simulation's name and runs the simulation's modules, so that the same checkers read it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from broker_pipeline import Controller, Mode, Phase, Pipeline
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.plan import lanes_in
from tests.fault.modules import POISON, Mark, build, orders
from tests.fault.scenario import NAME, Kinds

ACK_WAIT_S = 2.0
MAX_DELIVER = 8
"""A poison package kills so many workers. Neighbours of it are delivered again as often."""
IDLE_S = 3600.0
"""No instance ends by itself in a run: the model replays each instance on its own."""
GAP_S = 5.0
WINDOW_S = 120.0
"""The shortest that is allowed, so that a run of some minutes purges; what is stored is recorded as
it comes."""


class Deadly(Mark):
    """Leaves a mark; a poison package kills the process, as a crash in native code would."""

    def execute(self, package: Any, run: Any) -> None:
        """See the class."""
        if orders(package.data).get(self.place) == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        super().execute(package, run)


KINDS: Kinds = {
    "free.p": ("mark",),
    "first.p": ("mark",),
    "count.p": ("count",),
    "order.p": ("mark",),
}
POISON_PLACE = "free.p"


def _phase(place: str, modules: list[Any]) -> Phase:
    return Phase("p", modules, ack_wait_s=ACK_WAIT_S, max_deliver=MAX_DELIVER)


pipeline = Pipeline(
    NAME,
    [
        Controller(
            "free",
            [_phase("free.p", [Deadly("free.p", obeys=True)])],
            mode=Mode.NO_ORDER,
            max_workers=64,
            queue_size=400,
        ),
        Controller(
            "first",
            [_phase("first.p", build("first.p", KINDS["first.p"]))],
            mode=Mode.FIRST_WINS,
            max_workers=8,
        ),
        Controller(
            "count",
            [_phase("count.p", build("count.p", KINDS["count.p"]))],
            mode=Mode.NOT_PARALLEL,
        ),
        Controller(
            "order",
            [_phase("order.p", build("order.p", KINDS["order.p"]))],
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=16,
        ),
    ],
    instance_idle_s=IDLE_S,
    producer_gap_s=GAP_S,
    replay_window_s=WINDOW_S,
)

CONSUMERS = [
    consumer
    for controller in pipeline.controllers
    for phase in controller.phases
    for consumer, _ in Subjects(NAME, 0).consumers(controller.name, phase.name, lanes_in(phase))
]
"""Of all queues, lane by lane."""
