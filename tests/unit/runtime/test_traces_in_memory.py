"""The context of a trace on its way through leader and workers, at the limits of the broker."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline
from broker_pipeline.core.names import ingress_subject, payload_bucket
from broker_pipeline.journey import Outcome
from broker_pipeline.observe.error_detail import DETAIL_ENV
from tests.unit.runtime.bench import Bench, results

HEADERS = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01", "tracestate": "a=" + "b" * 510}
BYTES_MAX = 16_000


class Step(ExecutionModule[bytes]):
    """Fails or leaves early where it is told to."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        held = [f"a value {number}" for number in range(300)]
        if package.data.startswith(b"fail"):
            raise ValueError(f"told to, with {len(held)}")
        if package.data.startswith(b"exit"):
            run.exit("told to")
        if package.data.startswith(b"talk"):
            run.message = "." * 2_000


def pipeline() -> Pipeline:
    """Two controllers; the first has two phases."""
    ordered = Controller(
        "c", mode=Mode.ORDER_BY_SEQUENCE, max_workers=4,
        phases=[Phase("p0", [Step()]), Phase("p1", [Step()])],
    )  # fmt: skip
    return Pipeline("demo", [ordered, Controller("d", phases=[Phase("q", [Step()])])])


async def begin(**options: Any) -> Bench:
    """With a worker for each phase."""
    bench = await Bench.begin(pipeline(), **options)
    for controller, phase in ((0, 0), (0, 1), (1, 0)):
        await bench.work(phase, controller=controller)
    return bench


async def send(bench: Bench, data: bytes, headers: dict[str, str]) -> None:
    """As a raw producer."""
    await bench.broker.publish(ingress_subject("demo", "a"), data, headers=headers)


async def test_the_context_goes_on_with_every_message_of_its_package_and_no_other() -> None:
    """Dispatches, next phases, completions and the outcome, early leavers' too."""
    bench = await begin()
    for data in (b"whole", b"exit", b"fail"):
        await send(bench, data, HEADERS)
    await send(bench, b"other", {})
    left = await bench.left(4)
    ids = {package.data: package.id for package in left}
    messages = [m for m in bench.messages("bp.demo.0.") if "~" in m.headers.get("Nats-Msg-Id", "")]
    of: dict[int, list[dict[str, str]]] = {}
    for message in messages:
        number = int(message.headers["Nats-Msg-Id"].split(".")[1])
        own = {name: value for name, value in message.headers.items() if "Nats" not in name}
        of.setdefault(number, []).append(own)
    assert len(of[ids[b"whole"]]) == 6 and len(of[ids[b"exit"]]) == len(of[ids[b"fail"]]) == 3
    for data in (b"whole", b"exit", b"fail"):
        assert all(own == HEADERS for own in of[ids[data]]), data
    assert all(own == {} for own in of[ids[b"other"]])
    await bench.end()


@pytest.mark.parametrize("room", range(0, 1600, 100))
@pytest.mark.parametrize("word", [b"whole", b"fail", b"talk"])
async def test_a_package_that_barely_fits_is_not_gone_round_in_circles_over(
    word: bytes, room: int
) -> None:
    """Wherever the limit is met, at the leader or in a worker, with a payload or with what modules
    said: it leaves, once, and those behind it too."""
    bench = await begin(max_payload=BYTES_MAX)
    await bench.broker.delete_object_bucket(payload_bucket("demo"))
    await send(bench, word + b"x" * (BYTES_MAX - 700 - room - len(word)), HEADERS)
    await send(bench, b"next", HEADERS)
    left = await bench.left(2)
    assert len(left) == 2 and (b"next", Outcome.SUCCESS) in results(left)
    await bench.end()


async def test_an_error_is_worth_more_than_its_details(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not fit, they go first; the error and the payload stay."""
    monkeypatch.setenv(DETAIL_ENV, "locals")
    bench = await begin(max_payload=BYTES_MAX)
    await send(bench, b"fail", {})
    await send(bench, b"fail" + b"x" * 10_000, {})
    small, large = sorted(await bench.left(2), key=lambda package: len(package.data))
    assert small.errors[0].type == large.errors[0].type == "ValueError"
    assert small.errors[0].details and not large.errors[0].details
    assert len(large.data) == 10_004
    await bench.end()
