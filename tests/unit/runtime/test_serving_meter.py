"""What a module server counts of its calls."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from broker_pipeline import ExecutionModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.hosting import Call
from broker_pipeline.observe.meter import Meter
from broker_pipeline.runtime.serving import ExecutorHost
from tests.unit.runtime.readings import Reader
from tests.unit.runtime.shard import until

NAME = ("Held",)
IN, OUT = "server_calls_in_total", "server_calls_out_total"


class Held(ExecutionModule[bytes]):
    """Holds each package until it is let go; ends as its payload says."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = 0
        self.opened = threading.Event()

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        self.entered += 1
        self.opened.wait(30)
        if package.data == b"exit":
            run.exit("as told")
        if package.data == b"error":
            raise ValueError("as told")


def call(number: int, data: bytes, answers: list[service.RunResponse], **fields: Any) -> Call:
    """One call, whose answer is kept."""
    package = pb.DataPackage(id=number, data=data, **fields)
    request = service.RunRequest(call=number, package=package)
    return Call(request, lambda _, answer: answers.append(answer), time.monotonic_ns())


async def test_calls_are_inside_until_they_are_answered_dropped_or_given_back() -> None:
    """Each is counted out once: also one whose caller has gone while it runs, one that waited, one
    that is dropped after its answer, and one that cannot be run at all."""
    module, read = Held(), Reader(meter := Meter())
    host = ExecutorHost(module, slots=2, meter=meter)
    await host.start()
    answers: list[service.RunResponse] = []
    calls = [call(n, data, answers) for n, data in enumerate((b"a", b"b", b"exit", b"error"))]
    host.submit(calls)
    large = call(9, b"", answers, reference=pb.PayloadReference(bucket="nowhere"))
    host.submit([large])
    await until(lambda: module.entered == 2)
    found = read()
    assert (found[IN, NAME], found["server_calls_inside", NAME]) == (5, 4)
    assert found[OUT, (*NAME, "error")] == 1 and len(answers) == 1
    assert found["server_slots", NAME] == 2 and ("server_window", NAME) in found
    host.drop(calls[0])
    late = [call(n, b"late", answers) for n in (10, 11)]
    host.submit(late)
    host.drop(late[0])
    assert len(host.withdraw()) == 3  # what waited: two of the first, and one of the late
    found = read()
    assert (found["server_calls_inside", NAME], found[OUT, (*NAME, "given_back")]) == (1, 5)
    host.submit([call(12, b"exit", answers), call(13, b"error", answers)])
    module.opened.set()
    await until(lambda: len(answers) == 4)
    for each in calls:
        host.drop(each)
    found = read()
    ended = {end: found[OUT, (*NAME, end)] for end in ("success", "exit", "error", "given_back")}
    assert ended == {"success": 1, "exit": 1, "error": 2, "given_back": 5}
    assert found["server_calls_inside", NAME] == 0
    await asyncio.wait_for(host.close(), 10)
    assert not [sample for sample in meter.read() if not sample.counts]
