"""Which packages of a log, or of a recording, somebody means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import floor

from broker_pipeline.core.names import escape_instance, unescape_instance
from broker_pipeline.errors import ClientError, SelectionError
from broker_pipeline.journey import NS, Outcome

SEQUENCES_EXAMPLE = "'12', '3..9', '3..' or '..9'"
TIMES_EXAMPLE = (
    "a time of today as '14:00' or '14:00:30', a date as '2026-02-03' or '2026-02-03T14:00', "
    "with an offset if you like ('...Z', '...+02:00'), how long ago as '10m ago' (s, m, h, d), "
    "or 'now'"
)
_SEQUENCES = re.compile(r"(\d{1,18})?(?:(\.\.)(\d{1,18})?)?", re.ASCII)
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])(?:\s+ago)?", re.ASCII)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,6})?)?", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Selection:
    """Packages, by whose they are, when they came and how they left; empty: all of them.

    Attributes:
        instances: their tokens, as `escape_instance` gives them; none: all instances.
        first, last: sequence ids in the pipeline, both included, in each life of an instance.
        since_ns, until_ns: when they arrived, ns since the epoch, by the broker's clock;
            `until_ns` is not included.
        outcomes: how they left; none: with whatever outcome, and those that are still inside.
    """

    instances: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    outcomes: frozenset[Outcome] = frozenset()

    @classmethod
    def parse(
        cls,
        *,
        instances: Iterable[str] = (),
        sequences: str = "",
        since: str = "",
        until: str = "",
        outcomes: Iterable[Outcome] = (),
        errors: bool = False,
        now: datetime,
    ) -> Selection:
        """From what a person wrote; '' stands for nothing.

        Args:
            instances: names.
            sequences: '12', '3..9', '3..' or '..9'.
            since, until: see `parse_time`.
            errors: the same as ERROR among the outcomes.
            now: what `since` and `until` are relative to, as `parse_time` takes it.

        Raises:
            SelectionError: something cannot be read, or no package can be meant.
        """
        first, last = parse_sequences(sequences) if sequences else (1, None)
        since_ns = parse_time(since, now) if since else None
        until_ns = parse_time(until, now) if until else None
        if since_ns is not None and until_ns is not None and since_ns >= until_ns:
            raise SelectionError(
                f"since {since!r} is not before until {until!r}; expected a stretch of time: "
                f"write the earlier one first",
                since=since,
                until=until,
            )
        wanted = frozenset([*outcomes, *([Outcome.ERROR] if errors else [])])
        tokens = dict.fromkeys(_token(name) for name in instances)
        return cls(tuple(tokens), first, last, since_ns, until_ns, wanted)

    @property
    def by_sequence(self) -> bool:
        """Whether sequence ids count."""
        return self.first > 1 or self.last is not None

    @property
    def cuts_lives(self) -> bool:
        """Whether it may take a part of an instance's life only. Then the states of stateful
        modules, and what the windows of controllers have room for, differ in a replay. What was
        cut really is for `Recording.cut_lives` to say."""
        return bool(
            self.by_sequence
            or self.outcomes
            or self.since_ns is not None
            or self.until_ns is not None
        )

    def takes_instance(self, token: str) -> bool:
        """Whether an instance is meant, by its token."""
        return not self.instances or token in self.instances

    def takes_time(self, arrived_ns: int) -> bool:
        """Whether what arrived at a time is meant."""
        after = self.since_ns is None or arrived_ns >= self.since_ns
        return after and (self.until_ns is None or arrived_ns < self.until_ns)

    def takes_sequence(self, sequence: int) -> bool:
        """Whether a sequence id is meant."""
        return sequence >= self.first and (self.last is None or sequence <= self.last)

    def takes_outcome(self, outcome: Outcome | None) -> bool:
        """Whether what left so is meant; None: it is inside still."""
        return not self.outcomes or outcome in self.outcomes

    def takes(self, token: str, sequence: int, arrived_ns: int, outcome: Outcome | None) -> bool:
        """Whether a package is meant."""
        return (
            self.takes_outcome(outcome)
            and self.takes_sequence(sequence)
            and self.takes_time(arrived_ns)
            and self.takes_instance(token)
        )

    def __str__(self) -> str:
        parts = []
        if self.instances:
            parts.append(
                f"instances {', '.join(repr(unescape_instance(t)) for t in self.instances)}"
            )
        if self.by_sequence:
            last = "" if self.last is None else self.last
            parts.append(f"sequences {self.first}..{last}")
        if self.since_ns is not None:
            parts.append(f"since {_written(self.since_ns)}")
        if self.until_ns is not None:
            parts.append(f"until {_written(self.until_ns)}")
        if self.outcomes:
            parts.append(" or ".join(each.value for each in Outcome if each in self.outcomes))
        return ", ".join(parts) or "everything"


def parse_sequences(text: str) -> tuple[int, int | None]:
    """The first and the last sequence id; None: without an end. Raises SelectionError."""
    match = _SEQUENCES.fullmatch(text.strip())
    low, dots, high = match.groups() if match else (None, None, None)
    if low is None and high is None:
        raise SelectionError(
            f"the sequence ids {text!r} cannot be read; expected {SEQUENCES_EXAMPLE}", text=text
        )
    first = int(low) if low is not None else 1
    last = (int(high) if high is not None else None) if dots else first
    if first < 1 or (last is not None and last < first):
        raise SelectionError(
            f"there are no sequence ids {text!r}; expected them to begin with 1, and the lower "
            f"one first: {SEQUENCES_EXAMPLE}",
            text=text,
        )
    return first, last


def parse_time(text: str, now: datetime) -> int:
    """A time that a person wrote, as ns since the epoch.

    Args:
        text: '14:00' (of today), '2026-02-03T14:00' (local, or with an offset), '10m ago', 'now'.
        now: `datetime.now()`: times without an offset are local; or with a zone, which is then
            theirs.

    Raises:
        SelectionError: it cannot be read.
    """
    written = text.strip()
    try:
        if written.lower() == "now":
            return _ns(now)
        if (ago := _AGO.fullmatch(written.lower())) is not None:
            seconds = float(ago[1]) * _SECONDS[ago[2]]
            # By the seconds that passed: local time may have been put back meanwhile.
            return _ns(datetime.fromtimestamp(now.timestamp() - seconds, now.tzinfo))
        if _TIME_OF_DAY.fullmatch(written) is not None:
            of_day = datetime.fromisoformat(f"2000-01-01T{written.zfill(_padded(written))}").time()
            return _ns(datetime.combine(now.date(), of_day, now.tzinfo))
        found = datetime.fromisoformat(written)
        return _ns(found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo))
    except (ValueError, OverflowError, OSError) as error:
        raise SelectionError(
            f"the time {text!r} cannot be read ({error}); expected {TIMES_EXAMPLE}", text=text
        ) from error


def _padded(text: str) -> int:
    """How long it is with two digits for the hour."""
    return len(text) + (text.index(":") == 1)


def _ns(time: datetime) -> int:
    seconds = floor(time.timestamp())
    if seconds < 0:
        raise ValueError("it is before 1970")
    return seconds * NS + time.microsecond * 1_000


def _written(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS).astimezone().isoformat(timespec="milliseconds")


def _token(name: str) -> str:
    try:
        return escape_instance(name)
    except ClientError as error:
        raise SelectionError(f"no instance can be named so: {error}", instance=name) from error
