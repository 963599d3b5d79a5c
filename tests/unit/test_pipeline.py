"""Declaring a pipeline: every fault has its code, and all are found at once."""

import msgspec
import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import DeclarationError
from broker_pipeline.journey import Mode
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
    ModuleOptions,
    StatefulModule,
    Tls,
)
from broker_pipeline.pipeline import Controller, Phase, Pipeline


class Word(msgspec.Struct):
    """A payload."""

    text: str


class Step(ExecutionModule[Word]):
    """Does nothing."""


class Count(StatefulModule[pb.Error, bytes]):
    """Counts nothing."""


def phase(name="p", **changes):
    """A phase that is all right, but for the changes."""
    return Phase(name, changes.pop("modules", [Step()]), **changes)


def controller(name="c", *phases, **changes):
    """A controller that is all right, but for the changes."""
    return Controller(name, phases or [phase()], **changes)


def stepped(**options):
    """A controller whose module has these options."""
    return controller("c", phase(modules=[Step(options=ModuleOptions(**options))]))


def external(mode=Mode.NO_ORDER, **changes):
    """A controller with an external module that is all right, but for the changes."""
    given = {"target": "registry:///asr", **changes}
    return controller("c", phase(modules=[ExternalModule("asr", **given)]), mode=mode)


def called(**options):
    """Likewise, with these options."""
    return external(options=ExternalOptions(**options))


class Batch(ExecutionModule[Word]):
    """Does nothing, to many."""

    def execute_batch(self, packages, runs):
        """Do nothing."""


class Alone(Step):
    """Runs in a process of its own."""

    options = ModuleOptions(isolation="process")


def batching(*others, **options):
    """A controller whose module gets batches and has these options, beside others."""
    return controller("c", phase(modules=[Batch(options=ModuleOptions(**options)), *others]))


def held(kind, *arguments, **options):
    """A controller with a module of this kind."""
    module = kind(*arguments, options=ModuleOptions(**options))
    return controller("c", phase(modules=[module]), mode=Mode.NOT_PARALLEL)


ELSEWHERE = ExternalModule("far", target="far:1", options=ExternalOptions(max_batch=2))


def codes(name="talk", controllers=None, **changes):
    """The codes of the faults of a declaration."""
    try:
        Pipeline(name, [controller()] if controllers is None else controllers, **changes)
    except DeclarationError as error:
        return [fault[:5] for fault in error.faults]
    return []


