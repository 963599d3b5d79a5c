"""What a scrape must say, whenever it is made."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from broker_pipeline.observe.catalogue import ALL
from broker_pipeline.observe.meter import Kind

Labels = tuple[tuple[str, str], ...]
Scrape = dict[tuple[str, Labels], float]
"""Values by name, as in the text, and sorted labels."""
LEVELS = [
    ("packages", ["packages_inside"]),
    (
        "controller_packages",
        ["controller_processing", "controller_waiting_in", "controller_waiting_out"],
    ),
    ("phase_packages", ["phase_processing"]),
    ("module_packages", ["module_processing", "module_waiting_in"]),
    ("server_calls", ["server_calls_inside"]),
]


async def scrape(url: str) -> Scrape:
    """One scrape, of what is ours. Raises OSError where nobody answers."""

    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read(), "utf-8")

    return parse(await asyncio.to_thread(get))


def parse(text: str) -> Scrape:
    """What is ours in an exposition; no series is in it twice."""
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("broker_pipeline_"):
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
    return found


def total(found: Scrape, name: str, *besides: str) -> dict[Labels, float]:
    """The values of a metric, summed over the labels `besides`."""
    sums: dict[Labels, float] = defaultdict(float)
    for (each, labels), value in found.items():
        if each == f"broker_pipeline_{name}":
            sums[tuple(pair for pair in labels if pair[0] not in besides)] += value
    return dict(sums)


def balance(found: Scrape) -> int:
    """What came is what left and what is inside, at every level; for how many series that was
    looked at."""
    looked = 0
    for name, inside in LEVELS:
        came = total(found, f"{name}_in_total")
        left = total(found, f"{name}_out_total", "outcome")
        gauges = [total(found, each) for each in inside]
        for labels, value in came.items():
            here = sum(gauge.get(labels, 0.0) for gauge in gauges)
            assert value == left[labels] + here, f"{name} {labels}: {value}, {left[labels]}, {here}"
            assert all(gauge.get(labels, 0.0) >= 0 for gauge in gauges)
            looked += 1
    return looked


def counts(found: Scrape) -> Scrape:
    """Those that may never go back."""
    counters = {name for name, metric in ALL.items() if metric.kind is Kind.COUNTER}
    ends = ("_bucket", "_count", "_sum")
    return {
        key: value
        for key, value in found.items()
        if key[0] in counters or (key[0].endswith(ends) and key[0] not in ALL)
    }


def not_less(before: Scrape, after: Scrape) -> None:
    """No count went back, and none is gone."""
    for key, value in before.items():
        assert after.get(key, -1.0) >= value, f"{key} was {value} and is {after.get(key)}"
