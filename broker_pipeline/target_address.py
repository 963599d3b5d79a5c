"""Where an `ExternalModule` finds its servers, from the text of its target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Literal

Kind = Literal["host", "dns", "registry"]

PORT_MAX = 65_535
NAME_BYTES_MAX = 128
"""The longest name in the registry, as escape_instance takes it."""
HOST_LENGTH_MAX = 253
"""A DNS name's, by RFC 1035."""
_EXPECTED = (
    "expected 'host:port' (a server or a proxy), 'dns:///name:port' (all addresses of the name) or "
    "'registry:///name' (servers that announce themselves)"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]:(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """A target, taken apart.

    Attributes:
        kind: "host": one address; "dns": all addresses of a name; "registry": whoever announces.
        name: the host, without brackets; of a registry target, the module's name there.
        port: 0 with a registry target.
    """

    kind: Kind
    name: str
    port: int = 0


def parse_target(text: str) -> TargetAddress:
    """Take a target apart. Raises ValueError, which says what is wrong and what is expected."""
    if not isinstance(text, str):
        raise ValueError(f"the target {text!r} is no text; {_EXPECTED}")
    scheme = _SCHEME.fullmatch(text)
    if scheme is None:
        return _host("host", text, text)
    kind, rest = scheme[1].lower(), scheme[2]
    if kind not in ("dns", "registry"):
        raise _fault(text, f"has the scheme {scheme[1]!r}")
    if not rest.startswith("///"):
        raise _fault(text, "needs three slashes: it can name no server to ask")
    if kind == "dns":
        return _host("dns", rest[3:], text)
    name = rest[3:]
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise _fault(text, "is no text that can be written as UTF-8") from None
    if not 0 < size <= NAME_BYTES_MAX:
        raise _fault(text, f"has a name of {size} bytes, and may have 1 to {NAME_BYTES_MAX}")
    return TargetAddress("registry", name)


def _host(kind: Kind, rest: str, text: str) -> TargetAddress:
    if (brackets := _BRACKETS.fullmatch(rest)) is not None:
        host, port = brackets[1], brackets[2]
        try:
            IPv6Address(host)
        except AddressValueError as error:
            raise _fault(text, f"has no IPv6 address in its brackets ({error})") from None
    else:
        host, colon, port = rest.rpartition(":")
        if not colon:
            raise _fault(text, "has no port")
        if ":" in host:
            raise _fault(text, "has several colons: put an IPv6 address into brackets")
        if len(host) > HOST_LENGTH_MAX or _HOST.fullmatch(host) is None:
            raise _fault(text, f"has no usable host name: {host!r}")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= PORT_MAX):
        raise _fault(text, f"has the port {port!r}, which is none from 1 to {PORT_MAX}")
    return TargetAddress(kind, host, int(port))


def _fault(text: str, what: str) -> ValueError:
    return ValueError(f"the target {text!r} {what}; {_EXPECTED}")
