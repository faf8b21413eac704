"""TLS settings of a client."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import grpc

from ..errors import InvalidArgumentError

TLS_VARIABLE = "NNI_COMPRESSION_TLS"
CA_VARIABLE = "NNI_COMPRESSION_TLS_CA"
CERTIFICATE_VARIABLE = "NNI_COMPRESSION_TLS_CERTIFICATE"
KEY_VARIABLE = "NNI_COMPRESSION_TLS_KEY"

_Path = Union[str, os.PathLike[str]]


@dataclass(frozen=True)
class Tls:
    """An encrypted connection. The files are in PEM and are read when it is opened.

    Attributes:
        ca: authorities for the server's certificate; None: gRPC's default roots.
        certificate: the client certificate with its chain, for mutual TLS.
        key: the certificate's private key.
    """

    ca: Optional[_Path] = None
    certificate: Optional[_Path] = None
    key: Optional[_Path] = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgumentError("tls needs certificate and key, both or neither")

    def credentials(self) -> Any:
        """For gRPC. Raises InvalidArgumentError when a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read("ca", self.ca),
            private_key=_read("key", self.key),
            certificate_chain=_read("certificate", self.certificate),
        )


def make_tls(tls: Union[bool, _Path, Tls, None]) -> Optional[Tls]:
    """TLS settings from the argument, else from the environment; None: no TLS."""
    if tls is None:
        return _from_environment()
    if isinstance(tls, bool):
        return Tls() if tls else None
    if isinstance(tls, Tls):
        return tls
    if isinstance(tls, (str, os.PathLike)) and str(tls):
        return Tls(ca=tls)
    raise InvalidArgumentError(f"tls is {tls!r}; it must be True, False, a path or a Tls")


def _from_environment() -> Optional[Tls]:
    ca, certificate, key = (
        os.environ.get(name) or None for name in (CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE)
    )
    wanted = os.environ.get(TLS_VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise InvalidArgumentError(f"${TLS_VARIABLE} is {wanted!r}; it must be 0 or 1")
    if wanted == "0" or not (wanted or ca or certificate or key):
        return None
    return Tls(ca, certificate, key)


def _read(name: str, path: Optional[_Path]) -> Optional[bytes]:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"tls.{name} cannot be read: {error}") from error
