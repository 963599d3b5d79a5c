"""What the rules of picking come to together: simulated servers, and who gets how much."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from functools import partial

import pytest

from broker_pipeline.external import picking
from broker_pipeline.external.picking import Standing, pick
from tests.unit.external.standings import MS, S


class Simulation:
    """Servers that run packages in order, a caller that picks, and a clock that jumps."""

    def __init__(
        self, run_ms: list[float], *, capacity: int, credit: int, bridge: bool = False
    ) -> None:
        self.random = random.Random(1)
        self.bridge = bridge
        self.broker: deque[int] = deque()
        self.capacity, self.credit = capacity, credit
        self.standings: list[Standing] = []
        self.run_ns: list[int] = []
        self.queues: list[deque[int]] = []
        self.running: list[int] = []
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.now = 0
        self.waiting: deque[int] = deque()
        self.latencies: list[int] = []
        self.done: list[int] = []
        self.window = 0
        for each in run_ms:
            self.add(each)

    def add(self, run_ms: float) -> None:
        """One more server, with nothing known of it."""
        new = Standing()
        new.credit, new.capacity = self.credit, self.capacity
        self.standings.append(new)
        self.run_ns.append(int(run_ms * MS))
        self.queues.append(deque())
        self.running.append(0)
        self.done.append(0)

    def at(self, when: int, what: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self, until: int) -> None:
        """Go on to a time."""
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    def arrive(self) -> None:
        """One more package."""
        self.broker.append(self.now)
        self.dispatch()

    def room(self) -> int:
        """As the caller tells its worker."""
        return sum(each.room(self.now) for each in self.standings) - len(self.waiting)

    def take(self) -> None:
        """A bridge takes what there is room for; else all waits in the caller."""
        while self.broker and (not self.bridge or self.room() > 0):
            self.waiting.append(self.broker.popleft())

    def poisson(self, per_s: float) -> None:
        """Packages from now on, by chance."""

        def one() -> None:
            self.arrive()
            self.at(self.now + int(self.random.expovariate(per_s) * S), one)

        self.at(self.now, one)

    def dispatch(self) -> None:
        """As the caller does, with a look every 50 ms for those that wait."""
        self.take()
        more = len(self.waiting) >= picking.MORE_MIN and self.room() <= 0
        while self.waiting:
            one = pick(
                self.standings,
                now_ns=self.now,
                waiting=len(self.waiting),
                waited_ns=self.now - self.waiting[0],
                draws=(self.random.random(), self.random.random()),
                more=more,
            )
            if one is None:
                if not self.events:
                    self.at(self.now + 50 * MS, self.dispatch)
                return
            server = self.standings.index(one)
            self.queues[server].append(self.waiting.popleft())
            one.sent()
            self.begin(server)

    def begin(self, server: int) -> None:
        """The server takes what it has room for."""
        while self.queues[server] and self.running[server] < self.capacity:
            arrived = self.queues[server].popleft()
            self.running[server] += 1
            took = int(self.run_ns[server] * self.random.uniform(0.8, 1.2))
            self.at(self.now + took, partial(self.end, server, arrived))

    def end(self, server: int, arrived: int) -> None:
        """The server answers and says how busy it is."""
        one = self.standings[server]
        self.running[server] -= 1
        self.done[server] += 1
        self.begin(server)
        one.ended()
        one.answered(arrived, self.now, one.outstanding)
        one.reported(self.running[server], len(self.queues[server]), self.run_ns[server])
        self.latencies.append(self.now - arrived)
        if self.window:
            self.arrive()
        self.dispatch()

    def percentile(self, share: float) -> float:
        """Of the latencies, in ms."""
        return sorted(self.latencies)[int(len(self.latencies) * share)] / MS


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize(("capacity", "credit"), [(1, 2), (4, 8), (4, 64), (16, 32)])
def test_a_slow_server_of_four_adds_what_it_can(capacity: int, credit: int, bridge: bool) -> None:
    """With always enough to do, four servers of which one is five times slower reach 90 % of the
    sum of their rates; with room for more than a few even more than the three fast ones could."""
    simulation = Simulation([10, 10, 10, 50], capacity=capacity, credit=credit, bridge=bridge)
    simulation.window = 1
    for _ in range(4 * capacity * 12):
        simulation.arrive()
    simulation.run(3 * S)
    ideal = capacity * (3 / 0.010 + 1 / 0.050)
    rate = len(simulation.latencies) / 3
    assert rate >= (0.9 if capacity == 1 else 0.95) * ideal, f"{rate:.0f} of {ideal:.0f} a second"
    assert simulation.done[3] > 0


@pytest.mark.parametrize(("capacity", "credit"), [(1, 2), (4, 8), (4, 64), (16, 32)])
@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize("bridge", [False, True])
def test_a_slow_server_of_four_does_not_cost_the_slowest_packages(
    capacity: int, credit: int, load: float, bridge: bool
) -> None:
    """At the same share of what they can do, p99 is at most 1.5 times that of four equal ones."""
    found = {}
    for slow in (10, 50):
        simulation = Simulation([10, 10, 10, slow], capacity=capacity, credit=credit, bridge=bridge)
        simulation.poisson(load * capacity * (3 / 0.010 + 1 / (slow / 1000)))
        simulation.run(2 * S)
        simulation.latencies.clear()
        simulation.run((2 + 16 // capacity) * S)
        found[slow] = simulation.percentile(0.99)
    print(capacity, credit, load, found)
    assert found[50] <= 1.5 * found[10], found


def test_a_fifth_server_gets_its_share_at_once() -> None:
    """Within a second of the first package that it could have had."""
    simulation = Simulation([10] * 4, capacity=4, credit=8)
    simulation.window = 1
    for _ in range(100):
        simulation.arrive()
    simulation.run(2 * S)
    simulation.add(10)
    simulation.dispatch()
    simulation.run(3 * S)
    share = simulation.done[4] / (sum(simulation.done) * 1 / 3)
    assert share >= 0.15, share
