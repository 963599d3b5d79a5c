"""What a package may need before it can be run: its payload, where that is large, and the states
before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.codecs import Types
from broker_pipeline.errors import (
    BrokerPipelineError,
    MalformedPackageError,
    ModuleMismatchError,
    ModuleServerError,
    ModuleTimeoutError,
    ModuleUnreachableError,
    PayloadGoneError,
    StateError,
)
from broker_pipeline.journey import Status
from broker_pipeline.observe.about import in_phase
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.ages import Ages
from broker_pipeline.runtime.execution.flow import Finished, Job
from broker_pipeline.runtime.loading import Loading
from broker_pipeline.runtime.results import Here, Results
from broker_pipeline.runtime.states import StateKeeper, States

log = logging.getLogger(__name__)

CATCH_UPS_MAX = 16
"""States caught up with at the same time: each reads a part of the log."""
_SERVERS_FAULTS = tuple(
    kind.__name__ for kind in (ModuleServerError, ModuleUnreachableError, ModuleMismatchError)
)
"""Types of errors that say that module servers failed, and nothing of the package."""
_TIMEOUT = ModuleTimeoutError.__name__
"""And the one that says so where the module runs in servers: one that hangs."""

_PAYLOAD_GONE = PayloadGoneError.__name__
"""And the one that says that its payload is not there any more."""


class Preparing:
    """The packages of one phase in one worker that cannot be run yet.

    Args:
        name: of the phase, for logs.
        external: nothing runs here, so payloads are left where they are: whoever calls the
            servers knows which of them fetch by reference.
        in_servers: the labels of modules that run in servers, as errors tell them.
        submit: takes a package that can be run, with its states.
        rerun: takes recorded inputs that are run for the states after them.
        done: called when a package is not here any more.
    """

    def __init__(
        self,
        name: str,
        types: Types,
        ages: Ages,
        states: StateKeeper | None,
        loading: Loading,
        results: Results,
        *,
        external: bool,
        in_servers: Sequence[str],
        submit: Callable[[Here, pb.DataPackage, States | None], None],
        rerun: Callable[[Sequence[Job]], None],
        done: Callable[[], None],
    ) -> None:
        self._name = name
        self._types = types
        self._ages = ages
        self._states = states
        self._loading = loading
        self._results = results
        self._external = external
        self._in_servers = in_servers
        self._submit = submit
        self._run_again = rerun
        self._done = done
        self._tasks: dict[asyncio.Task[None], Here] = {}
        self._turn = asyncio.Semaphore(CATCH_UPS_MAX)

    @property
    def count(self) -> int:
        """How many packages are being prepared."""
        return len(self._tasks)

    def begin(self, here: Here, envelope: pb.DataPackage) -> None:
        """Run the package, once it has what it needs."""
        if self._to_fetch(envelope) and not self._ages.too_old(envelope):
            self._later(here, self._fetch(here, envelope), f"fetch {self._name}")
        else:
            self._begin_whole(here, envelope)

    def _to_fetch(self, envelope: pb.DataPackage) -> bool:
        return not self._external and envelope.HasField("reference")

    async def withdraw(self, gone: Callable[[str], bool]) -> list[Here]:
        """Break off for these instances; the packages that were not ready."""
        tasks = {task: here for task, here in self._tasks.items() if gone(here.token)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [here for task, here in tasks.items() if task.cancelled()]

    def cancel(self) -> None:
        """Break everything off."""
        for task in self._tasks:
            task.cancel()

    def _later(self, here: Here, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = here
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        here = self._tasks.pop(task)
        if task.cancelled():
            return  # by the drain, which gives the package back
        if (error := task.exception()) is not None:
            what = in_phase(self._name, here.token)
            log.error("preparing a package of %s failed", self._name, exc_info=error, extra=what)
            self._results.unpublished(here, error)
        self._done()

    async def _fetch(self, here: Here, envelope: pb.DataPackage) -> None:
        """Get a large payload, then run its package."""
        try:
            await self._loading.fetch(here, envelope)
        except (PayloadGoneError, MalformedPackageError) as error:
            self._results.fail(here, envelope, error)
        except BrokerPipelineError as error:
            self._results.unpublished(here, error)
        else:
            self._begin_whole(here, envelope)

    def _begin_whole(self, here: Here, envelope: pb.DataPackage) -> None:
        """Run the package with the states before it."""
        if self._states is None or self._ages.too_old(envelope):
            self._submit(here, envelope, None)
        else:
            states = self._states.at_hand(here.token, envelope)
            if states is not None:
                self._submit(here, envelope, states)
            else:
                self._later(here, self._catch_up(here, envelope), f"catch up {self._name}")

    async def _catch_up(self, here: Here, envelope: pb.DataPackage) -> None:
        """Get the states before this package, then run it."""
        assert self._states is not None
        try:
            states = await self._states.confirmed(here.token, envelope)
            if states is None:
                async with self._turn:
                    states = await self._states.catch_up(here.token, envelope, self._rerun)
        except StateError as error:
            self._results.fail(here, envelope, error)
            return
        except BrokerPipelineError as error:
            self._results.unpublished(here, error)
            return
        self._submit(here, envelope, states)

    async def _rerun(self, envelope: pb.DataPackage, states: States) -> States | None:
        """Run the phase on a recorded input and throw the result away, but for the states.

        Raises ModuleUnreachableError where that is a module server's fault and not the input's.
        """
        if self._to_fetch(envelope):
            try:
                await self._loading.fetch_again(envelope)
            except (PayloadGoneError, MalformedPackageError) as error:
                raise self._lost(envelope, str(error)) from error
        refers = envelope.HasField("reference")
        done: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._run_again([Job(DataPackage.wrap(envelope, self._types), done, states)])
        finished = await done
        failed = finished.envelope.errors if finished.status is Status.ERROR else ()
        if refers and failed and failed[-1].type == _PAYLOAD_GONE:
            raise self._lost(envelope, failed[-1].message)
        if failed and self._servers_fault(failed[-1]):
            raise self._not_now(envelope, failed[-1].message)
        if finished.status is Status.WAITING:
            raise self._not_now(envelope, "this worker drains")
        return finished.states

    def _servers_fault(self, error: pb.Error) -> bool:
        if error.type != _TIMEOUT:
            return error.type in _SERVERS_FAULTS
        return any(f"{error.path}/".startswith(f"{label}/") for label in self._in_servers)

    def _not_now(self, envelope: pb.DataPackage, why: str) -> ModuleUnreachableError:
        return ModuleUnreachableError(
            f"no module server could run the recorded input {envelope.id} of {self._name} again "
            f"for its state ({why}); it is tried again later"
        )

    def _lost(self, envelope: pb.DataPackage, why: str) -> StateError:
        return StateError(
            f"a recorded input of instance {envelope.instance!r} cannot be run again in "
            f"{self._name!r}: {why}",
            instance=envelope.instance,
        )
