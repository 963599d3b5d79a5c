"""Roles as processes, and what they leave in the log."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import Subjects, ingress_subject, stream_name
from broker_pipeline.journey import STATUS_TO_PB, Outcome

ROOT = Path(__file__).parents[2]
BOUND_S = 40.0
OUTCOMES = {STATUS_TO_PB[outcome]: outcome.value for outcome in Outcome}
Left = tuple[int, bytes, str]
"""Sequence, payload, outcome."""


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition that other processes bring about; fail after BOUND_S seconds."""
    try:
        async with asyncio.timeout(BOUND_S):
            while not condition():  # noqa: ASYNC110 - it comes from other processes
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S} s: {what}") from None


POLL_S = 0.005


class Role:
    """`python -m broker_pipeline ...` with the lines that it writes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *arguments: str, errors: int | None = None, **environment: str) -> Role:
        """Start one; its standard error goes to the test's, unless `errors` says otherwise."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "broker_pipeline",
            *arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def said(self, text: str) -> None:
        """Wait until it has written a line with this."""
        await until(
            lambda: any(text in line for line in self.lines) or self.process.returncode is not None,
            f"{text!r} in {self.lines}",
        )
        assert any(text in line for line in self.lines), f"it ended: {self.lines}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        async with asyncio.timeout(BOUND_S):
            code = await self.process.wait()
            await self._reading
        return code

    async def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()


async def send(
    broker: Broker, pipeline: str, instances: int, packages: int, *, begin: int = 0
) -> None:
    """`packages` numbered payloads for each of so many instances."""
    acks = []
    for number in range(begin, begin + packages):
        for instance in range(instances):
            data = b"payload %d" % number
            subject = ingress_subject(pipeline, f"i{instance}")
            acks.append(await broker.start_publish(subject, data))
    await asyncio.gather(*acks)


class Outputs:
    """What leaves a pipeline, by instance, as it comes."""

    def __init__(self) -> None:
        self.by_instance: dict[str, list[Left]] = {}
        self.ids: list[int] = []

    @classmethod
    async def watch(cls, broker: Broker, pipeline: str) -> Outputs:
        """From the beginning on."""
        outputs = cls()
        subjects = Subjects(pipeline)

        def take(message: object) -> None:
            package = pb.DataPackage.FromString(message.data)  # type: ignore[attr-defined]
            outputs.ids.append(package.id)
            outcome = OUTCOMES[package.outcome]
            outputs.by_instance.setdefault(package.instance, []).append(
                (package.sequence, package.data, outcome)
            )

        await broker.read(stream_name(pipeline), f"{subjects.out}>", take)
        return outputs

    async def until(self, count: int) -> None:
        """Wait until so many have left."""
        await until(lambda: len(self.ids) >= count, f"{count} packages, there are {len(self.ids)}")

    def check(self, instances: int, packages: int, expected: Callable[[int], list[Left]]) -> None:
        """Each package once, what was expected, and SUCCESS in order."""
        assert len(self.ids) == len(set(self.ids)) == instances * packages, "lost or doubled"
        assert len(self.by_instance) == instances
        for instance, left in self.by_instance.items():
            success = [sequence for sequence, _, outcome in left if outcome == "SUCCESS"]
            assert success == sorted(success), f"{instance} is out of order"
            assert sorted(left) == expected(packages), f"{instance} differs"


def expected_ordered(packages: int) -> list[Left]:
    """What `pipelines.ordered` makes of them."""
    left = []
    for number in range(packages):
        data = b"payload %d" % number
        ending = number % 10
        outcome = {7: "EXIT", 9: "ERROR"}.get(ending, "SUCCESS")
        left.append((number + 1, data.upper() if outcome == "SUCCESS" else data, outcome))
    return left


def expected_chained(packages: int) -> list[Left]:
    """What `pipelines.chained` makes of them, worked out in a plain loop."""
    left, count, total = [], 0, 0
    for number in range(packages):
        data = b"payload %d" % number
        if number % 10 == 9:
            left.append((number + 1, data, "ERROR"))
            continue
        count, total = count + 1, total + number
        if number % 10 == 7:
            left.append((number + 1, data, "EXIT"))
            continue
        text = b"%s -> %d %d" % (data, count, total)
        if text.endswith(b"7"):
            left.append((number + 1, text, "EXIT"))
        elif text.endswith(b"9"):
            left.append((number + 1, text, "ERROR"))
        else:
            left.append((number + 1, text.upper(), "SUCCESS"))
    return left
