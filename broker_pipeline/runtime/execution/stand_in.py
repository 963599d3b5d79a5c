"""A module in the place of an external one's servers: in this process, without gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import ClientError
from broker_pipeline.external.port import Answer
from broker_pipeline.journey import STATUS_TO_PB, Status, last_message
from broker_pipeline.modules import Module, is_stateful, walk
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Phase
from broker_pipeline.runtime.call_states import StateCodec
from broker_pipeline.runtime.execution.hosted import CONTROLLER, PHASE, shift, tell_errors
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.program import Kind, Program, compile_phase
from broker_pipeline.runtime.execution.setting import Setting

SERVER = "stand-in"
"""The server and the host in errors."""


def use_stand_ins(
    programs: Iterable[Program],
    given: Mapping[str, Module[Any]],
    types: codecs.Types,
    now_ns: Callable[[], int],
) -> list[Module[Any]]:
    """Let modules here stand for those that run in module servers, by name; those that do.

    Raises:
        ClientError: one is missing, or one too many.
    """
    unused, used = dict(given), []
    for step in (step for program in programs for step in program.walk()):
        if step.kind is not Kind.EXTERNAL:
            continue
        name = step.module.name
        module = given.get(name)
        if not isinstance(module, Module):
            raise ClientError(
                f"module {step.label!r} runs in module servers, and there are none in memory; "
                f"expected what runs in their place, external={{{name!r}: SomeModule()}}, not "
                f"{module!r}"
            )
        unused.pop(name, None)
        stand_in = StandIn(module, types, now_ns)
        step.remote, step.is_async = stand_in.call, stand_in.is_async
        used.append(module)
    if unused:
        raise ClientError(
            f"external names {', '.join(map(repr, unused))}, and the pipeline has no "
            f"ExternalModule of that name: leave it out, or name one that it has"
        )
    return used


class StandIn:
    """Answers as a module server that hosts the module would.

    Args:
        module: what to run.
        types: payload types by name.
        now_ns: the clock of all times.

    Attributes:
        program: the module, laid out.
    """

    def __init__(self, module: Module[Any], types: codecs.Types, now_ns: Callable[[], int]) -> None:
        self.program = compile_phase(CONTROLLER, Phase(PHASE, [module]))
        self._types = types
        self._now_ns = now_ns
        self._setting = Setting(SERVER, SERVER, now_ns, now_ns)
        stateful = any(is_stateful(inner) for _, inner in walk([module]))
        self._states = StateCodec(module) if stateful else None

    @property
    def is_async(self) -> bool:
        """Whether it needs an event loop."""
        return any(step.is_async for step in self.program.walk())

    async def call(
        self,
        package: pb.DataPackage,
        *,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> Answer:
        """See `Relay.call`."""
        sent_ns = self._now_ns()
        given = pb.DataPackage()
        given.CopyFrom(package)
        states = None if state is None or self._states is None else self._states.unpack(state)
        way = Walk(self.program, DataPackage.wrap(given, self._types), states, self._setting)
        response = self._response(package, way, await way.run())
        return Answer(response, SERVER, sent_ns, self._now_ns())

    def _response(self, package: pb.DataPackage, way: Walk, status: Status) -> service.RunResponse:
        envelope, before = way.envelope, len(package.errors)
        modules = envelope.controllers[-1].phases[-1].modules
        response = service.RunResponse(
            status=STATUS_TO_PB[status], modules=modules, message=last_message(modules)
        )
        tell_errors(response, envelope, before)
        shift(response.modules, 0, before)
        response.payload.data = envelope.data
        response.payload.content_type = envelope.content_type
        response.payload.attributes.MergeFrom(envelope.attributes)
        if self._states is not None and way.states is not None:
            response.state = self._states.pack(way.states)
        return response
