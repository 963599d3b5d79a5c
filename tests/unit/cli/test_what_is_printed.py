"""Graphs of plans, and packages as lines."""

from __future__ import annotations

import json

from broker_pipeline import (
    CombinationModule,
    Controller,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    Mode,
    Outcome,
    Phase,
    Pipeline,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.cli import drawing
from broker_pipeline.cli.lines import short_line
from broker_pipeline.core.plan import Plan, compile_plan
from broker_pipeline.journey import STATUS_TO_PB


class Nothing(ExecutionModule[bytes]):
    """Leaves packages as they are."""

    def execute(self, package: object, run: object) -> None:
        """Do nothing."""


def plan() -> Plan:
    pair = CombinationModule([Nothing(name='a "b" <c>'), Nothing(name="d")], name="pair")
    return compile_plan(
        Pipeline(
            "talk",
            [
                Controller("in-order", [Phase("hear", [pair]), Phase("say", [Nothing()])]),
                Controller(
                    "end", [Phase("x", [Nothing()])],
                    mode=Mode.FIRST_WINS, max_workers=2, queue_size=0, max_age_s=1.5,
                ),
            ],
        )
    )  # fmt: skip


def test_the_text_names_rules_modules_and_readers() -> None:
    """Everything that the plan decides, for a terminal."""
    text = drawing.as_text(plan())
    assert "controller end: FIRST_WINS, max_workers 2, queue_size 0, max_age 1.5 s" in text
    assert '      pair (combination)\n        a "b" <c>\n        d\n' in text
    assert "worker in-order.say" in text and "bp.talk.0.work.in-order.say.>" in text


def test_an_external_module_shows_where_its_servers_are() -> None:
    """In the text and in the flowchart, with the bridge that reads its queue."""
    asr = ExternalModule("asr", target="registry:///asr", stateful=True)
    plan = compile_plan(Pipeline("talk", [Controller("c", [Phase("p", [asr])])]))
    text = drawing.as_text(plan)
    assert "      asr (external, stateful, registry:///asr)\n" in text
    assert "bridge c.p" in text
    assert "<br/>asr: registry:///asr" in drawing.as_mermaid(plan)


def test_the_flowchart_goes_through_all_phases_with_safe_labels() -> None:
    """Names are quoted, node ids are ours."""
    lines = drawing.as_mermaid(plan()).splitlines()
    arrows = [line.strip() for line in lines if "-->" in line]
    assert arrows == ["in --> c0p0", "c0p0 --> c0p1", "c0p1 --> c1p0", "c1p0 --> out"]
    assert drawing._quoted('a "b" <c>#') == "a #quot;b#quot; #lt;c#gt;#35;"


def test_the_json_holds_the_plan_and_its_readers() -> None:
    """The plan is the one that is deployed."""
    graph = json.loads(drawing.as_json(plan()))
    assert Plan.from_bytes(json.dumps(graph["plan"]).encode()) == plan()
    assert [row["consumer"] for row in graph["readers"][1:]] == [
        "in-order=hear",
        "in-order=say",
        "end=x",
    ]


def package(outcome: Outcome, data: bytes = b"", content_type: str = "") -> pb.DataPackage:
    return pb.DataPackage(
        id=7,
        pipeline="talk",
        instance="room 1",
        sequence=3,
        start_time_ns=1_000_000_000,
        end_time_ns=1_250_000_000,
        outcome=STATUS_TO_PB[outcome],
        data=data,
        content_type=content_type,
    )


def line(envelope: pb.DataPackage) -> str:
    return short_line(DataPackage.wrap(envelope))


def test_a_text_is_one_line_with_its_latency() -> None:
    """Line ends in the text are spaces."""
    text = line(package(Outcome.SUCCESS, b"two\nlines", "text/plain"))
    assert text.endswith("room 1 #3 SUCCESS    0.250 s  two lines")


def test_no_terminal_obeys_what_others_wrote() -> None:
    """Neither in a text nor in the instance's name."""
    envelope = package(Outcome.SUCCESS, b"a\x1b[31mred\x07 \xc3\xa9", "text/plain")
    envelope.instance = "ev\x1b[2Jil"
    assert line(envelope).endswith(r"ev\x1b[2Jil #3 SUCCESS    0.250 s  a\x1b[31mred\x07 é")


def test_bytes_are_counted_and_not_printed() -> None:
    """A terminal is no place for PCM."""
    assert line(package(Outcome.SUCCESS, b"\x00" * 3200, "audio/pcm")).endswith(
        "<3,200 bytes of audio/pcm>"
    )


def test_an_error_says_what_and_where() -> None:
    """The payload would say nothing."""
    envelope = package(Outcome.ERROR, b"x")
    envelope.errors.add(type="ValueError", message="bad\nthing", path="a/b/C")
    assert line(envelope).endswith("ValueError: bad thing in a/b/C")


def test_an_exit_says_its_reason() -> None:
    """The innermost module's message."""
    envelope = package(Outcome.EXIT)
    module = envelope.controllers.add(name="a").phases.add(name="b").modules.add(name="C")
    module.sub_modules.add(name="D", message="silence")
    assert line(envelope).endswith("silence")


def test_a_payload_that_is_not_what_it_says_does_not_stop_the_printing() -> None:
    """The error stands in its place."""
    assert "BP402" in line(package(Outcome.SUCCESS, b"\xc1", "application/msgpack"))
