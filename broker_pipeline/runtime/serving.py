"""The host of a module server: a `PhaseExecutor` with the hosted module as its only one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    BrokerPipelineError,
    DeclarationError,
    PayloadGoneError,
    ServeError,
    StateError,
)
from broker_pipeline.external.hosting import Call, failed
from broker_pipeline.journey import STATUS_TO_PB, Status, last_message
from broker_pipeline.modules import ExternalModule, Module, walk
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.context import parse_traceparent, server_span
from broker_pipeline.observe.meter import Meter, Sample
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.call_payloads import CallPayloads
from broker_pipeline.runtime.call_states import StateCodec
from broker_pipeline.runtime.execution.executor import Finished, Job, PhaseExecutor
from broker_pipeline.runtime.execution.hosted import CONTROLLER, PHASE, shift, tell_errors
from broker_pipeline.runtime.serving_meter import ServingMeter
from broker_pipeline.target import load_module, load_target

_SUCCESS = STATUS_TO_PB[Status.SUCCESS]
_SERVED = "served by "
"""Before the TARGET of a module, where that of a pipeline is expected; no Python name begins so."""


def load_for_process(target: str) -> Pipeline:
    """The pipeline of a worker's TARGET, or around a module server's. Raises TargetError."""
    if target.startswith(_SERVED):
        return pipeline_of(load_module(target.removeprefix(_SERVED)))
    return load_target(target)


def pipeline_of(module: Module[Any]) -> Pipeline:
    """A pipeline of nothing but the module. Raises ServeError with every fault."""
    for _, inner in walk([module]):
        if isinstance(inner, ExternalModule):
            raise ServeError(
                f"module {inner.name!r} is an ExternalModule, which a module server cannot host; "
                f"expected modules that run here: let its pipeline call it"
            )
    try:
        return Pipeline("served", [Controller(CONTROLLER, [Phase(PHASE, [module])])])
    except DeclarationError as error:
        raise ServeError(f"the module cannot be served: {'; '.join(error.faults)}") from error


def _content_types(module: Module[Any]) -> list[str]:
    declared: object = getattr(module, "content_types", ())
    if isinstance(declared, str) or not isinstance(declared, Iterable):
        raise ServeError(
            f"content_types of module {module.name!r} is {declared!r}; expected several "
            f"texts, such as ('audio/pcm',)"
        )
    return [str(each) for each in declared]


class ExecutorHost:
    """Runs the module on the packages of calls; see `external.hosting.ModuleHost`.

    Args:
        module: what to run.
        slots: how many packages run at the same time.
        name: under which it is served; None: the module's.
        target: TARGET of the module, for modules that are isolated in processes.
        changed: called when packages have been answered: the window may be another.
        references: whether it will have a broker, to fetch payloads by reference.
        pipelines: of which ones; None: of any.
        meter: counts what it does; None: nothing does.

    Attributes:
        payloads: those that come and go by reference; None: none do.
    """

    def __init__(
        self,
        module: Module[Any],
        *,
        slots: int,
        name: str | None = None,
        target: str | None = None,
        changed: Callable[[], None] = lambda: None,
        references: bool = False,
        pipelines: Collection[str] | None = None,
        meter: Meter | None = None,
    ) -> None:
        references = references and (pipelines is None or bool(pipelines))
        pipeline = pipeline_of(module)
        (controller,) = pipeline.controllers
        (phase,) = controller.phases
        self.changed = changed
        self._module = module
        self._has_target = target is not None
        machine = socket.gethostname()
        self.description = service.Description(
            name=name or module.name,
            version=str(getattr(module, "version", "")),
            server=f"{machine}-{os.getpid()}",
            content_types=_content_types(module),
            stateful=phase.stateful,
            references=references,
        )
        self.payloads = None if not references else CallPayloads(
            self.description, begin=lambda call: self._run([call]), answer=self._answer,
            changed=lambda: self.changed(), pipelines=pipelines,
        )  # fmt: skip
        self._is_tree = bool(module.children)
        self._types = pipeline.payload_types
        self._states = StateCodec(module) if phase.stateful else None
        self._outstanding = 0
        self._unwanted: set[Call] = set()  # they run still; bounded by the slots
        self._executor = PhaseExecutor(
            controller,
            phase,
            types=self._types,
            slots=slots,
            worker=self.description.server,
            host=machine,
            target=None if target is None else f"{_SERVED}{target}",
            deliver=self._finished,
        )
        self.description.capacity = self._executor.slots  # batches take more
        self._meter = (
            None if meter is None else ServingMeter(meter, self.description.name, self._samples)
        )

    def _samples(self) -> Iterator[Sample]:
        """What is known at a reading beside what was counted."""
        name, executor = self.description.name, self._executor
        yield catalogue.SERVER_WINDOW.sample(name, value=self.window if executor.running else 0)
        yield catalogue.SERVER_SLOTS.sample(name, value=executor.slots)
        yield catalogue.SERVER_LOST_SLOTS.sample(name, value=executor.lost_slots)

    async def start(self) -> None:
        """Set the module up. Raises ServeError, SetupError."""
        for _, inner in walk([self._module]):
            if inner.options.isolation == "process" and not self._has_target:
                raise ServeError(
                    f"module {inner.name!r} has isolation='process', and its process needs a "
                    f"TARGET to import; expected `broker-pipeline serve package.module:Name`, or "
                    f"serve(module, target='package.module:Name')"
                )
        await self._executor.start()

    async def close(self) -> None:
        """Tear the module down."""
        if self.payloads is not None:
            await self.payloads.close()
        await self._executor.close()
        if self._meter is not None:
            self._meter.close()

    @property
    def exhausted(self) -> bool:
        """Whether too many slots are lost in modules that do not come back."""
        return self._executor.exhausted

    # -- what the server asks of it ---------------------------------------------------------------
    @property
    def window(self) -> int:
        """About 50 ms of work for each slot; none for those that run what nobody waits for."""
        return max(0, self._executor.target() - len(self._unwanted))

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or running."""
        return self._executor.idle and (self.payloads is None or self.payloads.idle)

    def load(self) -> service.Load:
        """What runs, what waits, and how long one takes."""
        running = min(self._outstanding, self._executor.slots)
        fetching = 0 if self.payloads is None else self.payloads.fetching
        return service.Load(
            running=running,
            waiting=self._outstanding - running + fetching,
            run_time_ns=round(self._executor.run_ns),
        )

    def submit(self, calls: Sequence[Call]) -> None:
        """Run packages, when they have their payload."""
        if self._meter is not None:
            self._meter.came(calls)
        if self.payloads is None:
            self._run(calls)
            return
        here: list[Call] = []
        for call in calls:
            package = call.request.package
            if package.HasField("reference") and self.payloads.serves(package.pipeline):
                self.payloads.fetch(call)
            else:
                here.append(call)
        self._run(here)

    def _run(self, calls: Sequence[Call]) -> None:
        jobs: list[Job] = []
        arrived_ns = time.time_ns()  # on the clock of journeys
        for call in calls:
            try:
                jobs.append(self._job(call, arrived_ns))
            except BrokerPipelineError as error:
                self._answer(call, failed(call.request, error, self.description))
                self._let_go(call)
        self._outstanding += len(jobs)
        self._executor.submit(jobs)

    def drop(self, call: Call) -> None:
        """Not begun, it leaves with its payload at once; running, its result is dropped."""
        call.over = True
        if self._meter is not None:
            self._meter.given_up(call)
        if self.payloads is not None:
            self.payloads.drop(call)
        if call.work is None:
            return
        job, call.work = call.work.job, None
        if self._executor.take_back(job):
            self._outstanding -= 1
            self._let_go(call)
        else:
            job.gate = _never  # it may be about to begin
            self._unwanted.add(call)
            self.changed()

    def withdraw(self) -> list[Call]:
        """Take back what has not begun."""
        jobs = self._executor.withdraw()
        self._outstanding -= len(jobs)
        calls = [job.token for job in jobs if isinstance(job.token, Call)]
        if self.payloads is not None:
            calls += self.payloads.withdraw()
        left = [call for call in calls if not call.over]
        for call in calls:
            call.over, call.work = True, None
            if self._meter is not None:
                self._meter.given_up(call)
            self._unwanted.discard(call)
            self._let_go(call)
        return left

    # -- in and out -------------------------------------------------------------------------------
    def _job(self, call: Call, arrived_ns: int) -> Job:
        package = call.request.package
        if package.HasField("reference"):
            raise PayloadGoneError(
                f"the payload of package {package.id} is an object in "
                f"{package.reference.bucket!r}, which this module server cannot fetch; expected "
                f"the payload itself, as Description.references says: or start it with --announce "
                f"and --pipeline {package.pipeline[:80]!r}"
            )
        states = None
        if self._states is not None and call.request.HasField("state"):
            states = self._states.unpack(call.request.state)
        caller = parse_traceparent(call.request.traceparent)
        span = None if caller is None else server_span(caller)
        job = Job(DataPackage.wrap(package, self._types), call, states, span=span)
        call.work = _Work(job, package, arrived_ns, is_tree=self._is_tree)
        return job

    def _finished(self, finished: list[Finished]) -> None:
        self._outstanding -= len(finished)
        for each in finished:
            call = each.job.token
            assert isinstance(call, Call)
            self._unwanted.discard(call)
            if not call.over:
                response = self._response(call, each)
                call.work = None  # it may have to be stored still, but the module has done it
                if self.payloads is None or not self.payloads.store(call, response):
                    self._answer(call, response)
            self._let_go(call)
        self.changed()

    def _let_go(self, call: Call) -> None:
        if self.payloads is not None:
            self.payloads.let_go(call)

    def _answer(self, call: Call, response: service.RunResponse) -> None:
        call.over = True
        call.work = None
        if self._meter is not None:
            self._meter.answered(call, response)
        call.answered(call, response)

    def _response(self, call: Call, finished: Finished) -> service.RunResponse:
        request, envelope, status = call.request, finished.envelope, finished.status
        response = service.RunResponse(
            call=request.call,
            package=envelope.id,
            status=_SUCCESS if status is Status.SUCCESS else STATUS_TO_PB[status],
            total_time_ns=max(1, time.monotonic_ns() - call.arrived_ns),
        )
        work: _Work = call.work
        if status is Status.ERROR:
            _tell_errors(response, request, envelope, work, self.description.server)
            return response
        _tell_journey(response, envelope.controllers[-1].phases[-1], work)
        if work.changed(envelope):
            payload = response.payload
            kept = None if self.payloads is None else self.payloads.reference(call)
            if kept is not None and envelope.data == work.data:
                payload.reference.CopyFrom(kept)
            else:
                payload.data = envelope.data
            payload.content_type = envelope.content_type
            payload.attributes.MergeFrom(envelope.attributes)
        if self._states is not None:
            try:
                response.state = self._states.pack(finished.states or {})
            except StateError as error:
                return failed(request, error, self.description)
        return response


