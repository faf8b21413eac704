"""Errors as exceptions, distinguished by class and by code, never by text."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Optional


class StatusCode(str, enum.Enum):
    """Why a call failed. The members are strings, so ``error.code == "NOT_FOUND"`` works."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"

    def __str__(self) -> str:
        return self.value


# google.rpc.Code counts from 1 in the order above.
_BY_NUMBER = dict(enumerate(StatusCode, start=1))


class CompressionError(Exception):
    """Base of everything that this package raises for a failed call.

    Attributes:
        code: why, as a `StatusCode` (which is a string too).
        message: for people; names the field, the value and the allowed range.
        errors: when single layers failed: layer name -> that layer's error, which has errors of its
            own where several parts of a layer may fail. Empty otherwise.
        results: layers of the same call that worked, layer name -> what the call would have
            returned for them. The server has applied these.
        request_id: the id of the call in the server's log; None when no server answered.
    """

    code: StatusCode = StatusCode.UNKNOWN

    def __init__(self, message: str, code: Optional[StatusCode] = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.errors: Mapping[Any, CompressionError] = MappingProxyType({})
        self.results: Mapping[Any, Any] = MappingProxyType({})
        self.request_id: Optional[str] = None

    def __str__(self) -> str:
        return self.message  # KeyError, a base of NotFoundError, would show the repr

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "errors": dict(self.errors),
            "results": dict(self.results),
            "request_id": self.request_id,
        }
        return type(self), (self.message, self.code), state


class CancelledError(CompressionError):
    """The call was cancelled."""

    code = StatusCode.CANCELLED


class InvalidArgumentError(CompressionError, ValueError):
    """The request is wrong; the message names the field, the value and the allowed range."""

    code = StatusCode.INVALID_ARGUMENT


class InvalidTypeError(InvalidArgumentError, TypeError):
    """An InvalidArgumentError of a value that is of another type than its field."""


class DeadlineExceededError(CompressionError, TimeoutError):
    """The call took longer than its timeout."""

    code = StatusCode.DEADLINE_EXCEEDED


class NotFoundError(CompressionError, KeyError):
    """There is no such session (never existed, closed, expired, another tenant's) or layer."""

    code = StatusCode.NOT_FOUND


class AlreadyExistsError(CompressionError):
    """The object to create already exists."""

    code = StatusCode.ALREADY_EXISTS


class PermissionDeniedError(CompressionError, PermissionError):
    """The server knows the caller and refuses."""

    code = StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(CompressionError):
    """The server lacks resources, temporarily (retries failed) or permanently."""

    code = StatusCode.RESOURCE_EXHAUSTED


class FailedPreconditionError(CompressionError, RuntimeError):
    """A valid request in the wrong state: another epoch, a closed client, a forked process, a
    compressor that has no model, or no longer.
    """

    code = StatusCode.FAILED_PRECONDITION


class AbortedError(CompressionError):
    """The server aborted the call."""

    code = StatusCode.ABORTED


class UnimplementedError(CompressionError, NotImplementedError):
    """The server, or the algorithm, cannot do this."""

    code = StatusCode.UNIMPLEMENTED


class InternalError(CompressionError):
    """A bug in the server or the client."""

    code = StatusCode.INTERNAL


class UnavailableError(CompressionError, ConnectionError):
    """No server answers at the address, or it became unavailable and did not return in time."""

    code = StatusCode.UNAVAILABLE


class DataLossError(CompressionError):
    """Received bytes are damaged or differ from those announced."""

    code = StatusCode.DATA_LOSS


class UnauthenticatedError(CompressionError):
    """The server does not know the caller."""

    code = StatusCode.UNAUTHENTICATED


_CLASSES: dict[StatusCode, type[CompressionError]] = {
    error.code: error for error in CompressionError.__subclasses__()
}


def make_error(code: StatusCode, message: str) -> CompressionError:
    """The exception, of the right class, for a status."""
    return _CLASSES.get(code, CompressionError)(message, code)


def code_from_number(number: int) -> StatusCode:
    """The code with this google.rpc.Code; UNKNOWN when there is none."""
    return _BY_NUMBER.get(number, StatusCode.UNKNOWN)
