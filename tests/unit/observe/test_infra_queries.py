"""The dashboards and rules of infra/ ask for what the catalogue has, and can be maintained.

tests/integration/test_prometheus.py sends them to a real Prometheus, where one is installed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.observe.catalogue import ALL
from tests.monitoring import (
    DASHBOARDS,
    INFRA,
    Query,
    dashboard_queries,
    faults,
    panels,
    parse,
    rule_queries,
    rules,
    series,
    variable_queries,
)

KNOWN = series()
QUERIES = [*dashboard_queries(), *rule_queries()]
GRID_WIDTH = 24


def test_every_query_names_what_there_is() -> None:
    """Series, labels, groupings, outcomes, and the labels in legends and annotations."""
    assert [fault for query in QUERIES for fault in faults(query, KNOWN)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("broker_pipeline_phase_slots", "broker_pipeline_phase_slot"),
        ("_time_seconds_bucket", "_time_second_bucket"),
        ("shard:broker_pipeline", "shards:broker_pipeline"),
        ('pipeline=~"$pipeline"', 'pipelines=~"$pipeline"'),
        ('outcome="error"', 'outcome="errors"'),
        ('outcome="error"', 'outcome="ERROR"'),
        ('outcome=~"overflow|outdated"', 'outcome=~"overflow|outdatd"'),
        ("by (pipeline, controller)", "by (pipeline, controler)"),
        ("group_left (role)", "group_left (roles)"),
        ("sum without (outcome)", "sum without (outcomes)"),
    ],
)
def test_a_query_with_a_typo_is_found(old: str, new: str) -> None:
    """Each of these stands in some query, and is a fault there."""
    changed = [
        Query(query.where, query.expr.replace(old, new)) for query in QUERIES if old in query.expr
    ]
    assert changed
    assert all(faults(query, KNOWN) for query in changed)


@pytest.mark.parametrize("shown", ["{{contoller}}", "{{ $labels.instance }}"])
def test_a_legend_without_its_label_is_found(shown: str) -> None:
    """Of a label that nothing has, and of one that is summed away."""
    expr = "sum by (controller) (broker_pipeline_phase_slots)"
    assert faults(Query("", expr, shown), KNOWN)
    assert faults(Query("", expr, "{{controller}}"), KNOWN) == []


def test_queries_are_read_as_they_are_written() -> None:
    """Functions, groupings, matchers and ranges are told from series."""
    selectors, groupings = parse(
        'max by (a, b) (rate(x:y_total{c="d", e=~"f|g", h!="i"}[5m])) > 1 * on (a) group_left () z'
    )
    assert list(map(str, selectors)) == ['x:y_total{c="d", e=~"f|g", h!="i"}', "z"]
    assert groupings == [("by", ["a", "b"]), ("on", ["a"]), ("group_left", [])]


def test_everything_in_the_catalogue_is_shown() -> None:
    """A metric that no dashboard and no rule asks for is one that nobody looks at."""
    asked = {selector.name for query in QUERIES for selector in parse(query.expr)[0]}
    parts = ("", "_bucket", "_sum", "_count")
    unseen = [name for name in ALL if not any(f"{name}{part}" in asked for part in parts)]
    assert unseen == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_can_be_maintained(path: Path) -> None:
    """Ids of their own, descriptions, units, one source, and panels that do not overlap."""
    board = json.loads(path.read_text())
    assert board["uid"] == f"broker-pipeline-{path.stem}"
    assert len({each["id"] for each in panels(path)}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in panels(path):
        own = _cells(panel)
        assert not own & cells, f"{panel['title']!r} lies on another"
        cells |= own
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [each["refId"] for each in panel["targets"]] == list("ABCD")[: len(panel["targets"])]
    assert max(x for x, _ in cells) == GRID_WIDTH - 1


def _cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    xs = range(place["x"], place["x"] + place["w"])
    return {(x, y) for x in xs for y in range(place["y"], place["y"] + place["h"])}


def test_variables_ask_for_what_is_bounded() -> None:
    """Not for instances, which grow with what is streamed."""
    assert set(variable_queries()) == {"label_values(broker_pipeline_leader, pipeline)"}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    """A severity, a summary, a description; and its name begins as all do."""
    alerts = [rule for rule in rules() if rule.kind == "alert"]
    assert len(alerts) >= 20
    for alert in alerts:
        assert alert.name.startswith("BrokerPipeline")
        assert re.search(r"^ +labels: \{severity: (critical|warning)\}$", alert.text, re.MULTILINE)
        assert re.search(r"^ +summary: .{20,}$", alert.text, re.MULTILINE)
        assert re.search(r"^ +description: >-\n +.{20,}$", alert.text, re.MULTILINE)


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    """rules_test.yml has it fire; and its first test, where all is well, has all its series."""
    text = (INFRA / "prometheus" / "rules_test.yml").read_text()
    well = text.split("  - name: ")[1]
    for rule in rules():
        if rule.kind != "alert":
            continue
        assert f'ALERTS{{alertname="{rule.name}", alertstate="firing", severity=' in text
        for selector in parse(rule.expr)[0]:
            if ":" not in selector.name:
                assert f"'{selector.name}{{" in well, f"{rule.name}: {selector.name}"


def test_the_readme_names_every_alert_and_dashboard() -> None:
    """infra/README.md says what they mean."""
    text = (INFRA / "README.md").read_text()
    names = [rule.name.removeprefix("BrokerPipeline") for rule in rules() if rule.kind == "alert"]
    names += [f"{path.stem}.json" for path in DASHBOARDS]
    assert [name for name in names if f"`{name}`" not in text] == []