NESTED = CombinationModule([ConditionModule(Count(), condition=bool)])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (codes("a.b"), ["BP101"]),
        (codes(""), ["BP101"]),
        (codes("a" * 49), ["BP101"]),
        (codes("é"), ["BP101"]),
        (codes("talk\n"), ["BP101"]),
        (codes(7), ["BP101"]),
        (codes(controllers=[controller([])]), ["BP101"]),
        (codes(controllers=[controller("c", phase("p q"))]), ["BP101"]),
        (codes(controllers=[controller(), controller()]), ["BP102"]),
        (codes(controllers=[controller("c", phase(), phase())]), ["BP102"]),
        (codes(instance_idle_s=0), ["BP103"]),
        (codes(instance_idle_s="600"), ["BP103"]),
        (codes(instance_idle_s=float("inf")), ["BP103"]),
        (codes(instance_idle_s=1e-12), ["BP103"]),
        (codes(producer_gap_s=float("nan")), ["BP103"]),
        (codes(producer_gap_s=None), ["BP103"]),
        (codes(controllers=[controller(mode=Mode.NO_ORDER, max_workers=0)]), ["BP103"]),
        (codes(controllers=[controller(mode=Mode.NO_ORDER, max_workers=1.5)]), ["BP103"]),
        (codes(controllers=[controller(queue_size=-1)]), ["BP103"]),
        (codes(controllers=[controller(max_age_s=0)]), ["BP103"]),
        (codes(controllers=[controller(max_age_s=-1.0)]), ["BP103"]),
        (codes(controllers=[controller(max_age_s=float("inf"))]), ["BP103"]),
        (codes(controllers=[controller(max_age_s=float("nan"))]), ["BP103"]),
        (codes(controllers=[controller(max_age_s="2")]), ["BP103"]),
        (codes(controllers=[controller(max_age_s=2.5)]), []),
        (codes(controllers=[controller("c", phase(ack_wait_s=0))]), ["BP103"]),
        (codes(controllers=[controller("c", phase(max_deliver=0))]), ["BP103"]),
        (codes(controllers=[controller("c", phase(max_deliver="5"))]), ["BP103"]),
        (codes(controllers=[]), ["BP104"]),
        (codes(controllers=[Controller("c", [])]), ["BP104"]),
        (codes(controllers=[controller("c", phase(modules=[]))]), ["BP104"]),
        (
            codes(controllers=[controller("c", phase(modules=[NESTED]), mode=Mode.NO_ORDER)]),
            ["BP105"],
        ),
        (codes(controllers=[controller(mode=Mode.FIRST_WINS, queue_size=3)]), ["BP106"]),
        (codes(controllers=[controller(mode="SIDEWAYS")]), ["BP107"]),
        (codes(controllers=[controller(mode="NOT_PARALLEL")]), ["BP107"]),
        (codes(controllers=[controller(max_workers=2)]), ["BP107"]),
        (codes(controllers=[stepped(timeout_s=0)]), ["BP108"]),
        (codes(controllers=[stepped(timeout_s="1")]), ["BP108"]),
        (codes(controllers=[stepped(isolation="cellar")]), ["BP108"]),
        (codes(controllers=[stepped(max_batch=2)]), ["BP108"]),  # has no execute_batch
        (codes(controllers=[batching(max_batch=2)]), []),
        (codes(controllers=[batching(max_batch=1024, max_delay_ms=1000)]), []),
        (codes(controllers=[batching(max_batch=0)]), ["BP108"]),
        (codes(controllers=[batching(max_batch=1025)]), ["BP108"]),
        (codes(controllers=[batching(max_batch="2")]), ["BP108"]),
        (codes(controllers=[batching(max_batch=2, max_delay_ms=-1)]), ["BP108"]),
        (codes(controllers=[batching(max_batch=2, max_delay_ms=1001)]), ["BP108"]),
        (codes(controllers=[batching(max_batch=2, max_delay_ms="5")]), ["BP108"]),
        (codes(controllers=[batching(max_delay_ms=5)]), ["BP108"]),  # waits for nobody
        (codes(controllers=[batching(max_batch=2, use_mutex=True)]), ["BP108"]),
        (codes(controllers=[batching(max_batch=2, isolation="process")]), ["BP108"]),
        (codes(controllers=[batching(Alone(), max_batch=2)]), ["BP108"]),
        (codes(controllers=[held(Count, max_batch=2)]), ["BP108"]),
        (codes(controllers=[held(CombinationModule, [Step()], max_batch=2)]), ["BP108"]),
        (codes(controllers=[held(ConditionModule, max_batch=2)]), ["BP108"]),
        (codes(controllers=[controller("c", phase(modules=[ELSEWHERE]))]), ["BP108"]),
        (codes(controllers=[phase()]), ["BP109"]),
        (codes(controllers=controller()), ["BP109"]),
        (codes(controllers=[controller("c", Step())]), ["BP109"]),
        (codes(controllers=[Controller("c", phase())]), ["BP109"]),
        (codes(controllers=[controller("c", phase(modules=Step()))]), ["BP109"]),
        (codes(controllers=[controller("c", phase(modules=(Step() for _ in "a")))]), ["BP109"]),
        (codes(controllers=[controller("c", phase(modules=[Step]))]), ["BP109"]),
        (codes(controllers=[controller("c", phase(modules=[Step(), "x"]))]), ["BP109"]),
        (
            codes(controllers=[controller("c", phase(modules=[CombinationModule(["x"])]))]),
            ["BP109"],
        ),
        (codes(controllers=[external(stateful=True)]), ["BP105"]),
        (codes(controllers=[called(isolation="process")]), ["BP108"]),
        (codes(controllers=[called(timeout_s=-1)]), ["BP108"]),
        *[
            (codes(controllers=[external(target=target)]), ["BP112"])
            for target in (
                "",
                "gpu",
                "gpu:",
                ":50051",
                "gpu:0",
                "gpu:65536",
                "gpu:http",
                "http://gpu:50051",
                "dns:gpu:50051",
                "dns:///gpu",
                "registry://asr",
                "registry:///",
                "registry:///" + "a" * 129,
                "a b:1",
                "::1:50051",
                "gpu:50051\n",
                None,
                50051,
            )
        ],
        (codes(controllers=[external(replicas=0)]), ["BP113"]),
        (codes(controllers=[external(replicas="2")]), ["BP113"]),
        (codes(controllers=[external(replicas=2)]), ["BP113"]),
        (codes(controllers=[external(Mode.NOT_PARALLEL, replicas=2, stateful=True)]), ["BP115"]),
        (codes(controllers=[external(options=ModuleOptions())]), ["BP114"]),
        (codes(controllers=[external(options={"timeout_s": 1})]), ["BP114"]),
        (codes(controllers=[called(method="ask")]), ["BP114"]),
        (codes(controllers=[called(streams=0)]), ["BP114"]),
        (codes(controllers=[called(streams=2.0)]), ["BP114"]),
        (codes(controllers=[called(tls=True)]), ["BP114"]),
        (codes(controllers=[called(token=b"secret")]), ["BP114"]),
    ],
)
def test_a_fault_is_told_with_its_code(found, expected):
    """One wrong thing, one fault, and never another exception."""
    assert found == expected


