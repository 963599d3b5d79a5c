"""The errors that packages end with that no server has answered."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.errors import (
    ModuleMismatchError,
    ModuleServerError,
    ModuleTimeoutError,
    ModuleUnreachableError,
)
from broker_pipeline.external.calls import Call
from broker_pipeline.external.endpoints import Endpoint
from broker_pipeline.modules import ExternalModule

TROUBLES_MAX = 3
"""So many servers are named in an error."""


def too_large(module: ExternalModule, endpoint: Endpoint, size: int) -> ModuleServerError:
    """A package that a server could not read: it was not sent."""
    return ModuleServerError(
        f"a package of module {module.name!r} has {size} bytes with its state and its journey; "
        f"module server {endpoint.server!r} takes {endpoint.bytes_max}; it was not sent: have the "
        f"server fetch large payloads by reference (`broker-pipeline serve --announce` does), let "
        f"it take more, or send less in a package",
        server=endpoint.server,
        size=size,
        bytes_max=endpoint.bytes_max,
    )


def not_moved(module: ExternalModule, error: Exception) -> ModuleUnreachableError:
    """The broker does not let a payload be brought into the form that a server takes."""
    return ModuleUnreachableError(
        f"a large payload for module {module.name!r} could not be loaded or stored for its server: "
        f"{error}; no server was given the package",
        module=module.name,
    )


def not_taken(module: ExternalModule, endpoint: Endpoint, call: Call) -> ModuleMismatchError:
    """A package of a content type that a server does not have: it was not sent."""
    return ModuleMismatchError(
        f"a package of module {module.name!r} is {call.content_type!r}; module server "
        f"{endpoint.server!r} takes {sorted(endpoint.takes)}; put a module in front of it that "
        f"converts",
        server=endpoint.server,
        content_type=call.content_type,
    )


def server_failed(module: ExternalModule, endpoint: Endpoint, why: str) -> ModuleServerError:
    """A server that may have begun the package."""
    may = "" if module.options.idempotent else (
        "; it may have begun the package, which is not run again: where it may be, declare "
        "ExternalOptions(idempotent=True)"
    )  # fmt: skip
    return ModuleServerError(
        f"module server {endpoint.server!r} failed a package of module {module.name!r}: {why}{may}",
        server=endpoint.server,
    )


def timed_out(module: ExternalModule, endpoints: Sequence[Endpoint]) -> ModuleTimeoutError:
    """The deadline has passed while servers had the package."""
    servers = ", ".join(sorted(each.server for each in endpoints))
    return ModuleTimeoutError(
        f"module {module.name!r} did not finish in time on module server {servers!r}; expected it "
        f"within timeout_s={module.options.timeout_s!r}: allow more, or start more servers",
        module=module.name,
        server=servers,
    )


def end_of(module: ExternalModule, call: Call, known: Sequence[Endpoint], what: str) -> Exception:
    """Why a call ends that no server has ended."""
    if call.sent:
        return server_failed(module, next(iter(call.sent)), what)
    if call.error is not None:
        return call.error
    name, target = module.name, module.target
    troubles = [f"{each.server}: {each.trouble}" for each in known[:TROUBLES_MAX]]
    if known and all(each.refusal for each in known):
        return ModuleMismatchError(
            f"no module server of {name!r} at {target!r} can be used ({'; '.join(troubles)})",
            module=name,
            target=target,
        )
    seen = "; ".join(troubles) or "none is known there"
    return ModuleUnreachableError(
        f"no module server of {name!r} at {target!r} could be given the package: {what} ({seen}); "
        f"start one, or correct the target",
        module=name,
        target=target,
    )
