"""A meter's readings as a test looks at them."""

from __future__ import annotations

from collections.abc import Callable

from broker_pipeline.observe.catalogue import ALL
from broker_pipeline.observe.meter import Kind, Meter

Values = dict[tuple[str, tuple[str, ...]], float]
"""By name, without what all begin with, and labels. A histogram's is how many it has."""
PREFIX = "broker_pipeline_"


def values(meter: Meter) -> Values:
    """One reading, with what must hold in each: no series twice, each as its metric says."""
    found: Values = {}
    for sample in meter.read():
        metric = ALL[sample.name]
        assert len(sample.labels) == len(metric.labels), sample
        key = (sample.name.removeprefix(PREFIX), sample.labels)
        assert key not in found, f"{key} is there twice"
        assert bool(sample.counts) == (metric.kind is Kind.HISTOGRAM)
        found[key] = sum(sample.counts) if sample.counts else sample.value
    return found


class Reader:
    """Reads a meter again and again: what came is what left and what is inside, and no count goes
    back.

    Args:
        level: `phase` or `module`, or `server`.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last: Values = {}
        self.readings = 0

    def __call__(self) -> Values:
        """One reading."""
        found = values(self._meter)
        self.readings += 1
        for level in ("phase_packages", "module_packages", "server_calls"):
            for (name, labels), came in found.items():
                if name == f"{level}_in_total":
                    out = f"{level}_out_total"
                    left = sum(v for (n, ls), v in found.items() if n == out and ls[:-1] == labels)
                    inside = sum(found.get((gauge, labels), 0) for gauge in _INSIDE[level])
                    assert came == left + inside, f"{labels}: {came}, {left}, {inside}"
        for key, value in self._last.items():
            if key[0].endswith(("_total", "_seconds")):
                assert found[key] >= value, f"{key} was {value} and is {found[key]}"
        self._last = found
        return found

    def until(self, condition: Callable[[Values], object]) -> Callable[[], bool]:
        """A condition on the readings, to wait for."""
        return lambda: bool(condition(self()))


_INSIDE = {
    "phase_packages": ("phase_processing",),
    "module_packages": ("module_processing", "module_waiting_in"),
    "server_calls": ("server_calls_inside",),
}
