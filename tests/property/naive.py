"""The modes as a beginner would write them: lists and loops, from the documents alone.

Slow, obviously right, and sharing nothing with the machine but the names of modes and outcomes.
"""

from __future__ import annotations

from broker_pipeline.journey import Mode, Outcome


class NaiveController:
    """One instance's packages in one controller. Packages are numbers from 1, by arrival here."""

    def __init__(self, mode: Mode, window: int | None, queue_size: int | None) -> None:
        self.mode = mode
        self.window = window
        self.queue_size = queue_size
        self.arrived = 0
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.finished: list[int] = []
        self.left: list[tuple[int, Outcome]] = []

    def arrive(self, *, too_old: bool = False) -> tuple[list[int], list[tuple[int, Outcome]]]:
        """What starts and what leaves, because one more arrived."""
        self.arrived += 1
        before = len(self.left)
        if too_old:
            self.left.append((self.arrived, Outcome.OUTDATED))
            self._let_those_go_whose_turn_it_is()
            return [], self.left[before:]
        self.waiting.append(self.arrived)
        started = self._start()
        before = len(self.left)
        if self.queue_size is not None:
            while len(self.waiting) > self.queue_size:
                self.left.append((self.waiting.pop(0), Outcome.OVERFLOW))
                self._let_those_go_whose_turn_it_is()
        return started, self.left[before:]

    def complete(
        self, number: int, outcome: Outcome
    ) -> tuple[list[int], list[tuple[int, Outcome]]]:
        """What starts and what leaves, because one came back."""
        self.running.remove(number)
        before = len(self.left)
        if outcome is not Outcome.SUCCESS:
            self.left.append((number, outcome))
        elif self.mode is Mode.ORDER_BY_SEQUENCE:
            self.finished.append(number)
        elif self.mode is Mode.FIRST_WINS and self._overtaken(number):
            self.left.append((number, Outcome.OUTDATED))
        else:
            self.left.append((number, Outcome.SUCCESS))
        self._let_those_go_whose_turn_it_is()
        return self._start(), self.left[before:]

    def grow_old(self, number: int) -> list[tuple[int, Outcome]]:
        """What leaves, because one that waits to start, or for its turn, is too old."""
        (self.waiting if number in self.waiting else self.finished).remove(number)
        before = len(self.left)
        self.left.append((number, Outcome.OUTDATED))
        self._let_those_go_whose_turn_it_is()
        return self.left[before:]

    def change(self, window: int | None, queue_size: int | None) -> list[int]:
        """What starts, because the bounds were changed."""
        self.window = window
        self.queue_size = queue_size
        return self._start()

    @property
    def inside(self) -> int:
        """Those that arrived and have not left."""
        return self.arrived - len(self.left)

    def _overtaken(self, number: int) -> bool:
        return any(other > number and outcome is Outcome.SUCCESS for other, outcome in self.left)

    def _start(self) -> list[int]:
        started = []
        while self.waiting and (self.window is None or len(self.running) < self.window):
            started.append(self.waiting.pop(0))
            self.running.append(started[-1])
        return started

    def _let_those_go_whose_turn_it_is(self) -> None:
        for number in range(1, self.arrived + 1):
            if number in [gone for gone, _ in self.left]:
                continue
            if number not in self.finished:
                return
            self.finished.remove(number)
            self.left.append((number, Outcome.SUCCESS))


