"""The oldest that is needed still, kept by instance: a snapshot looks at what has changed only."""

from __future__ import annotations

from itertools import chain

from broker_pipeline.core.instance import InstanceState


class Oldest:
    """For each instance the lowest stream sequence whose bytes are needed again, and the lowest id
    of the packages inside, in all and in each controller."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._inside: dict[str, int] = {}
        self._controllers: list[dict[str, int]] = []

    def note(self, token: str, instance: InstanceState | None) -> None:
        """An instance as it is now; None: it has ended."""
        each = [] if instance is None else instance.oldest_by_controller()
        while len(self._controllers) < len(each):
            self._controllers.append({})
        for index, known in enumerate(self._controllers):
            _set(known, token, each[index] if index < len(each) else None)
        _set(self._sources, token, None if instance is None else instance.oldest_source())
        _set(self._inside, token, None if instance is None else instance.oldest_inside(each))

    def source(self, early: list[int]) -> int | None:
        """The lowest source of all, and of `early`; None where there is none."""
        return min(chain(self._sources.values(), early), default=None)

    def inside(self, early: list[int]) -> int | None:
        """The lowest package of all, and of `early`; None where there is none."""
        return min(chain(self._inside.values(), early), default=None)

    def in_controllers(self, count: int) -> list[int | None]:
        """The lowest package in each of so many controllers; None where there is none."""
        found = [min(known.values(), default=None) for known in self._controllers[:count]]
        return found + [None] * (count - len(found))


def _set(known: dict[str, int], token: str, found: int | None) -> None:
    if found is None:
        known.pop(token, None)
    else:
        known[token] = found
