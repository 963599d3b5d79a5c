"""`tests.property.naive` for long instances: the same rules, in time that grows with the packages.

The naive one looks through all packages for each; a test holds the two to the same answers.
"""

from __future__ import annotations

from collections import deque

from broker_pipeline.journey import Mode, Outcome
from tests.property.naive import NaiveChain, NaiveController


class FastController(NaiveController):
    """One instance's packages in one controller."""

    def __init__(self, mode: Mode, window: int | None, queue_size: int | None) -> None:
        super().__init__(mode, window, queue_size)
        self.waiting: deque[int] = deque()  # type: ignore[assignment]
        self.running: set[int] = set()  # type: ignore[assignment]
        self.finished: set[int] = set()  # type: ignore[assignment]
        self._newest_success = 0
        self._gone: set[int] = set()
        self._gone_seen = 0
        self._turn = 1

    def _overtaken(self, number: int) -> bool:
        self._see()
        return self._newest_success > number

    def _see(self) -> None:
        """What has left since the last look."""
        for number, outcome in self.left[self._gone_seen :]:
            self._gone.add(number)
            if outcome is Outcome.SUCCESS:
                self._newest_success = max(self._newest_success, number)
        self._gone_seen = len(self.left)

    def complete(
        self, number: int, outcome: Outcome
    ) -> tuple[list[int], list[tuple[int, Outcome]]]:
        """What starts and what leaves, because one came back."""
        self.running.remove(number)
        before = len(self.left)
        if outcome is not Outcome.SUCCESS:
            self.left.append((number, outcome))
        elif self.mode is Mode.ORDER_BY_SEQUENCE:
            self.finished.add(number)
        elif self.mode is Mode.FIRST_WINS and self._overtaken(number):
            self.left.append((number, Outcome.OUTDATED))
        else:
            self.left.append((number, Outcome.SUCCESS))
        self._let_those_go_whose_turn_it_is()
        return self._start(), self.left[before:]

    def arrive(self, *, too_old: bool = False) -> tuple[list[int], list[tuple[int, Outcome]]]:
        """What starts and what leaves, because one more arrived."""
        assert not too_old, "the runs on real processes set no ages"
        self.arrived += 1
        self.waiting.append(self.arrived)
        started = self._start()
        before = len(self.left)
        if self.queue_size is not None:
            while len(self.waiting) > self.queue_size:
                self.left.append((self.waiting.popleft(), Outcome.OVERFLOW))
                self._let_those_go_whose_turn_it_is()
        return started, self.left[before:]

    def _start(self) -> list[int]:
        started = []
        while self.waiting and (self.window is None or len(self.running) < self.window):
            started.append(self.waiting.popleft())
            self.running.add(started[-1])
        return started

    def _let_those_go_whose_turn_it_is(self) -> None:
        self._see()
        while self._turn <= self.arrived:
            if self._turn in self._gone:
                self._gone.discard(self._turn)
            elif self._turn in self.finished:
                self.finished.remove(self._turn)
                self.left.append((self._turn, Outcome.SUCCESS))
            else:
                return
            self._turn += 1


class FastChain(NaiveChain):
    """One instance's way through several controllers, none of which has a `max_age_s`."""

    def __init__(self, rules: list[tuple]) -> None:
        super().__init__(rules)
        self.controllers = [FastController(*rule[:3]) for rule in rules]

    def pass_time(self, now: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]]:
        """Nothing gets too old."""
        self.now = now
        return [], []
