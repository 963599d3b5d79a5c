"""The plan: equal for equal pipelines, read back exactly, and refused where it cannot be led."""

import json
import zlib

import msgspec
import pytest
from driving import make_plan, whole

from broker_pipeline.core import snapshot
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.lanes import LANES, lane_of
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import Subjects, completion_id
from broker_pipeline.core.plan import (
    VERSION_MAX,
    Plan,
    compile_plan,
    differences,
    topology,
    unfollowable,
)
from broker_pipeline.errors import (
    NewerVersionError,
    PlanError,
    SnapshotError,
    UnknownPhaseError,
)
from broker_pipeline.journey import Mode
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    StatefulModule,
)
from broker_pipeline.pipeline import Controller, Phase, Pipeline


class Step(ExecutionModule[bytes]):
    """Does nothing."""


class Count(StatefulModule[bytes, bytes]):
    """Counts nothing."""


def declare(*, window=4, name="asr", ack_wait_s=5, extra=(), age_s=None):
    """A pipeline of two controllers, built anew at each call."""
    either = ConditionModule(Step(), None, condition=bool, name="either")
    both = CombinationModule([Step(name="one"), either], name="both")
    return Pipeline(
        "talk",
        [
            Controller(
                "first", [Phase("vad", [both], ack_wait_s=ack_wait_s)], Mode.NO_ORDER, window
            ),
            Controller(
                "second",
                [Phase(name, [Count()]), Phase("write", [Step()]), *extra],
                max_age_s=age_s,
            ),
        ],
    )


def counted(module):
    """A pipeline of one phase."""
    return Pipeline("talk", [Controller("c", [Phase("p", [module])])])


def test_equal_pipelines_give_the_same_bytes():
    """Built twice, compiled twice: equal plans, equal bytes; and they are read back exactly."""
    one, other = compile_plan(declare()), compile_plan(declare())
    assert one == other
    assert one.to_bytes() == other.to_bytes()
    assert Plan.from_bytes(one.to_bytes()) == one
    assert Plan.from_bytes(one.to_bytes()).to_bytes() == one.to_bytes()


def test_a_plan_tells_modules_by_kind():
    """Nested ones too; and only a phase with a state is stateful."""
    plan = compile_plan(declare())
    both = plan.phase("first", "vad").modules[0]
    assert (both.kind, [m.kind for m in both.modules]) == (
        "combination",
        ["execution", "condition"],
    )
    assert [m.kind for m in both.modules[1].modules] == ["execution"]
    assert plan.phase("second", "asr").modules[0].kind == "stateful"
    assert [p.stateful for c in plan.controllers for p in c.phases] == [False, True, False]
    assert [c.window for c in plan.controllers] == [4, 1]


def test_a_phase_that_is_not_there_is_named_with_those_that_are():
    """So that whoever starts a worker can see what to start."""
    plan = compile_plan(declare())
    assert plan.controller_index("nowhere") == -1
    with pytest.raises(UnknownPhaseError, match=r"BP203 .*'first\.vad', 'second\.asr'"):
        plan.phase("second", "vad")


def test_bounds_and_times_may_change_and_the_way_may_not():
    """Controllers, modes and phases stay; each fault is said."""
    old = compile_plan(declare())
    assert unfollowable(old, compile_plan(declare(window=9, ack_wait_s=1, age_s=2))) == []
    assert unfollowable(old, compile_plan(declare(name="stt"))) == [
        "the phases of 'second' were ['asr', 'write'] and would be ['stt', 'write']"
    ]
    one, two = make_plan([(Mode.NO_ORDER, None, None)] * 2), make_plan([(Mode.FIRST_WINS, 1, 1)])
    assert unfollowable(one, two) == [
        "the controllers were ['c0', 'c1'] and would be ['c0']",
        "the mode of 'c0' was NO_ORDER and would be FIRST_WINS",
    ]
    assert "would be" in unfollowable(old, one)[0]
    first, second = old.controllers
    turned = msgspec.structs.replace(old, controllers=(second, first))
    assert unfollowable(old, turned)[0].startswith("the controllers were ['first', 'second']")


def test_a_module_with_a_state_does_not_come_into_or_leave_a_running_phase():
    """In the middle of an instance it has not seen what came before; and its state is stored under
    its place, at whatever depth of the phase that is."""

    def plan(*modules):
        return compile_plan(Pipeline("demo", [Controller("c", phases=[Phase("p", modules)])]))

    was = plan(Step(), CombinationModule([Count(name="sum"), Step(name="other")], name="both"))
    other_steps = plan(Step(name="new"), CombinationModule([Count(name="sum")], name="both"))
    assert unfollowable(was, other_steps) == unfollowable(other_steps, was) == []
    for now, states in ((plan(Step()), []), (plan(Count(name="sum")), ["sum at 0"])):
        said = f"what has a state in 'c.p' was ['sum at 1.0'] and would be {states}"
        assert said in unfollowable(was, now)
        assert unfollowable(now, was)


