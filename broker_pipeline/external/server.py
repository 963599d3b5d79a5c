"""A module server: the port, who may use it, health and reflection; and how it ends."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from broker_pipeline.errors import ServeError
from broker_pipeline.external.credentials import (
    MESSAGE_BYTES_MAX,
    TOKEN_KEY,
    server_options,
    token_metadata,
)
from broker_pipeline.external.hosting import ModuleHost
from broker_pipeline.external.service import SERVICE, Servicer

log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

HEARTBEAT_S = 1.0
HEARTBEAT_S_MIN, HEARTBEAT_S_MAX = 0.01, 3600.0
"""More often would cost more than packages do; more seldom would find no server that hangs."""
MESSAGE_BYTES_MIN = 64 << 10
"""A smaller limit would not take the journeys of packages."""
STOP_S = 0.5
"""Calls that are not ours, such as those that watch the health, may take so long to end."""
TAKEN_S = 10.0
"""Callers may take so long to take the last answers of a draining server."""
LOOK_S = 0.02
"""How often a draining server looks whether it is done."""


class ModuleServer:
    """Serves a module on a port.

    Args:
        host: runs the module; started before, and closed after the server.
        address: `host:port` to listen at; port 0 takes a free one.
        credentials: None: plaintext.
        token: what callers must show; None: anybody may call.
        message_bytes_max: the largest message that is taken, and sent.
        heartbeat_s: each stream gets a message at least so often.
    """

    def __init__(
        self,
        host: ModuleHost,
        address: str,
        *,
        credentials: grpc.ServerCredentials | None = None,
        token: str | None = None,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        if message_bytes_max < MESSAGE_BYTES_MIN:
            raise ServeError(
                f"message_bytes_max is {message_bytes_max}; expected at least {MESSAGE_BYTES_MIN}"
            )
        if not HEARTBEAT_S_MIN <= heartbeat_s <= HEARTBEAT_S_MAX:
            raise ServeError(
                f"heartbeat_s is {heartbeat_s!r}; expected {HEARTBEAT_S_MIN:g} to "
                f"{HEARTBEAT_S_MAX:g} seconds"
            )
        self._host = host
        self._address = address
        self._credentials = credentials
        self.servicer = Servicer(host, message_bytes_max=message_bytes_max, heartbeat_s=heartbeat_s)
        interceptors = [] if token is None else [_TokenCheck(token)]
        self._server = grpc.aio.server(
            interceptors=interceptors, options=server_options(message_bytes_max)
        )
        self._health = health.aio.HealthServicer()
        self.port = 0

    async def check(self) -> None:
        """Look whether the address can be had, before a module takes minutes to make ready: only
        who is ready should listen. Raises ServeError."""
        name, _, port = self._address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(name.strip("[]"), int(port), type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise self._no_address(error.strerror or str(error)) from error

    async def start(self) -> None:
        """Listen. Raises ServeError where the address cannot be had."""
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        handler = grpc.method_handlers_generic_handler(SERVICE, self.servicer.handlers())
        self._server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                self.port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise self._no_address(str(error)) from error
        await self._server.start()
        self.servicer.start()

    async def unhealthy(self) -> None:
        """Say that it ends, to whoever asks for its health."""
        await self._health.enter_graceful_shutdown()

    async def drain(self) -> None:
        """Begin nothing more, and wait for the answers to what runs."""
        await self.unhealthy()
        self.servicer.drain()
        loop = asyncio.get_running_loop()
        ends_at: float | None = None
        while not (self.servicer.empty and self._host.idle):
            if self._host.idle:
                ends_at = ends_at or loop.time() + TAKEN_S
                if loop.time() > ends_at:
                    log.warning("callers do not take their answers; the module server ends")
                    return
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """Stop listening; calls that are open end."""
        await self._health.enter_graceful_shutdown()
        self.servicer.draining = True
        await self._server.stop(STOP_S)
        await self.servicer.close()

    def _no_address(self, why: str) -> ServeError:
        return ServeError(
            f"the module server cannot listen at {self._address!r} ({why}); expected an address of "
            f"this machine and a port that is free: take another with --port",
            address=self._address,
        )


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without the token, but for those that ask for the health."""

    def __init__(self, token: str) -> None:
        ((_, shown),) = token_metadata(token)
        self._shown = shown.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The method, or one like it that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        shown = [value for key, value in metadata if key == TOKEN_KEY]
        given = shown[0] if len(shown) == 1 else ""
        if hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._shown):
            return handler
        return _refusing(handler)


_OPEN = f"/{health.SERVICE_NAME}/"


def _refusing(handler: _Handler) -> _Handler:
    """Of the same kind: a caller of a stream waits for us before it sends anything."""

    async def refuse(request: object, context: Any) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "the call shows no token, or a wrong one; expected the metadata "
            "'authorization: Bearer TOKEN': set ExternalOptions(token=...)",
        )

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
