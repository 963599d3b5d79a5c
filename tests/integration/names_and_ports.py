"""Names that are looked up, and ports that nobody has."""

from __future__ import annotations

import socket

from broker_pipeline.external import finding


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def fake_lookup(hosts: dict[str, list[str]]) -> finding.LookUp:
    """A look-up that knows these hosts and their addresses."""

    async def lookup(name: str, port: int) -> list[str]:
        found = hosts[name]
        if not found:
            raise OSError("no such name")
        return found

    return lookup