def bridged(*modules, **more):
    """A pipeline of one phase with an external module at the end of it."""
    asr = ExternalModule("asr", target="registry:///asr", **more)
    return Pipeline("talk", [Controller("c", [Phase("p", [*modules, CombinationModule([asr])])])])


def test_an_external_module_is_told_with_its_target_and_asks_for_no_newer_rules():
    """No leader decides by it: an older one reads past what it does not know."""
    plan = compile_plan(bridged())
    asr = plan.phase("c", "p").modules[0].modules[0]
    assert (asr.kind, asr.target, asr.stateful) == ("external", "registry:///asr", False)
    assert plan.version == 1
    assert Plan.from_bytes(plan.to_bytes()) == plan
    assert b'"target"' not in compile_plan(declare()).to_bytes()


def test_an_external_phase_is_read_by_a_bridge():
    """One with a module of its own by a worker."""
    assert topology(compile_plan(bridged()))[1][0] == "bridge c.p"
    assert topology(compile_plan(bridged(Step())))[1][0] == "worker c.p"


def test_an_external_module_with_a_state_moves_no_more_than_another():
    """And its state is none that a module here could read, nor the other way round."""
    there = compile_plan(bridged(stateful=True))
    here = compile_plan(counted(CombinationModule([Count(name="asr")])))
    assert there.version == 2
    assert unfollowable(there, compile_plan(bridged(stateful=True))) == []
    assert unfollowable(there, here) == [
        "what has a state in 'c.p' was ['external asr at 0.0'] and would be ['asr at 0.0']"
    ]
    assert unfollowable(there, compile_plan(bridged(Step(), stateful=True)))


def test_a_phase_whose_lanes_change_cannot_be_followed():
    """Packages deployed before lanes, or before the phase was stateful, are in another queue."""
    stateful, plain = (compile_plan(counted(module)) for module in (Count(), Step()))
    before_lanes = Plan.from_bytes(stateful.to_bytes().replace(b',"lanes":32', b""))
    assert stateful.phase("c", "p").lanes == LANES and plain.phase("c", "p").lanes == 0
    assert unfollowable(stateful, stateful) == []
    for old, new in ((before_lanes, stateful), (plain, stateful)):
        assert unfollowable(old, new)[-1] == (
            "the queue of 'c.p' had no lanes and would have 32 lanes, as that of a stateful phase"
        )
    assert "had 32 lanes" in unfollowable(stateful, plain)[-1]


def test_only_a_plan_with_lanes_is_one_that_older_programs_refuse():
    """They would publish to where nobody looks."""
    assert compile_plan(counted(Step())).version == 1
    assert compile_plan(counted(Count())).version == 2


def test_a_stateful_phase_has_a_consumer_for_each_lane():
    """One row of the topology, and 32 consumers with one filter each that overlap nowhere."""
    assert topology(compile_plan(counted(Count())))[1] == (
        "worker c.p", "c=p=0 to 31", "bp.talk.0.work.c.p.<lane>.>",
    )  # fmt: skip
    subjects = Subjects("talk")
    consumers = dict(subjects.consumers("c", "p", LANES))
    assert len(consumers) == LANES
    for token in (f"i{n}" for n in range(200)):
        queue = subjects.queue("c", "p", token, LANES)
        assert [n for n, filter in consumers.items() if queue.startswith(filter[:-1])] == [
            f"c=p={lane_of(token, LANES)}"
        ]


def test_differences_are_told_by_name():
    """A line each, with the path to it."""
    old = compile_plan(declare())
    assert differences(old, old) == []
    assert differences(old, compile_plan(declare(window=None, ack_wait_s=1))) == [
        "controllers[first].phases[vad].ack_wait_s: 5.0 -> 1.0",
        "controllers[first].window: 4 -> None",
    ]
    assert differences(old, compile_plan(declare(age_s=2.5))) == [
        "controllers[second].max_age_ns: None -> 2500000000"
    ]
    assert differences(old, compile_plan(declare(extra=[Phase("more", [Step()])]))) == [
        "controllers[second].phases: ['asr', 'write'] -> ['asr', 'write', 'more']"
    ]
    assert differences(old, compile_plan(declare(name="stt"))) == [
        "controllers[second].phases[asr].name: 'asr' -> 'stt'"
    ]