class NaiveChain:
    """One instance's way through several controllers. Packages are told apart by any label.

    What is older than a controller's age leaves it, whatever else happens: so `pass_time` comes
    before everything else.
    """

    def __init__(self, rules: list[tuple]) -> None:
        self.controllers = [NaiveController(*rule[:3]) for rule in rules]
        self.ages: list[int | None] = [rule[3] if len(rule) > 3 else None for rule in rules]
        self.labels: list[list[int]] = [[] for _ in rules]
        self.born: dict[int, int] = {}
        self.now = 0

    def pass_time(self, now: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]]:
        """What starts and what is out, because it is so late now; as `arrive` says it."""
        self.now = now
        starts: list[tuple[int, int, int]] = []
        outs: list[tuple[int, Outcome]] = []
        while too_old := [
            (self.born[self.labels[index][number - 1]] + (self.ages[index] or 0), index, number)
            for index, controller in enumerate(self.controllers)
            for number in controller.waiting + controller.finished
            if self._too_old(index, self.labels[index][number - 1])
        ]:
            _, index, number = min(too_old)
            self._follow(index, ([], self.controllers[index].grow_old(number)), starts, outs)
        return starts, outs

    def _too_old(self, index: int, label: int) -> bool:
        age = self.ages[index]
        return age is not None and self.now - self.born[label] >= age

    def arrive(
        self, label: int, born: int = 0
    ) -> tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]]:
        """`(controller, number there, label)` of what starts; `(label, outcome)` of what is out."""
        self.born[label] = born
        starts: list[tuple[int, int, int]] = []
        outs: list[tuple[int, Outcome]] = []
        self._enter(0, label, starts, outs)
        return starts, outs

    def complete(
        self, index: int, number: int, outcome: Outcome
    ) -> tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]]:
        """The same, for one that came back to a controller."""
        starts: list[tuple[int, int, int]] = []
        outs: list[tuple[int, Outcome]] = []
        if outcome is Outcome.SUCCESS and self._too_old(index, self.labels[index][number - 1]):
            outcome = Outcome.OUTDATED
        self._follow(index, self.controllers[index].complete(number, outcome), starts, outs)
        return starts, outs

    def change(
        self, rules: list[tuple]
    ) -> tuple[list[tuple[int, int, int]], list[tuple[int, Outcome]]]:
        """The same, for new bounds and ages."""
        self.ages = [rule[2] if len(rule) > 2 else None for rule in rules]
        for controller, rule in zip(self.controllers, rules, strict=True):
            controller.window, controller.queue_size = rule[:2]
        starts, outs = self.pass_time(self.now)
        for index, controller in enumerate(self.controllers):
            self._follow(index, (controller.change(*rules[index][:2]), []), starts, outs)
        return starts, outs

    @property
    def inside(self) -> int:
        """Those that are in any controller."""
        return sum(controller.inside for controller in self.controllers)

    def _enter(self, index: int, label: int, starts: list, outs: list) -> None:
        self.labels[index].append(label)
        too_old = self._too_old(index, label)
        self._follow(index, self.controllers[index].arrive(too_old=too_old), starts, outs)

    def _follow(self, index: int, happened: tuple, starts: list, outs: list) -> None:
        started, left = happened
        labels = self.labels[index]
        starts += [(index, number, labels[number - 1]) for number in started]
        for number, outcome in left:
            if outcome is Outcome.SUCCESS and index + 1 < len(self.controllers):
                self._enter(index + 1, labels[number - 1], starts, outs)
            else:
                outs.append((labels[number - 1], outcome))


class NaiveProducer:
    """What one producer's numbered packages become: each once, in order, gaps waited for.

    What it is told is `(number, label)`; what it answers are the labels that are taken now.
    """

    def __init__(self, gap_ns: int) -> None:
        self.gap_ns = gap_ns
        self.expected = 1
        self.early: list[tuple[int, int]] = []
        self.missing_since: int | None = None
        self.seen: set[int] = set()

    def arrive(self, number: int, label: int, now: int) -> list[int]:
        """A numbered package arrived."""
        if number in self.seen:
            return []
        self.seen.add(number)
        if number < self.expected:  # too late for its place, and still taken
            return [label]
        self.early.append((number, label))
        return self._take(now)

    def pass_time(self, now: int) -> list[int]:
        """Time passed: the wait for a missing one may be over, more than once."""
        if self.missing_since is None or now < self.missing_since + self.gap_ns:
            return []
        self.expected = min(number for number, _ in self.early)
        return self._take(now)

    def _take(self, now: int) -> list[int]:
        taken = []
        for number, label in sorted(self.early):
            if number == self.expected:
                taken.append(label)
                self.early.remove((number, label))
                self.expected += 1
        if not self.early:
            self.missing_since = None
        elif taken or self.missing_since is None:
            self.missing_since = now
        return taken
