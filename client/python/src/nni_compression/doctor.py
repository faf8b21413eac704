"""What is wrong between this process and a server, and the remedy: ``nni-compression doctor``.

The checks use a `Client` with the settings that a trainer would have: an address, and for the rest
the environment. Where it does not reach the server, the steps of a connection are tried one by one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Callable, Optional, TypeVar

import numpy as np

from ._lifetime.local_server import LOCAL, is_local_server
from ._transport.address import check_address, endpoints, is_loopback
from ._transport.credentials import (
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    Credentials,
    check_privacy,
    make_credentials,
)
from ._transport.shared_memory import SOCKET_VARIABLE, SharedMemory, socket_paths
from ._transport.tls import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    TLS_VARIABLE,
    Tls,
    make_tls,
)
from ._version import __version__
from .client import SERVER_VARIABLE, Client, server_address
from .errors import (
    CompressionError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from .values.plan import Layer

_T = TypeVar("_T")

OK, WARNING, ERROR = "ok", "warning", "error"

_PACKAGES = ("grpcio", "protobuf", "numpy", "torch", "tensorflow")
_TIMEOUT = 10.0  # seconds of a call, a connection, a handshake
_WEIGHT = (512, 512)  # large enough for shared memory
# OpenSSL's reasons to refuse a certificate, X509_V_ERR_...
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        item: "packages", "address", "TLS", "token", "version", "shared memory" or "round trip".
        state: "ok", "warning" or "error".
        message: the facts.
        remedy: what to do; empty if nothing needs to be done.
    """

    item: str
    state: str
    message: str
    remedy: str = ""


def diagnose(server: Optional[str] = None) -> Iterator[Finding]:
    """Checks the way to a server, and a call; ends at an error that further checks depend on.

    Args:
        server: as for `Client`.

    >>> from nni_compression.doctor import diagnose
    >>> {finding.item: finding.state for finding in diagnose(client.server)}["round trip"]
    'ok'
    """
    yield Finding("packages", OK, _package_versions())
    try:
        tls, credentials = _settings(server_address(server))
        with _configured("address", lambda: _client(server)) as client:
            if is_local_server(client.server):
                tls = None
            yield from _check_connection(client, tls, bool(credentials))
            yield _check_version(client)
            yield _check_shared_memory(client, credentials)
            yield _check_round_trip(client)
    except _StoppedError as stopped:
        yield stopped.finding


