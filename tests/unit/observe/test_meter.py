"""What is counted, and what a reading of it is."""

from __future__ import annotations

import re

import msgspec
import pytest

from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.catalogue import ALL
from broker_pipeline.observe.meter import Kind, Meter, Sample, quantile

LABELS = ("demo", "0")


def test_a_series_is_one_whoever_asks_for_it() -> None:
    """A term of leadership goes on with what the one before has counted."""
    meter = Meter()
    for _ in range(2):
        meter.counter(catalogue.LEADER_TERMS, *LABELS).value += 1
        meter.histogram(catalogue.SNAPSHOT_TIME, *LABELS).observe(NS // 2)
    terms, snapshots = meter.read()
    assert terms == Sample("broker_pipeline_leader_terms_total", LABELS, 2)
    assert (snapshots.name, snapshots.value) == ("broker_pipeline_snapshot_seconds", 1.0)
    assert sum(snapshots.counts) == 2


def test_a_bucket_holds_its_upper_bound_and_the_last_what_is_above_all() -> None:
    """As Prometheus means `le`; a negative time, which nobody measures, is in the first."""
    meter = Meter()
    sizes = meter.histogram(catalogue.BATCH_SIZE, "demo", "c", "p", "m")
    for size in (-1, 1, 2, 3, 4, 256, 257, 10**30):
        sizes.observe(size)
    (sample,) = meter.read()
    assert sample.counts == (2, 1, 2, 0, 0, 0, 0, 0, 1, 2)
    assert len(sample.counts) == len(catalogue.SIZES) + 1


def test_a_source_is_asked_at_each_reading_until_it_is_closed() -> None:
    """And closing it again is no error."""
    meter, values = Meter(), [1.0]
    close = meter.add_source(lambda: [catalogue.INSTANCES.sample(*LABELS, value=values[0])])
    meter.add_source(list)
    assert [sample.value for sample in meter.read()] == [1.0]
    values[0] = 2.0
    assert [sample.value for sample in meter.read()] == [2.0]
    close()
    close()
    assert meter.read() == []


@pytest.mark.parametrize(
    ("metric", "labels"),
    [(catalogue.LEADER, LABELS), (catalogue.LEADER_TERMS, ("demo",)), (catalogue.LEADER_TERMS, ())],
)
def test_what_is_asked_for_wrongly_is_refused(
    metric: catalogue.Metric, labels: tuple[str, ...]
) -> None:
    """A gauge is no counter, and every label has a value."""
    with pytest.raises(ValueError, match="broker_pipeline_leader"):
        Meter().counter(metric, *labels)


def test_a_reading_is_plain_values_that_can_be_sent() -> None:
    """As a status does it."""
    meter = Meter()
    meter.histogram(catalogue.PACKAGE_TIME, *LABELS, "success").observe(3)
    meter.counter(catalogue.LEADER_TERMS, "d\N{LATIN SMALL LETTER E WITH ACUTE}mo", "0").value = 7
    raw = msgspec.msgpack.encode(meter.read())
    assert msgspec.msgpack.decode(raw, type=list[Sample]) == meter.read()


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((10, 0, 0, 0), 0.5, 5.0),
        ((0, 10, 0, 0), 0.5, 15.0),
        ((5, 5, 0, 0), 0.5, 10.0),
        ((5, 5, 0, 0), 0.99, 19.8),
        ((1, 0, 0, 9), 0.5, 40.0),
        ((1, 1, 1, 0), 0.0, 0.0),
        ((1, 1, 1, 0), 1.0, 40.0),
    ],
)
def test_quantiles_are_as_prometheus_takes_them(
    counts: tuple[int, ...], share: float, expected: float | None
) -> None:
    """Evenly between two bounds; what is above all of them is the last."""
    found = quantile((10, 20, 40), counts, share)
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", ALL)
def test_names_and_labels_are_standard(name: str) -> None:
    """Counters end in _total, times are in seconds, nothing has another unit than a base unit, and
    no label grows with packages; with instances only where that is a switch."""
    metric = ALL[name]
    assert name == metric.name
    assert re.fullmatch(r"broker_pipeline_[a-z_]+", name)
    assert name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|us|ns|milli|kb|mb)(_|$)", name)
    assert all(re.fullmatch("[a-z]+", label) for label in metric.labels)
    assert not {"package", "worker", "host", "server", "le"} & set(metric.labels)
    assert ("instance" in metric.labels) == name.startswith("broker_pipeline_instance_")
    assert metric.help.endswith(".") and len(metric.help) < 100
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.bounds) == sorted(set(metric.bounds))
    if metric.kind is Kind.HISTOGRAM:
        assert name.endswith(("_seconds", "_packages"))
