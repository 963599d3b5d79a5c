"""Until when a producer's missing package is waited for.

While a full log lets no producer in, what is missing cannot come. The leader pauses the gaps then,
and when they go on each has its whole time once more (docs/adr/0031).
"""

from __future__ import annotations

from collections import OrderedDict

Key = tuple[str, str]
"""An instance's token and a producer's name."""


class Gaps(OrderedDict[Key, int]):
    """The gaps that are waited for, oldest first, with their deadlines, ns of log time.

    Attributes:
        paused: whether no time passes for them.
    """

    paused = False

    def watch(self, key: Key, since: int, gap_ns: int) -> None:
        """There is a gap since then; 0: there is none."""
        if not since:
            self.pop(key, None)
        elif self.get(key) != since + gap_ns:
            self[key] = since + gap_ns
            self.move_to_end(key)

    def soonest(self) -> int | None:
        """The deadline that is over first; None where nothing is given up."""
        return None if self.paused else next(iter(self.values()), None)

    def take_due(self, now: int) -> Key | None:
        """The oldest gap whose time is over, which is not watched from now on."""
        deadline = self.soonest()
        if deadline is None or deadline > now:
            return None
        key, _ = self.popitem(last=False)
        return key