def test_topology_names_every_consumer_and_its_one_filter():
    """One leader, and one consumer for each phase."""
    rows = topology(compile_plan(declare()), 3)
    assert rows[0] == ("leader", "BP_talk_3 (ephemeral)", "bp.talk.3.ctl.>")
    assert rows[1] == ("worker first.vad", "first=vad", "bp.talk.3.work.first.vad.>")
    assert len({row[1] for row in rows}) == len(rows) == 4
    assert completion_id(7, "first") != completion_id(7, "second") != completion_id(8, "second")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: plan.update(controllers=[]),
        lambda plan: plan["controllers"][0].update(phases=[]),
        lambda plan: plan["controllers"][0].update(window=0),
        lambda plan: plan["controllers"][0].update(queue_size=-1),
        lambda plan: plan["controllers"][0].update(name="a.b"),
        lambda plan: plan["controllers"][0].update(mode="SIDEWAYS"),
        lambda plan: plan.update(instance_idle_ns=0),
        lambda plan: plan.update(producer_gap_ns=2**63),
        lambda plan: plan.update(pipeline="demo\n"),
        lambda plan: plan.update(version=0),
        lambda plan: plan.update(version="2"),
        lambda plan: plan.update(version=2**63),
        lambda plan: plan.update(controllers=plan["controllers"] * 2),
        lambda plan: plan["controllers"][0].update(phases=plan["controllers"][0]["phases"] * 2),
    ],
)
def test_a_plan_that_no_machine_could_follow_is_refused(spoil):
    """It would stop every leader of the log, so it does not get in."""
    plan = json.loads(make_plan([(Mode.NO_ORDER, None, None)]).to_bytes())
    spoil(plan)
    with pytest.raises(PlanError, match="BP201"):
        Plan.from_bytes(json.dumps(plan).encode())


@pytest.mark.parametrize("more", [{}, {"controllers": "like nothing we know", "lanes": [1]}])
def test_a_plan_of_a_newer_version_says_so_whatever_it_looks_like(more):
    """Its version is read before the rest: taken for bytes that are no plan it would be ignored,
    and this leader would decide otherwise than those that know it."""
    plan = json.loads(make_plan([(Mode.NO_ORDER, None, None)]).to_bytes())
    plan.update(version=VERSION_MAX + 1, **more)
    with pytest.raises(
        NewerVersionError, match=r"BP205 .*'demo' has version 3; .*up to 2"
    ) as error:
        Plan.from_bytes(json.dumps(plan).encode())
    assert (error.value.pipeline, error.value.version) == ("demo", 3)


def test_a_snapshot_that_holds_a_newer_plan_is_not_called_damaged():
    """Whoever deletes a damaged snapshot computes it again; this one is not to be deleted."""
    from driving import World

    machine = World(make_plan([(Mode.NO_ORDER, None, None)])).machine
    machine.plan = msgspec.structs.replace(machine.plan, version=VERSION_MAX + 1)
    head, parts = whole(machine)
    with pytest.raises(NewerVersionError, match="BP205"):
        snapshot.restore(snapshot.read_head(head), parts)


def test_a_snapshot_of_another_version_says_which_program_reads_it(monkeypatch):
    """And one whose plan cannot be read is a SnapshotError, not a PlanError."""
    from driving import World

    machine = World(make_plan([(Mode.NO_ORDER, None, None)])).machine
    head, parts = whole(machine)
    spoiled = snapshot.read_head(head).__class__
    values = {name: getattr(snapshot.read_head(head), name) for name in spoiled.__struct_fields__}
    with pytest.raises(SnapshotError, match="BP201"):
        snapshot.restore(spoiled(**{**values, "plan": b"{}"}), parts)
    for wrong in ([1], {}, [1, "x", 1, b"", 1, 1, 1], [2], [2, 1, 1, b"", 1, [[2, 1]]]):
        packed = msgspec.msgpack.encode(wrong)
        with pytest.raises(SnapshotError, match="BP204"):
            snapshot.read_head(packed + zlib.crc32(packed).to_bytes(4, "big"))
    monkeypatch.setattr(snapshot, "VERSION", 3)
    newer = whole(machine)[0]
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="has version 3; this program reads versions up to 2"):
        snapshot.read_head(newer)


def test_a_machine_without_a_plan_survives_its_snapshot():
    """What came before the first plan is kept, and nothing else is there."""
    machine = Machine()
    assert machine.step(Arrived(3, 4, "a")) == []
    head, parts = whole(machine)
    again, _ = snapshot.restore(snapshot.read_head(head), parts)
    assert snapshot.read_head(head).oldest_source == 3
    assert (again.plan, again.unplanned) == (None, machine.unplanned)
    assert whole(again) == (head, parts)
