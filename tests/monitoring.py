"""What infra/ asks Prometheus: the queries of the dashboards and the rules, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_pipeline.observe.catalogue import ALL, ENDS, GIVEN_BACK, OUTCOMES
from broker_pipeline.observe.meter import Kind

INFRA = Path(__file__).parents[1] / "infra"
RULES = INFRA / "prometheus" / "rules.yml"
DASHBOARDS = sorted((INFRA / "grafana").glob("*.json"))

TARGET = {"job", "instance"}
"""What Prometheus adds to every series. Ours of the same name it calls `exported_`."""
OUTCOME_VALUES = {*OUTCOMES, *ENDS, GIVEN_BACK, "failed"}
FOREIGN = {
    "up": TARGET,
    "ALERTS": {"alertname", "alertstate", "severity"},
    **dict.fromkeys(
        (
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
        ),
        TARGET,
    ),
}
"""None of ours: of Prometheus itself, and of prometheus_client's ProcessCollector."""


@dataclass(frozen=True)
class Query:
    """An expression, and where it stands.

    Attributes:
        shown: texts beside it that name labels of its result: legends, annotations.
    """

    where: str
    expr: str
    shown: str = ""


@dataclass(frozen=True)
class Rule:
    """A rule of rules.yml."""

    kind: str
    name: str
    expr: str
    text: str


def panels(dashboard: Path) -> Iterator[dict[str, Any]]:
    """Those of a dashboard, rows included."""
    yield from json.loads(dashboard.read_text())["panels"]


def dashboard_queries() -> list[Query]:
    """What the panels and the variables of all dashboards ask."""
    found = []
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel.get("targets", ()):
                where = f"{path.name}, panel {panel['id']} {panel['title']!r}"
                found.append(Query(where, target["expr"], target.get("legendFormat", "")))
    return found


def variable_queries() -> list[str]:
    """What the variables of the dashboards ask: label_values(metric, label)."""
    variables = [
        each for path in DASHBOARDS for each in json.loads(path.read_text())["templating"]["list"]
    ]
    return [each["query"] for each in variables if each["type"] == "query"]


def rules(text: str | None = None) -> list[Rule]:
    """The rules of rules.yml, read as it is written: `expr: |` and indented lines."""
    text = RULES.read_text() if text is None else text
    found = []
    for block in re.split(r"^ +- (?=alert:|record:)", text, flags=re.MULTILINE)[1:]:
        kind, name = re.match(r"(\w+): (\S+)", block).groups()
        expr = re.search(r"^( +)expr: \|\n((?:\1 +.*\n)+)", block, flags=re.MULTILINE)
        assert expr is not None, f"{name}: an expr begins with a line of its own"
        found.append(Rule(kind, name, " ".join(expr[2].split()), block))
    return found


def rule_queries() -> list[Query]:
    """What the rules ask."""
    return [Query(f"rule {rule.name}", rule.expr, rule.text) for rule in rules()]


# -- what they name -------------------------------------------------------------------------------
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$?[A-Za-z_:][\w:]*|\d[\w.]*|\S')
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Selector:
    """A series that is asked for: `name{label="value"}`."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        inner = ", ".join(f"{label}{how}{value}" for label, how, value in self.matchers)
        return f"{self.name}{{{inner}}}" if inner else self.name


def parse(expr: str) -> tuple[list[Selector], list[tuple[str, list[str]]]]:
    """The series that an expression asks for, and its groupings: ('by', ['pipeline'])."""
    tokens = [*TOKEN.findall(re.sub(r"\[[^]]*\]", "", expr)), "", ""]
    selectors, groupings = [], []
    place = 0
    while place < len(tokens) - 2:
        token, following = tokens[place], tokens[place + 1]
        place += 1
        if token in GROUPINGS:
            end = tokens.index(")", place)
            groupings.append((token, [each for each in tokens[place + 1 : end] if each != ","]))
            place = end + 1
        elif not re.match(r"[A-Za-z_]", token) or token in WORDS:
            continue
        elif following == "{":
            end = tokens.index("}", place)
            inner = " ".join(tokens[place + 1 : end])
            matchers = re.findall(r'([\w]+) (=~|!~|=|! =|= ~|! ~) ("[^"]*")', inner)
            plain = tuple((label, how.replace(" ", ""), value) for label, how, value in matchers)
            selectors.append(Selector(token, plain))
            place = end + 1
        elif following != "(" and following not in GROUPINGS:
            selectors.append(Selector(token))
    return selectors, groupings


def series() -> dict[str, set[str]]:
    """Every series that there may be, by name, with its labels: of the catalogue, those that the
    rules record, and foreign ones."""
    found = {name: set(labels) for name, labels in FOREIGN.items()}
    for metric in ALL.values():
        own = {f"exported_{label}" if label in TARGET else label for label in metric.labels}
        if metric.kind is Kind.HISTOGRAM:
            for part in ("sum", "count"):
                found[f"{metric.name}_{part}"] = own | TARGET
            found[f"{metric.name}_bucket"] = own | TARGET | {"le"}
        else:
            found[metric.name] = own | TARGET
    for rule in rules():
        if rule.kind == "record":
            found[rule.name] = result_labels(rule.expr, found)
    return found


def result_labels(expr: str, known: Mapping[str, set[str]]) -> set[str]:
    """The labels of what an expression gives: those of the first `by`, or of its first series."""
    selectors, groupings = parse(expr)
    if groupings and groupings[0][0] == "by":
        return set(groupings[0][1])
    return known.get(selectors[0].name, set()) if selectors else set()


def faults(query: Query, known: Mapping[str, set[str]]) -> list[str]:
    """What a query names and nothing has: series, labels, outcomes."""
    selectors, groupings = parse(query.expr)
    found = [] if selectors else ["asks for no series"]
    labels: set[str] = set()
    for selector in selectors:
        if selector.name not in known:
            found.append(f"no series is called {selector.name}")
            continue
        labels |= known[selector.name]
        for label, how, value in selector.matchers:
            if label not in known[selector.name]:
                found.append(f"{selector.name} has no label {label}")
            if label == "outcome" and "$" not in value:
                values = set(value.strip('"').split("|" if "~" in how else "\n"))
                found += [f"no outcome is {each!r}" for each in values - OUTCOME_VALUES]
    for kind, named in groupings:
        found += [f"{kind} ({label}): no series has it" for label in set(named) - labels]
    shown = set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", query.shown))
    found += [
        f"its result has no {label} to show" for label in shown - result_labels(query.expr, known)
    ]
    return [f"{query.where}: {fault}" for fault in found]
