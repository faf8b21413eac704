"""Authentication with a bearer token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Union

from ..errors import InvalidArgumentError
from .address import is_loopback

TOKEN_VARIABLE = "NNI_COMPRESSION_TOKEN"
TOKEN_FILE_VARIABLE = "NNI_COMPRESSION_TOKEN_FILE"
ALLOW_VARIABLE = "NNI_COMPRESSION_ALLOW_INSECURE_TOKEN"


class Credentials:
    """A bearer token, or the file that has it, or neither. Thread-safe.

    A file is read when it is first needed and again when it has changed, so that a token can be
    replaced while a trainer runs.
    """

    def __init__(self, token: Optional[str] = None, file: Optional[Path] = None) -> None:
        self._fixed = None if token is None else _check(token, "token")
        self._file = file
        self._read: Optional[tuple[tuple[int, ...], str]] = None  # the file's version, its token

    def __bool__(self) -> bool:
        return self._fixed is not None or self._file is not None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call. Raises InvalidArgumentError when the file has no token."""
        token = self._fixed if self._file is None else self._from_file(self._file)
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def _from_file(self, file: Path) -> str:
        name = f"token_file {str(file)!r}"
        try:
            status = file.stat()
            version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            read = self._read
            if read is None or read[0] != version:
                read = self._read = (version, _check(file.read_text("ascii").strip(), name))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"{name} cannot be read: {error}") from error
        return read[1]


NOBODY = Credentials()


def make_credentials(
    token: Optional[str], token_file: Union[str, os.PathLike[str], None]
) -> Credentials:
    """Credentials from the arguments, else from the environment. An empty string means no token."""
    if token and token_file:
        raise InvalidArgumentError("token and token_file are both given; it must be one of them")
    if token is None and token_file is None:
        token = os.environ.get(TOKEN_VARIABLE)
        token_file = None if token else os.environ.get(TOKEN_FILE_VARIABLE)
    return Credentials(token or None, Path(token_file) if token_file else None)


def check_privacy(
    credentials: Credentials, address: str, encrypted: bool, allow: Optional[bool]
) -> None:
    """Raises InvalidArgumentError when the token would be sent to another host without TLS.

    `allow`, else $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1, permits that.
    """
    if allow is None:
        wanted = os.environ.get(ALLOW_VARIABLE, "")
        if wanted not in ("", "0", "1"):
            raise InvalidArgumentError(f"${ALLOW_VARIABLE} is {wanted!r}; it must be 0 or 1")
        allow = wanted == "1"
    if not credentials or encrypted or allow or is_loopback(address):
        return
    raise InvalidArgumentError(
        f"the token would be sent to {address} without encryption; use TLS (tls, "
        "$NNI_COMPRESSION_TLS_CA or $NNI_COMPRESSION_TLS=1) or, in a network that you trust, set "
        f"allow_insecure_token=True or ${ALLOW_VARIABLE}=1"
    )


def _check(token: str, name: str) -> str:
    """The token if it is visible ASCII, as metadata must be. Messages do not show the secret."""
    if not isinstance(token, str):
        raise InvalidArgumentError(f"{name} is {type(token).__name__}; it must be str")
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InvalidArgumentError(f"{name} must be one or more visible ASCII characters")
    return token
