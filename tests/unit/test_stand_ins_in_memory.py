"""`run_in_memory` with external modules: what stands in for their servers."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import (
    CombinationModule,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    Mode,
    Outcome,
    Run,
)
from broker_pipeline.errors import ClientError
from broker_pipeline.testing import run_in_memory
from tests.unit.running_in_memory import Life, Remember, Upper, pipeline


class Hear(ExecutionModule[bytes]):
    """What a module server hosts: as text, but for silence and noise."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        package.attributes["by"] = "hear"
        run.message = "heard"
        if package.data == b"silence":
            run.exit("nothing said")
        if package.data == b"noise":
            raise ValueError("cannot hear")
        package.data = package.data.upper()


def asr(**more: Any) -> ExternalModule:
    return ExternalModule("asr", target="registry:///asr", **more)


def test_a_stand_in_runs_as_its_servers_would() -> None:
    """Its record inside the external one's, its errors under the server's name."""
    talk = pipeline(Mode.NOT_PARALLEL, CombinationModule([asr()], name="both"), Upper())
    said, silence, noise = run_in_memory(
        talk, [b"hi", b"silence", b"noise"], external={"asr": Hear()}
    )
    assert (said.data, dict(said.attributes)) == ("HI", {"by": "hear"})
    record = said.controllers[0].phases[0].modules[0].sub_modules[0]
    assert (record.name, record.message) == ("asr", "heard")
    assert [inner.name for inner in record.sub_modules] == ["Hear"]
    assert (silence.outcome, silence.reason) == (Outcome.EXIT, "nothing said")
    error = noise.errors[0]
    assert (noise.outcome, error.type, error.message) == (
        Outcome.ERROR,
        "ValueError",
        "cannot hear",
    )
    assert (error.worker, error.path) == ("stand-in", "only/work/both/asr/Hear")
    inner = noise.controllers[0].phases[0].modules[0].sub_modules[0].sub_modules[0]
    assert inner.error == error
    assert dict(noise.attributes) == {}


def test_a_stand_in_with_a_state_has_it_kept() -> None:
    """As opaque bytes, from package to package and for each instance."""
    talk = pipeline(Mode.NOT_PARALLEL, asr(stateful=True))
    chunks = [("a", "x"), ("b", "y"), ("a", "z")]
    left_ = run_in_memory(talk, chunks, external={"asr": Remember()})
    plain = run_in_memory(pipeline(Mode.NOT_PARALLEL, Remember()), chunks)
    assert [package.data for package in left_] == [package.data for package in plain]


def test_a_stand_in_is_set_up_and_torn_down_and_may_be_async() -> None:
    """On the loop of all modules."""
    life = Life()
    run_in_memory(pipeline(Mode.NO_ORDER, asr()), ["x"], external={"asr": life})
    assert life.calls == ["setup", "x", "teardown"]


async def test_stand_ins_that_are_not_async_need_no_loop_of_their_own() -> None:
    """So they run where an event loop runs already."""
    (left_,) = run_in_memory(pipeline(Mode.NO_ORDER, asr()), [b"x"], external={"asr": Hear()})
    assert left_.data == b"X"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "module 'only/work/asr' runs in module servers.*external="),
        ({"asr": Hear}, "SomeModule"),
        ({"asr": Hear(), "tts": Hear()}, "external names 'tts'"),
    ],
    ids=["none", "a class", "one too many"],
)
def test_stand_ins_that_do_not_fit_are_refused(given: Any, said: str) -> None:
    """Before any package is sent."""
    with pytest.raises(ClientError, match=said):
        run_in_memory(pipeline(Mode.NO_ORDER, asr()), [b"x"], external=given)
