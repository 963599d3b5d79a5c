"""The addresses that module servers listen at and announce."""

from __future__ import annotations

import socket

from broker_pipeline.errors import ServeError

WILDCARDS = ("0.0.0.0", "::", "[::]", "")


def join(host: str, port: int) -> str:
    """An address as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def advertised(host: str, port: int, advertise: str | None) -> str:
    """The address to announce. Raises ServeError."""
    if advertise is None:
        return join(socket.gethostname() if host in WILDCARDS else host, port)
    name, colon, number = advertise.rpartition(":")
    if not colon or advertise.endswith("]"):
        return join(advertise, port)
    if not name or not number.isdigit():
        raise ServeError(
            f"the address to advertise is {advertise!r}; expected HOST:PORT, or HOST for the port "
            f"that the server listens at"
        )
    return advertise


def next_address(advertise: str, number: int) -> str:
    """The address to announce of a server some ports on."""
    host, _, port = advertised("", 0, advertise).rpartition(":")
    return f"{host}:{int(port) + number}" if int(port) else host
