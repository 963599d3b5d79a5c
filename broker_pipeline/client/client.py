"""The client: one connection, to deploy pipelines, write to their instances and read results."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any
from weakref import WeakSet

from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import DeployResult, deploy
from broker_pipeline.client.instance import Instance
from broker_pipeline.client.producer import OnFull
from broker_pipeline.client.results import ResultsReader
from broker_pipeline.core.names import escape_instance
from broker_pipeline.errors import ClientError
from broker_pipeline.journey import Outcome
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Pipeline


def connect(url: str | None = None, *, name: str = "broker_pipeline client") -> Client:
    """A client; nothing happens before `async with connect(...) as client`.

    Args:
        url: `nats://host:port`, or several with commas between them. None: a nats-server of its own
            with a temporary store, which ends with the client; `deploy` then also starts controller
            and worker in this process, for nobody else knows that server.
        name: how the connection is called in the server's monitoring.
    """
    return Client(url, name=name)


class Client:
    """A connection that survives reconnects; made by `connect`, used as `async with`."""

    def __init__(self, url: str | None, *, name: str) -> None:
        self._url = url
        self._name = name
        self._broker: Broker | None = None
        self._server: EmbeddedServer | None = None
        self._stack = AsyncExitStack()
        self._local: dict[str, tuple[Pipeline, AsyncExitStack]] = {}
        self._readers: WeakSet[ResultsReader] = WeakSet()

    @property
    def broker(self) -> Broker:
        """The connection. Raises ClientError outside of `async with`."""
        if self._broker is None:
            raise ClientError("the client is not connected; expected `async with connect(...)`")
        return self._broker

    @property
    def url(self) -> str:
        """The broker's address. Raises ClientError where that is an embedded one, not started."""
        if self._url is None:
            raise ClientError("the client is not connected; expected `async with connect(...)`")
        return self._url

    async def deploy(self, pipeline: Pipeline, replicas: int | None = None) -> DeployResult:
        """Provision what the pipeline needs and put its plan into force; idempotent.

        Args:
            replicas: on how many servers of a cluster everything is kept: 1, 3 or 5. None: as it
                is, 1 for what is new. What all pipelines share is never brought down to 1.

        Returns:
            What changed; `str()` of it says so to a person.

        Raises:
            PlanError: packages that run under the deployed plan could not go on under the new one.
        """
        result = await deploy(self.broker, pipeline, replicas)
        if self._server is not None:
            await self._run_here(pipeline)
        return result

    def instance(
        self,
        pipeline: Pipeline,
        name: str,
        *,
        wait_full_s: float = 0.0,
        on_full: OnFull | None = None,
    ) -> Instance:
        """One stream through the pipeline; use it as `async with`.

        Args:
            name: any text of 1 to 128 bytes. Raises ClientError where it is not.
            wait_full_s: how long a `send` waits when the log is full, before it raises
                LogFullError; `math.inf`: until there is room, as a pipe does.
            on_full: is called with that error when a `send` begins to wait.
        """
        return Instance(self.broker, pipeline, name, wait_full_s=wait_full_s, on_full=on_full)

    def results(
        self,
        pipeline: Pipeline,
        instance: str | None = None,
        outcome: Outcome | None = None,
        start: str = "now",
    ) -> AsyncGenerator[DataPackage[Any], None]:
        """What leaves the pipeline, in order; without an end.

        Args:
            instance: only this one's; None: all instances'.
            outcome: only packages with this outcome.
            start: "now": where the log ends when the first package is asked for; "beginning": the
                oldest that the log has; or the id of a package: what left after that one.
        """
        token = None if instance is None else escape_instance(instance)
        reader = ResultsReader(self.broker, pipeline, token)
        self._readers.add(reader)
        return reader.read(start, outcome)

    async def _run_here(self, pipeline: Pipeline) -> None:
        """Controller and worker in this process; those of an older pipeline end first."""
        from broker_pipeline.runtime.local import LocalRoles  # only here: it loads much

        running = self._local.get(pipeline.name)
        if running is not None:
            if running[0] is pipeline:
                return
            await running[1].aclose()
            del self._local[pipeline.name]
        stack = AsyncExitStack()
        await stack.enter_async_context(LocalRoles(self.url, pipeline))
        self._local[pipeline.name] = (pipeline, stack)

    async def __aenter__(self) -> Client:
        """Connect. Raises BrokerUnavailableError, BrokerTooOldError, ServerStartError."""
        try:
            if self._url is None:
                self._server = await self._stack.enter_async_context(EmbeddedServer())
                self._url = self._server.url
            self._broker = await jetstream.connect(self._url, reconnect=True, name=self._name)
        except BaseException:
            await self._stack.aclose()
            raise
        self._stack.push_async_callback(self._broker.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self._readers:
            reader.close()
        async with self._stack:
            for _, roles in self._local.values():
                await roles.aclose()
