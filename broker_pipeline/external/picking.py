"""Which server gets the next package. Pure: times and draws are arguments.

Of two servers drawn by chance among those that have room the one wins that would be done first:
nearly as good as asking all, and many callers do not run to the same one (docs/adr/0021). Where
only a slow one has room, waiting for a better one may be sooner: then nobody is picked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

EWMA_SHIFT = 3
"""Our own measurements count an eighth each: a dozen packages tell a server that has changed."""
FAILURES_MAX = 3
"""So many calls in a row that fail, one by one, eject a server; a broken stream does it at once."""
BACKOFF_MIN_NS = 100_000_000
"""Until a server that failed once is tried again: a restart behind a proxy takes as long."""
BACKOFF_MAX_NS = 5_000_000_000
"""However often it failed: so long a server that is back may wait for us."""
JITTER = 0.25
"""A backoff is so much longer or shorter by chance, so that callers do not come all at once."""
NEW_CREDIT = 4
"""As many packages get a server of which nothing is known before its first answer: enough to
measure it, and no more than a hung one may hold."""

FADE_SHIFT = 6
"""By so much of it, each time, fades how slow a server was that has nothing to do: looked at twenty
times a second it is half after two. A server that was slow once must be tried again; one that is
five times slower than others gets a few packages every five seconds for it."""
MORE_MIN = 4
"""With fewer waiting it is not said that there are more behind them: a few come by chance."""


class Health(Enum):
    """Whether a server gets packages."""

    GOOD = "gets packages"
    EJECTED = "gets none until its backoff is over"
    PROBING = "gets one, to see"


class Standing:
    """What is known of one server, or of one stream to a proxy.

    Attributes:
        credit: how many packages it takes from here at once; 0: none now.
        outstanding: how many it has from here.
        capacity: how many it runs at once; 0: it does not say.
        health: whether it gets packages.
        until_ns: when its backoff is over.
    """

    __slots__ = (
        "_answered_ns",
        "_errors",
        "_failed",
        "_in_a_row",
        "_measured_ns",
        "_others",
        "_reported_ns",
        "_told_ns",
        "capacity",
        "credit",
        "ejected_ns",
        "health",
        "outstanding",
        "until_ns",
    )

    def __init__(self) -> None:
        self.credit = 0
        self.outstanding = 0
        self.capacity = 0
        self.health = Health.GOOD
        self.until_ns = 0
        self.ejected_ns = 0
        self._others = 0
        self._reported_ns = 0
        self._told_ns = 0
        self._measured_ns = 0
        self._answered_ns = 0
        self._errors = 0
        self._failed = 0
        self._in_a_row = 0

    # -- how busy it is -------------------------------------------------------------------------
    def sent(self) -> None:
        """It was given a package."""
        self.outstanding += 1

    def ended(self) -> None:
        """It has a package no more, whatever became of it."""
        self.outstanding -= 1

    def answered(self, sent_ns: int, now_ns: int, ahead: int, *, error: bool = False) -> None:
        """It has answered a package that found so many of ours ahead of it: it works.

        Args:
            error: an ERROR, the module's own. It says nothing of how long work takes.
        """
        self._errors = self._errors + 1 if error else 0
        pace = (now_ns - sent_ns) // (ahead + 1)
        if self._measured_ns and not error:
            self._measured_ns += (pace - self._measured_ns) >> EWMA_SHIFT
        elif not error:
            self._measured_ns = pace
        self._answered_ns = now_ns
        self._failed = self._in_a_row = 0
        self.health = Health.GOOD

    def rested(self) -> None:
        """It is looked at now and then; if it has nothing of ours, what is known fades."""
        if not self.outstanding:
            self._measured_ns -= self._measured_ns >> FADE_SHIFT
            self._reported_ns -= self._reported_ns >> FADE_SHIFT

    def reported(self, running: int, waiting: int, run_time_ns: int) -> None:
        """It says how busy it is, over all its callers."""
        self._others = max(0, running + waiting - self.outstanding)
        if run_time_ns != self._told_ns:  # else it has run nothing since, and is as it faded
            self._told_ns = self._reported_ns = run_time_ns

    @property
    def pace_ns(self) -> int:
        """How long it takes for each of many packages; 0: not known."""
        if self._reported_ns and self.capacity:
            return max(1, self._reported_ns // self.capacity)
        return self._measured_ns

    @property
    def load(self) -> int:
        """How many packages it has, ours and others'."""
        return self.outstanding + self._others

    @property
    def failing(self) -> int:
        """How many ERRORs in a row came last, up to what it could be busy with."""
        return min(self._errors, max(NEW_CREDIT, self.capacity))

    def expected_ns(self, unknown_ns: int) -> int:
        """How long one more package would be there; of an unknown server as if its pace were
        `unknown_ns`."""
        queued = (self.load + 1) * (self.pace_ns or unknown_ns)
        return max(queued, self._reported_ns) if self.capacity else queued

    def room(self, now_ns: int) -> int:
        """How many more packages it may have."""
        if self.health is not Health.GOOD:
            if self.health is Health.EJECTED:
                if now_ns < self.until_ns:
                    return 0
                self.health = Health.PROBING
            return 1 if self.credit > 0 and not self.outstanding else 0
        if not self.pace_ns and self.credit > NEW_CREDIT:
            return max(0, max(NEW_CREDIT, min(self.capacity, self.credit)) - self.outstanding)
        return max(0, self.credit - self.outstanding)

    # -- whether it works -----------------------------------------------------------------------
    def failed(self, now_ns: int, draw: float) -> bool:
        """One call has failed; whether that ejects it. What fails with it is no further news."""
        if self.health is Health.EJECTED:
            return False
        self._failed += 1
        if self._failed < FAILURES_MAX and self.health is Health.GOOD:
            return False
        self.eject(now_ns, draw)
        return True

    def is_silent(self, came_ns: int, sent_ns: int, now_ns: int) -> bool:
        """Whether a package that it has not answered by its deadline speaks against it.

        Not where it has answered others since, or is ejected since; nor where the package came to
        it with less time than one takes there, or had spent most of its time before (a probe may:
        one that hangs would get late packages for ever).
        """
        if sent_ns <= max(self._answered_ns, self.ejected_ns):
            return False
        had_ns = now_ns - sent_ns
        late = self.health is Health.GOOD and had_ns < sent_ns - came_ns
        return not late and had_ns >= (self._reported_ns or self._measured_ns)

    def eject(self, now_ns: int, draw: float) -> None:
        """It is given no packages for a while, twice as long each time up to BACKOFF_MAX_NS.

        Args:
            draw: by chance from 0 to 1.
        """
        backoff = min(BACKOFF_MAX_NS, BACKOFF_MIN_NS << min(self._in_a_row, 16))
        self._in_a_row += 1
        self._failed = 0
        self._others = 0
        self._measured_ns = 0  # as slow as it was when it failed, it would never be tried
        self.health = Health.EJECTED
        self.ejected_ns = now_ns
        self.until_ns = now_ns + int(backoff * (1 + JITTER * (2 * draw - 1)))

    @property
    def ejections(self) -> int:
        """How often in a row it was ejected."""
        return self._in_a_row