class _Work:
    """A package as it came: the module changes it in place."""

    __slots__ = ("arrived_ns", "attributes", "content_type", "data", "is_tree", "job")

    def __init__(
        self, job: Job, package: pb.DataPackage, arrived_ns: int, *, is_tree: bool
    ) -> None:
        self.job = job
        self.arrived_ns = arrived_ns
        self.is_tree = is_tree
        self.data = package.data
        self.content_type = package.content_type
        self.attributes = dict(package.attributes) if package.attributes else None

    def changed(self, envelope: pb.DataPackage) -> bool:
        """Whether the module has left another payload."""
        if envelope.data != self.data or envelope.content_type != self.content_type:
            return True
        attributes = envelope.attributes
        return bool(attributes or self.attributes) and dict(attributes) != (self.attributes or {})


def _tell_errors(
    response: service.RunResponse,
    request: service.RunRequest,
    envelope: pb.DataPackage,
    work: _Work,
    server: str,
) -> None:
    """What went wrong here, and what ran until then."""
    before = len(request.package.errors)
    tell_errors(response, envelope, before)
    phases = envelope.controllers[-1].phases if envelope.controllers else ()
    if phases and phases[-1].worker == server:  # else it could not even be begun
        _tell_journey(response, phases[-1], work, before)


def _tell_journey(
    response: service.RunResponse, phase: pb.PhaseRecord, work: _Work, errors: int = 0
) -> None:
    """What ran here, counted from the package's arrival. No field is touched more than needed:
    this is a fifth of what a package costs the server."""
    modules = response.modules
    modules.MergeFrom(phase.modules)
    waited_ns = max(0, phase.start_time_ns - work.arrived_ns)
    if not work.is_tree and response.status == _SUCCESS:
        record = modules[0]
        record.start_offset_ns += waited_ns
        if record.message:
            response.message = record.message
        return
    response.message = last_message(modules)
    shift(modules, waited_ns, errors)


async def _never() -> bool:
    """The gate of a package that nobody waits for."""
    return False