class _StoppedError(Exception):
    """An error that ends the diagnosis."""

    def __init__(self, item: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.finding = Finding(item, ERROR, message, remedy)


def _configured(item: str, make: Callable[[], _T]) -> _T:
    """Makes what follows from settings; their errors name the setting and what is allowed."""
    try:
        return make()
    except (InvalidArgumentError, FailedPreconditionError, UnavailableError) as error:
        raise _StoppedError(item, error.message) from error


def _settings(address: str) -> tuple[Optional[Tls], Credentials]:
    """The environment's; `Client` would raise the same errors, but not by item."""
    tls = _configured("TLS", lambda: make_tls(None))
    if tls is not None:
        _configured("TLS", tls.credentials)
    credentials = _configured("token", lambda: make_credentials(None, None))
    _configured("token", credentials.metadata)
    if address != LOCAL:
        _configured("address", lambda: check_address(address))
        encrypted = tls is not None
        _configured("token", lambda: check_privacy(credentials, address, encrypted, None))
    return tls, credentials


def _client(server: Optional[str]) -> Client:
    return Client(server, timeout=_TIMEOUT, connect_timeout=_TIMEOUT, keep_alive=False)


def _package_versions() -> str:
    found = [f"nni-compression {__version__}"]
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


# The connection.


def _check_connection(client: Client, tls: Optional[Tls], has_token: bool) -> Iterator[Finding]:
    address = client.server
    refusal: Optional[CompressionError] = None
    try:
        health = client.health(timeout=_TIMEOUT)
    except (UnauthenticatedError, PermissionDeniedError) as error:
        refusal = error
    except (UnavailableError, DeadlineExceededError) as error:
        yield from _check_steps(address, tls, error.message)
        return
    except CompressionError as error:
        raise _StoppedError(
            "address",
            f"what answers at {address} is no compression server: {error.message}",
            f"check the address, and what listens there; it is from {_source()}",
        ) from error
    else:
        if health != "SERVING":
            yield Finding(
                "address", WARNING, f"{address} is {health}", "wait for the server that replaces it"
            )
    if refusal is not None or health == "SERVING":
        yield Finding("address", OK, f"{address} answers")
    yield _encryption(address, tls)
    if refusal is not None:
        raise _StoppedError(
            "token",
            refusal.message,
            f"ask the server's operator for a {'valid ' if has_token else ''}token, made by "
            f"`compressionctl tenant add`; put it into a file, and its path into "
            f"${TOKEN_FILE_VARIABLE}, or the token into ${TOKEN_VARIABLE}",
        )
    yield Finding("token", OK, "sent, and not refused" if has_token else "the server needs none")


def _source() -> str:
    return f"--server, else ${SERVER_VARIABLE}, else the default"


def _encryption(address: str, tls: Optional[Tls]) -> Finding:
    if tls is not None:
        return Finding("TLS", OK, "the connection is encrypted, and the certificate is valid")
    if is_loopback(address):
        return Finding("TLS", OK, "not used; the connection does not leave this host")
    return Finding(
        "TLS",
        WARNING,
        f"the connection to {address} is not encrypted",
        "use TLS unless nobody else can read the network",
    )


def _check_steps(address: str, tls: Optional[Tls], message: str) -> Iterator[Finding]:
    """Finds the step at which connecting fails; always raises _StoppedError."""
    if not address.startswith("unix:") and not endpoints(address):
        raise _StoppedError("address", message)
    problem = None
    for host, connect in _peers(address):
        try:
            with connect() as connected:
                problem = _handshake_problem(connected, host, tls, message)
        except socket.gaierror as error:
            raise _StoppedError(
                "address",
                f"the name {host!r} of {address} does not resolve: {error.strerror}",
                f"check the spelling and the resolver; the address is from {_source()}",
            ) from error
        except OSError as error:
            raise _StoppedError(
                "address", f"cannot connect to {address}: {error}", _remedy(error, address)
            ) from error
    yield Finding("address", OK, f"{address} accepts connections")
    assert problem is not None
    raise problem


def _peers(address: str) -> Iterable[tuple[str, Callable[[], socket.socket]]]:
    """The host's name, and how to connect, for every endpoint of an address."""
    if address.startswith("unix:"):
        yield "localhost", lambda: _unix_connection(address[len("unix:") :])
    for pair in endpoints(address):
        yield pair[0], lambda pair=pair: socket.create_connection(pair, _TIMEOUT)  # type: ignore[misc]


def _unix_connection(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _remedy(error: OSError, address: str) -> str:
    start = (
        f"start a server, `compression_server --listen={address}`, or correct the address, which "
        f"is from {_source()}; server=local starts one"
    )
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens there: {start}"
    if isinstance(error, FileNotFoundError):
        return f"there is no such socket: {start}"
    if isinstance(error, PermissionError):
        return "let this user open the socket and its folder"
    return "check the network between the hosts, its firewalls, and the server's --listen"


def _handshake_problem(
    connection: socket.socket, host: str, tls: Optional[Tls], message: str
) -> _StoppedError:
    """Why a client that can connect to the server gets no answer."""
    try:
        context = _context(tls)
    except OSError as error:  # of TLS, too
        return _StoppedError(
            "TLS",
            f"a file of this client's settings cannot be used: {getattr(error, 'reason', error)}",
            f"${CA_VARIABLE}, ${CERTIFICATE_VARIABLE} and ${KEY_VARIABLE} must name PEM files",
        )
    try:
        encrypted = context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _certificate_problem(error, host)
    except TimeoutError:
        return _StoppedError("address", f"{message}, nor to TLS", "check what listens there")
    except OSError as error:  # of TLS, too
        reason = str(getattr(error, "reason", None) or error)
        if "ALERT" in reason:  # the peer's answer, in TLS
            return _refused(reason)
        if tls is not None:
            return _plaintext(reason)
        return _StoppedError("address", message, "check what listens there")
    with encrypted:
        if tls is None:
            return _StoppedError(
                "TLS",
                "the server uses TLS, and this client does not",
                f"set ${CA_VARIABLE} to the PEM file of the authority that has signed the server's "
                f"certificate, or ${TLS_VARIABLE}=1 if it is a public one",
            )
        try:  # a client's certificate is refused after the handshake
            if encrypted.recv(1) == b"":
                return _refused("it ends the connection after the handshake")
        except OSError as error:
            return _refused(str(error))
    return _StoppedError(
        "TLS",
        f"{message}; a TLS handshake with the authorities of this system succeeds",
        f"set ${CA_VARIABLE} to the PEM file of the authority: gRPC has a list of its own",
    )


def _refused(reason: str) -> _StoppedError:
    return _StoppedError(
        "TLS",
        f"the server refuses this client's connection: {reason}",
        f"if it requires client certificates (mTLS), set ${CERTIFICATE_VARIABLE} and "
        f"${KEY_VARIABLE} to one that its --tls_client_ca has signed",
    )


def _context(tls: Optional[Tls]) -> ssl.SSLContext:
    """As `Tls.credentials` is for gRPC; without `tls` it accepts every certificate."""
    context = ssl.create_default_context(cafile=tls.ca if tls is not None else None)
    context.set_alpn_protocols(["h2"])
    if tls is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def _certificate_problem(error: ssl.SSLCertVerificationError, host: str) -> _StoppedError:
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        remedy = "renew the server's certificate (--tls_certificate), or set this host's clock"
    elif error.verify_code in (_WRONG_HOST, _WRONG_IP):
        remedy = f"use a name that the certificate has, or issue one for {host}"
    else:
        remedy = f"set ${CA_VARIABLE} to the PEM file of the authority that has signed it"
    return _StoppedError(
        "TLS", f"the server's certificate is not accepted: {error.verify_message}", remedy
    )


def _plaintext(reason: str) -> _StoppedError:
    return _StoppedError(
        "TLS",
        f"this client uses TLS, and the server does not ({reason})",
        f"unset ${TLS_VARIABLE}, ${CA_VARIABLE}, ${CERTIFICATE_VARIABLE} and ${KEY_VARIABLE}, or "
        "start the server with --tls_certificate and --tls_key",
    )


# The service.


def _check_version(client: Client) -> Finding:
    server = _call(client.server_version)
    mine, other = _release(__version__), _release(server)
    message = f"the server has version {server}, this client {__version__}"
    if mine[0] == other[0] and abs(mine[1] - other[1]) <= 1:
        return Finding("version", OK, message)
    return Finding("version", WARNING, message, "use neighbouring versions: others are not tested")


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = [*version.split("."), "0", "0"]
    return (int(major), int(minor)) if (major + minor).isdecimal() else (-1, -1)


def _check_shared_memory(client: Client, credentials: Credentials) -> Finding:
    item = "shared memory"
    paths = socket_paths(None, client.server)
    if not paths and os.environ.get(SOCKET_VARIABLE) == "":
        return Finding(item, OK, f"not used; ${SOCKET_VARIABLE} is empty")
    if not paths:
        return Finding(item, OK, "not used; it is for servers at a single port of this host")
    with contextlib.closing(SharedMemory(paths, credentials)) as memory:
        problem = memory.problem()
        path = memory.path
    if problem is not None:
        return Finding(
            item,
            WARNING,
            f"{problem}; weights are sent over the network",
            "a server offers the socket to its own user, unless it runs with --shm_socket=; for "
            f"user {os.geteuid()}, or a server in another container, start it with "
            f"--shm_socket=PATH and --shm_uids, and set ${SOCKET_VARIABLE} to the same PATH",
        )
    before = client.stats.bytes_sent
    _compress(client)
    if client.stats.bytes_sent - before < np.prod(_WEIGHT):
        return Finding(item, OK, f"weights are passed through {path}")
    return Finding(
        item,
        WARNING,
        f"{path} is not the socket of {client.server}; weights are sent over the network",
        f"set ${SOCKET_VARIABLE} to the --shm_socket of that server, or unset it",
    )


def _check_round_trip(client: Client) -> Finding:
    sparsity = _compress(client)
    if sparsity != 0.5:
        raise _StoppedError("round trip", f"a mask of sparsity 0.5 has {sparsity}")
    return Finding("round trip", OK, "a model was bound, masked and closed")


def _compress(client: Client) -> float:
    # A new weight each time: one that the server has cached would not be sent again.
    weight = np.random.default_rng().normal(size=_WEIGHT).astype(np.float32)
    layer = Layer(name="fc", op_type="Linear", shape=_WEIGHT)

    def call() -> float:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer]) as session:
            return session.calc_mask({"fc": weight})["fc"].sparsity

    return _call(call)


def _call(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except CompressionError as error:
        raise _StoppedError(
            "round trip",
            f"{type(error).__name__}: {error.message}",
            "docs/operations.md has the error codes; the server's log has more"
            + (f", for request {error.request_id}" if error.request_id else ""),
        ) from error
