"""The pipeline of a replay: its name, and what stands in it for module servers."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import (
    CombinationModule,
    ConditionModule,
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    Phase,
    Pipeline,
)
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.replays.private_log import private, private_name, with_stand_ins
from broker_pipeline.debug.replays.replay_log import inside_max
from broker_pipeline.debug.replays.replay_setup import (
    Setup,
    parse_kinds,
    parse_speed,
    parse_stand_ins,
)
from broker_pipeline.debug.replays.replaying import On
from broker_pipeline.errors import ReplayError, TargetError
from broker_pipeline.pipeline import NAME
from broker_pipeline.testing import run_in_memory


class Upper(ExecutionModule[bytes]):
    """Upper case."""

    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data.upper()


def external(name: str = "asr", target: str = "registry:///asr") -> ExternalModule:
    return ExternalModule(name, target=target)


def one(*modules: Any, **options: Any) -> Pipeline:
    return Pipeline("talk", [Controller("c", [Phase("p", modules)], **options)])


def test_names_of_replays_are_names_of_pipelines() -> None:
    """Whatever the pipeline is called."""
    for name in ("a", "talk", "x" * 48):
        found = private_name(name, "0a1b2c")
        assert NAME.fullmatch(found)
        assert found.endswith("-replay-0a1b2c")


def test_a_private_pipeline_has_a_bounded_log_and_instances_that_end_when_they_are_told() -> None:
    """All else is as it was declared; the pipeline itself stays as it is."""
    pipeline = Pipeline("talk", one(Upper()).controllers, instance_idle_s=1.0)
    other = private(pipeline, "other", 200 << 20)
    assert (other.name, other.log_bytes_max) == ("other", 800 << 20)
    assert other.instance_idle_s == 1e6
    assert compile_plan(other).controllers == compile_plan(pipeline).controllers
    assert (pipeline.name, pipeline.log_bytes_max) == ("talk", None)


def test_stand_ins_are_where_the_servers_were_at_any_depth() -> None:
    """In modules of their names, so that journeys look alike; the pipeline itself is as it was."""
    nested = CombinationModule([Upper(), ConditionModule(external(), Upper(), condition=bool)])
    pipeline = one(external("one"), nested)
    other = with_stand_ins(pipeline, {"asr": Upper(), "one": Upper()})
    assert not any(phase.external for c in other.controllers for phase in c.phases)
    first, second = other.controllers[0].phases[0].modules
    assert (first.name, first.children[0].name) == ("one", "Upper")
    assert second.children[1].children[0].name == "asr"
    assert isinstance(pipeline.controllers[0].phases[0].modules[0], ExternalModule)
    (package,) = run_in_memory(other, [b"x"])
    assert package.data == b"X"
    assert with_stand_ins(pipeline, {}) is pipeline


def test_flat_out_as_many_are_inside_as_overflow_nowhere() -> None:
    """The tightest controller's window and queue; a great many where nothing overflows."""
    assert inside_max(compile_plan(one(Upper(), queue_size=0))) == 1
    two = [
        Controller("a", [Phase("p", [Upper()])], mode=Mode.NO_ORDER, max_workers=4, queue_size=3),
        Controller("b", [Phase("p", [Upper()])], queue_size=9),
        Controller("c", [Phase("p", [Upper()])]),
    ]
    assert inside_max(compile_plan(Pipeline("talk", two))) == 7
    assert inside_max(compile_plan(one(Upper()))) == 500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--external asr=package.module:Class"),
        ({"external": {"other": Upper()}}, "has 'asr'; expected the name of an ExternalModule"),
        ({"external_live": True}, "a replay in memory calls no module servers"),
        ({"external_live": True, "on": On.EMBEDDED}, "announce themselves in the live broker"),
        ({"external": {"asr": Upper()}, "workers": 2}, "expected --workers with --on embedded"),
        ({"external": {"asr": Upper()}, "workers": 2, "on": On.EMBEDDED, "target": "a:b"},
         "know no stand-ins"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_said_before_anything_begins(
    options: dict[str, Any], words: str
) -> None:
    """With what to do."""
    with pytest.raises(ReplayError, match=r"BP710") as caught:
        Setup(one(external()), **options).check()
    assert words in str(caught.value)


def test_live_servers_are_called_where_they_can_be_found() -> None:
    """By address anywhere; announced ones on their own broker only."""
    Setup(one(external(target="host:1")), On.EMBEDDED, external_live=True).check()
    Setup(one(external()), On.BROKER, external_live=True).check()
    Setup(one(external()), On.EMBEDDED, external={"asr": Upper()}, external_live=True).check()


def test_options_are_read_or_refused() -> None:
    """Speeds, kinds and stand-ins."""
    assert [parse_speed(text) for text in ("max", "MAX", "1", "0.5")] == [None, None, 1.0, 0.5]
    for text in ("", "0", "-1", "nan", "inf", "fast"):
        with pytest.raises(ReplayError, match="expected 'max'"):
            parse_speed(text)
    assert parse_kinds(" messages, time,") == {"messages", "time"}
    with pytest.raises(ReplayError, match="'colour'; expected some of outcome, reason"):
        parse_kinds("colour")
    found = parse_stand_ins(["asr=examples.shout:Upper"])
    assert found["asr"].name == "Upper"
    for text in ("asr", "=examples.shout:Upper", "asr="):
        with pytest.raises(ReplayError, match="expected NAME="):
            parse_stand_ins([text])
    with pytest.raises(TargetError):
        parse_stand_ins(["asr=examples.nowhere:Upper"])
