"""What `doctor` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

from broker_pipeline.broker.introspection import BrokerFacts
from broker_pipeline.cli import diagnosis
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.operation.findings import Clock, Facts, note, trouble, warning
from tests.unit.debug.ward import TARGET, made

PAGE = (Path(__file__).parents[3] / "docs" / "operating.md").read_text()
BROKER = BrokerFacts("one", "2.15.1", "", 5, 1 << 20, 0.0004, (), None)
FACTS = Facts(
    target=TARGET, plan=compile_plan(made()), deployed=None, unreadable="", broker=BROKER,
    settings=None, clock=Clock(0.0021, 0.0001), surveys=(), log=None, looks=None, holder=None,
    attempted=(), leftovers=(),
)  # fmt: skip


def test_a_finding_is_read_and_its_command_copied() -> None:
    """Wrapped, but never inside a word; what was looked at first, what it amounts to last."""
    found = [
        trouble("no-leader", "nobody leads; " * 9, f"broker-pipeline controller {TARGET}"),
        warning("x", "w", "r"),
        note("y", "n", "r"),
        note("y", "n", "r"),
    ]
    lines = diagnosis.as_text(FACTS, found).split("\n")
    assert lines[0] == "p: nats-server 2.15.1 'one', API level 5, 400 us away, clock +2.1 ms"
    assert max(map(len, lines)) <= 100
    assert f"          -> broker-pipeline controller {TARGET}" in lines
    assert [line[:8].strip() for line in lines if line[:1].isupper()] == [
        "TROUBLE", "WARNING", "NOTE", "NOTE"
    ]  # fmt: skip
    assert lines[-1] == "1 trouble, 1 warning, 2 notes"
    assert diagnosis.as_text(FACTS, [note("y", "n", "r")]).endswith("\nall is well")


def test_what_strangers_have_named_is_no_command_to_the_terminal() -> None:
    """Neither escape sequences nor bytes that are no text."""
    text = diagnosis.as_text(FACTS, [note("y", "a\x1b[2Jb\udc80", "r")])
    assert "a?[2Jb?" in text
    text.encode()


def test_every_key_of_the_json_is_documented() -> None:
    """Scripts rely on them."""
    told = json.loads(diagnosis.as_json(FACTS, [note("y", "n", "r")]))
    assert told["deployed"] is False and told["counts"] == {"trouble": 0, "warning": 0, "note": 1}
    keys = {*told, *told["broker"], *told["findings"][0]}
    assert keys - set(re.findall(r"`([a-z_]+)`", PAGE)) == set()