@pytest.mark.parametrize(
    "good",
    [
        controller(max_workers=1),
        controller(queue_size=0),
        controller(mode=Mode.ORDER_BY_SEQUENCE, max_workers=3, queue_size=0),
        controller(mode=Mode.NO_ORDER),
        stepped(timeout_s=0.5, isolation="process"),
        controller("c", phase(modules=[NESTED])),
        controller("c", phase(modules=(Step(),), ack_wait_s=1)),
        *[
            external(target=target)
            for target in (
                "gpu:50051",
                "10.0.0.7:1",
                "[::1]:65535",
                "dns:///asr.svc:50051",
                "dns:///[2001:db8::1]:443",
                "registry:///asr",
                "registry:///speech to text",
            )
        ],
        external(Mode.FIRST_WINS, replicas=3),
        external(Mode.NOT_PARALLEL, stateful=True),
        called(method="run", streams=4, tls=Tls(ca="ca.pem"), token="t", idempotent=True),
    ],
)
def test_what_is_right_is_built(good):
    """Bounds at their edges, states where one package runs at a time."""
    assert codes(controllers=[good]) == []


def test_all_faults_come_in_one_error():
    """A user mends them in one go: each line has its code, and the attribute holds them all."""
    with pytest.raises(DeclarationError) as caught:
        Pipeline(
            "a b",
            [
                controller(mode=Mode.NO_ORDER, queue_size=-1),
                controller("c", phase(modules=[]), max_workers=2),
                controller("d", phase(modules=[Count(), Step]), mode="UP"),
                controller("e", phase(modules=[Count()]), mode=Mode.NO_ORDER),
                stepped(timeout_s=-1),
            ],
            producer_gap_s=0,
        )
    faults = caught.value.faults
    assert {fault[:5] for fault in faults} == {f"BP10{n}" for n in range(1, 10)}
    text = str(caught.value)
    assert text.startswith(f"BP100 pipeline 'a b' cannot be built, {len(faults)} faults:\n")
    assert all(fault in text for fault in faults)


def test_one_fault_is_one_fault():
    """The count reads well."""
    with pytest.raises(DeclarationError, match=r"cannot be built, 1 fault:\n  BP104"):
        Pipeline("talk", [])


def test_payload_types_are_those_that_modules_and_the_declaration_name():
    """Structs by class name, protobuf by full name."""
    pipeline = Pipeline(
        "talk",
        [controller("c", phase(modules=[NESTED, Step(), ExecutionModule()]))],
        payload_types=[pb.DataPackage],
    )
    assert pipeline.payload_types == {
        "Word": Word,
        "broker_pipeline.v1.Error": pb.Error,
        "broker_pipeline.v1.DataPackage": pb.DataPackage,
    }
    assert repr(pipeline) == "<Pipeline 'talk': c>"


def test_a_phase_is_stateful_if_a_module_at_any_depth_is():
    """Inside a condition inside a combination too."""
    assert phase(modules=[NESTED]).stateful
    assert not phase().stateful


def test_a_phase_is_external_if_nothing_runs_in_the_worker_itself():
    """External modules, and combinations of them; a condition is code of ours."""
    asr = ExternalModule("asr", target="gpu:1", stateful=True)
    both = phase(modules=[CombinationModule([asr, CombinationModule([asr])]), asr])
    assert both.external
    assert both.stateful
    for modules in (
        [Step()], [asr, Step()], [CombinationModule([])], [CombinationModule([asr, Step()])],
        [ConditionModule(asr, condition=bool)],
    ):  # fmt: skip
        assert not phase(modules=modules).external


def test_a_token_is_not_told():
    """A fault is printed, and logged."""
    with pytest.raises(DeclarationError) as caught:
        Pipeline("talk", [called(token=b"secret")])
    assert "secret" not in str(caught.value)


def test_a_payload_type_that_needs_no_declaration_is_refused():
    """A setting is never silently ignored."""
    controller = Controller("c", [Phase("p", [ExecutionModule()])])
    with pytest.raises(DeclarationError, match="BP110"):
        Pipeline("x", [controller], payload_types=[bytes])


def test_modules_in_modules_have_a_bound():
    """Beyond 100 levels nobody could read what the package's journey says: it would never leave."""

    def nested(levels):
        module = Step()
        for _ in range(levels - 1):
            module = CombinationModule([module], name="in")
        return controller("c", phase(modules=[module]))

    assert codes(controllers=[nested(32)]) == []
    assert codes(controllers=[nested(33)]) == ["BP111"]
    assert codes(controllers=[nested(50)]) == ["BP111"]
