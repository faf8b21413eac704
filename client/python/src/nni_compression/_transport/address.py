"""Addresses of servers: invalid ones are refused before a connection is tried."""

from __future__ import annotations

import ipaddress
from typing import Optional

from ..errors import InvalidArgumentError

# Schemes of gRPC that are followed by one HOST:PORT, or by several.
_WITH_PORTS = ("dns:", "ipv4:", "ipv6:")
# Those that are followed by something else.
_OTHERS = ("unix:", "unix-abstract:", "vsock:", "xds:")


def check_address(address: str, where: str = "server") -> None:
    """Raises InvalidArgumentError for an address that gRPC could not connect to.

    gRPC itself would use a default port if there is none, and read "50051x" as 50051.

    Args:
        where: the argument or variable that has the address, for the message.
    """
    if not _is_address(address):
        raise InvalidArgumentError(
            f"{where} is {address!r}; it must be HOST:PORT with a port in [1, 65535], such as "
            "127.0.0.1:50051 or [::1]:50051, or unix:PATH"
        )


def endpoints(address: str) -> list[tuple[str, int]]:
    """The (host, port) pairs of a valid address; none for a Unix socket and the like."""
    if address.startswith(_OTHERS):
        return []
    pairs = (endpoint.rpartition(":") for endpoint in _without_scheme(address).split(","))
    return [(host.strip("[]"), int(port)) for host, _, port in pairs]


def is_loopback(address: str) -> bool:
    """Whether data that is sent to a valid address never leaves this host.

    True for a Unix socket, "localhost" and an address of the loopback interface. Names are not
    resolved.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", *_WITH_PORTS):
        if address.startswith(scheme):
            address = address[len(scheme) :]
            break
    return all(map(_has_loopback_host, address.split(",")))


def loopback_port(address: str) -> Optional[int]:
    """The port of a valid address whose only endpoint is one of the loopback interface."""
    pairs = endpoints(address)
    return pairs[0][1] if len(pairs) == 1 and is_loopback(address) else None


def _is_address(address: str) -> bool:
    if not address.isascii() or not address.isprintable() or " " in address:
        return False
    for scheme in _OTHERS:
        if address.startswith(scheme):
            return len(address) > len(scheme)
    bare = _without_scheme(address)
    if bare == address:
        return _has_host_and_port(address)
    return all(map(_has_host_and_port, bare.split(",")))


def _without_scheme(address: str) -> str:
    for scheme in _WITH_PORTS:
        if address.startswith(scheme):
            rest = address[len(scheme) :]
            # An authority, which may be empty.
            return rest[2:].partition("/")[2] if rest.startswith("//") else rest
    return address


def _has_host_and_port(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or "/" in host or (":" in host and not bracketed):
        return False
    return port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536


def _has_loopback_host(endpoint: str) -> bool:
    host, _, _ = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
