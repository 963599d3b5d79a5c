"""Counts by instance, for a bounded number of them: a switch, for instances come and go."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import escape_instance, readable_instance
from broker_pipeline.core.tallies import OUTCOMES
from broker_pipeline.journey import Outcome
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Sample

OTHER = "(other)"
"""Those that are not told apart. An instance of that name is among them."""
_OTHER_TOKEN = escape_instance(OTHER)


class PerInstance:
    """What left, for the first instances that there is a place for.

    The place of an instance that has ended is given to another at the next reading; what it counted
    is among the others from then on, so that the sum over all never goes back.

    Args:
        labels: the pipeline and the shard.
        places: how many instances are told apart.
    """

    def __init__(self, labels: tuple[str, ...], places: int) -> None:
        self._labels = labels
        self._places = places
        self._known: dict[str, dict[Outcome, int]] = {}
        self._other = dict.fromkeys(OUTCOMES, 0)

    def left(self, token: str, outcome: Outcome) -> None:
        """A package of an instance left. Takes 0.2 us."""
        counts = self._known.get(token)
        if counts is None:
            if len(self._known) < self._places and token != _OTHER_TOKEN:
                counts = self._known[token] = dict.fromkeys(OUTCOMES, 0)
            else:
                counts = self._other
        counts[outcome] += 1

    def samples(self, machine: Machine) -> Iterator[Sample]:
        """What left, and what is inside now."""
        for token in [token for token in self._known if token not in machine.instances]:
            for outcome, count in self._known.pop(token).items():
                self._other[outcome] += count
        inside = machine.tallies.pipeline.inside
        for token, counts in self._known.items():
            here = machine.instances[token].inside
            inside -= here
            yield from self._told(readable_instance(token), counts, here)
        yield from self._told(OTHER, self._other, inside)

    def _told(self, instance: str, counts: dict[Outcome, int], inside: int) -> Iterator[Sample]:
        labels = (*self._labels, instance)
        for outcome, count in counts.items():
            yield catalogue.INSTANCE_OUT.sample(*labels, outcome.lower(), value=count)
        yield catalogue.INSTANCE_INSIDE.sample(*labels, value=inside)