def pick(
    standings: Sequence[Standing],
    *,
    now_ns: int,
    waiting: int,
    waited_ns: int,
    draws: tuple[float, float],
    more: bool = False,
    avoid: Collection[Standing] = (),
) -> Standing | None:
    """The server for the next package, or None: none has room, or waiting is better.

    Args:
        waiting: how many packages wait, this one included.
        waited_ns: how long this one has waited.
        draws: two numbers by chance, each from 0 to below 1.
        more: whether there may be many more behind those that wait: a worker takes no more than
            there is room for. Then a slow server that has a place free gets one.
        avoid: servers that are not to get it.
    """
    candidates = [each for each in standings if each.room(now_ns) > 0 and each not in avoid]
    if not candidates:
        return _soonest(standings, now_ns, avoid)
    if len(standings) == 1:
        return candidates[0]
    paces = [pace for each in standings if (pace := each.pace_ns) and not each.failing]
    unknown_ns = min(paces, default=1)
    chosen = candidates[int(draws[0] * len(candidates))]
    if len(candidates) > 1:
        # The second is drawn from the rest: two different ones.
        other = int(draws[1] * (len(candidates) - 1))
        rival = candidates[other]
        if rival is chosen:
            rival = candidates[-1]
        if _rank(rival, unknown_ns) < _rank(chosen, unknown_ns):
            chosen = rival
    if len(candidates) < len(standings) and not (more and chosen.load < max(1, chosen.capacity)):
        alone_ns = chosen.expected_ns(unknown_ns)
        if waited_ns < alone_ns and _others_are_sooner(standings, chosen, alone_ns, waiting):
            return None
    return chosen


def _rank(standing: Standing, unknown_ns: int) -> tuple[int, int]:
    expected_ns, load = standing.expected_ns(unknown_ns), standing.load
    if standing.failing:
        # It is idle because it fails: as if it worked on those, and no faster than the others.
        load += standing.failing
        expected_ns = max(expected_ns, (load + 1) * max(standing.pace_ns, unknown_ns))
    return expected_ns, load


def _others_are_sooner(
    standings: Sequence[Standing], chosen: Standing, alone_ns: int, waiting: int
) -> bool:
    """Whether all that waits would be done by better servers before `chosen` had done its one.

    A better one has used up its credit, or it would have been drawn, or may be in the next turn.
    """
    queued, rate = waiting, 0.0
    for each in standings:
        pace = each.pace_ns
        if each is chosen or not pace or each.credit <= 0 or each.health is not Health.GOOD:
            continue
        if each.expected_ns(pace) < alone_ns:
            queued += each.load
            rate += 1 / pace
    return rate > 0 and queued / rate < alone_ns


def _soonest(
    standings: Sequence[Standing], now_ns: int, avoid: Collection[Standing]
) -> Standing | None:
    """Where all are ejected: the one whose backoff ends first may be tried before it does, once
    the shortest backoff is over."""
    best: Standing | None = None
    for each in standings:
        if each.health is Health.GOOD and each.credit > 0:
            return None  # it is only full
        free = each.credit > 0 and not each.outstanding and each not in avoid
        if each.health is Health.EJECTED and free and (
            best is None or each.until_ns < best.until_ns
        ):  # fmt: skip
            best = each
    if best is None or now_ns < best.ejected_ns + BACKOFF_MIN_NS:
        return None
    best.health = Health.PROBING
    return best
