"""The channel, and how calls are made on it: metadata, deadlines, retries, forks."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Callable, Optional, Protocol, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError

from .._wire.frames import fields
from ..errors import (
    CancelledError,
    CompressionError,
    DataLossError,
    FailedPreconditionError,
    StatusCode,
    UnavailableError,
    make_error,
)
from ..values.statistics import Stats
from .address import is_loopback
from .credentials import NOBODY, Credentials
from .fork_support import fork_support
from .interrupts import interrupts_held
from .tls import Tls

T = TypeVar("T")

_log = logging.getLogger("nni_compression")

SERVICE = "nni.compression.v1.CompressionService"
HEALTH = "grpc.health.v1.Health"

_ROUTE_KEY = "nni-route"
_REQUEST_ID_KEY = "nni-request-id"
_REVISION_KEY = "nni-session-revision"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_DETAILS_KEY = "grpc-status-details-bin"
# gRPC's texts for a deadline that expired in the client; a server's text says what it waited for.
_OWN_DEADLINE = ("", "Deadline Exceeded")
# gRPC's text when the peer's gRPC refuses further load (ENHANCE_YOUR_CALM).
_CALM = "RST_STREAM with error code 11"
# A call's timeout grows with its payload, by a second for every so many bytes.
_SLOWEST_BYTES_PER_SECOND = 16 << 20
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 3.0
_LONGEST_RECONNECT_DELAY = 1.0

# Jitter must not use the generators that a trainer seeds, nor repeat in forked children.
_random = random.SystemRandom()

# The process that first opened a channel; gRPC does not survive a fork of it.
_opened_by: Optional[int] = None
# Channels of a parent process. Destroying one here would touch the parent's connection.
_abandoned: list[Any] = []
_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


class Exchange(Protocol):
    """A streaming call with all its attempts."""

    payload_bytes: int

    def messages(self) -> Iterator[bytes]:
        """Begins an attempt: the messages to send, generated in another thread while sending."""

    def receive(self, message: bytes) -> None:
        """Receives one message of the reply."""

    def finish(self) -> None:
        """Called when the call succeeded; raises when something is missing."""


def make_route() -> str:
    """A new route key: it keeps a session's calls on one server behind a proxy."""
    return secrets.token_hex(16)


class Revision:
    """The latest revision of a session that the server has sent; every call repeats it.

    A server whose data directory has lost later revisions answers NOT_FOUND. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = 0

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call."""
        return ((_REVISION_KEY, str(self._latest)),) if self._latest else ()

    def learn(self, call: Any) -> None:
        """Reads the trailers of a call that has ended."""
        told = _trailer(call, _REVISION_KEY)
        if told is not None and told.isdecimal():
            with self._lock:
                self._latest = max(self._latest, int(told))


class Transport:
    """One server's channel, opened on first use. Thread-safe.

    A forked child does not use the parent's channel: a call raises FailedPreconditionError, unless
    gRPC's own fork support is on; then the child opens a channel of its own.
    """

    def __init__(
        self,
        address: str,
        timeout: Optional[float],
        connect_timeout: float,
        credentials: Credentials = NOBODY,
        tls: Optional[Tls] = None,
    ) -> None:
        self.address = address
        self._tls = tls
        self._credentials = credentials
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._channel: Any = None
        self._closed = False
        self._reached = False  # an answer was received over this channel
        # Kept until the next one is made, so that its memory is not returned to the system and
        # allocated again for every call: the page faults would take longer than filling it.
        self._last_lone: Optional[bytes] = None
        _transports.add(self)

    def unary(
        self,
        method: str,
        request: bytes,
        *,
        route: str,
        revision: Optional[Revision] = None,
        stats: tuple[Stats, ...] = (),
        timeout: Optional[float] = None,
        retry: bool = True,
        counted: bool = True,
    ) -> bytes:
        """Makes a unary call; `method` is "Service/Method"."""

        def attempt(remaining: Optional[float]) -> bytes:
            make = self._open().unary_unary(f"/{method}")
            _count(stats, bytes_sent=len(request))
            reply: bytes
            reply, call = make.with_call(
                request, timeout=remaining, metadata=self._metadata(route, revision)
            )
            _count(stats, bytes_received=len(reply))
            if revision is not None:
                revision.learn(call)
            return reply

        return self._run(method, attempt, stats, self._limit(timeout, 0), retry, counted)

    def stream(
        self,
        method: str,
        exchange: Exchange,
        *,
        route: str,
        revision: Optional[Revision] = None,
        stats: tuple[Stats, ...] = (),
        timeout: Optional[float] = None,
    ) -> None:
        """Makes a bidirectional call; `exchange` receives the replies."""

        def attempt(remaining: Optional[float]) -> None:
            requests = _Requests(exchange.messages(), stats)
            call: Any = None
            try:
                # A single message needs no sending thread; the wire format is the same.
                lone = self._last_lone = requests.take_lone()
                channel = self._open()
                make = channel.stream_stream if lone is None else channel.unary_stream
                metadata = self._metadata(route, revision)
                with interrupts_held():
                    call = make(f"/{method}")(
                        requests if lone is None else lone, timeout=remaining, metadata=metadata
                    )
                for message in call:
                    _count(stats, bytes_received=len(message))
                    exchange.receive(message)
                if revision is not None:
                    revision.learn(call)
            except grpc.RpcError as error:
                if revision is not None:
                    revision.learn(error)  # of the layers that were answered
                requests.reraise()
                raise
            finally:
                requests.close()
                if call is not None:
                    call.cancel()  # has no effect once the call has ended
            exchange.finish()

        limit = self._limit(timeout, exchange.payload_bytes)
        self._run(method, attempt, stats, limit, retry=True)

    def upload(
        self,
        method: str,
        messages: Callable[[], Iterator[bytes]],
        *,
        route: str,
        revision: Optional[Revision] = None,
        stats: tuple[Stats, ...] = (),
        timeout: Optional[float] = None,
        payload_bytes: int = 0,
    ) -> bytes:
        """Makes a client-streaming call."""

        def attempt(remaining: Optional[float]) -> bytes:
            requests = _Requests(messages(), stats)
            try:
                lone = self._last_lone = requests.take_lone()
                channel = self._open()
                make = channel.stream_unary if lone is None else channel.unary_unary
                reply: bytes
                reply, call = make(f"/{method}").with_call(
                    requests if lone is None else lone,
                    timeout=remaining,
                    metadata=self._metadata(route, revision),
                )
                if revision is not None:
                    revision.learn(call)
            except grpc.RpcError:
                requests.reraise()
                raise
            finally:
                requests.close()
            _count(stats, bytes_received=len(reply))
            return reply

        limit = self._limit(timeout, payload_bytes)
        return self._run(method, attempt, stats, limit, retry=True)

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that made the transport."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Closes the channel; calls that are under way end with CancelledError."""
        if self.forked:
            return
        with self._lock:
            channel, self._channel = self._channel, None
            self._closed = True
        if channel is not None:
            channel.close()

    def _metadata(self, route: str, revision: Optional[Revision]) -> tuple[tuple[str, str], ...]:
        # Each attempt has its own id, which is in the server's log and in an error.
        request_id = (_REQUEST_ID_KEY, secrets.token_hex(8))
        known = () if revision is None else revision.metadata()
        return ((_ROUTE_KEY, route), request_id, *known, *self._credentials.metadata())

    def _open(self) -> Any:
        """The channel."""
        global _opened_by
        if self.forked:
            self._after_fork()
        with self._lock:
            if self._closed:
                raise FailedPreconditionError("the client is closed")
            if self._channel is None:
                _check_fork()
                self._channel = self._make_channel()
                _opened_by = os.getpid()
            return self._channel

    def _make_channel(self) -> Any:
        if self._tls is None:
            return grpc.insecure_channel(self.address, options=self._options())
        return grpc.secure_channel(self.address, self._tls.credentials(), options=self._options())

    def _after_fork(self) -> None:
        _check_fork()
        if self._channel is not None:
            _abandoned.append(self._channel)
        self._channel = None
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._reached = False
        self._pid = os.getpid()

    def _options(self) -> list[tuple[str, int]]:
        options = [
            # gRPC reconnects only after it has resolved the name again, by default at most every
            # 30 s.
            ("grpc.dns_min_time_between_resolutions_ms", int(_FIRST_DELAY * 1000)),
            ("grpc.use_local_subchannel_pool", 1),  # a connection that is not shared
            ("grpc.initial_reconnect_backoff_ms", int(_FIRST_DELAY * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(_LONGEST_RECONNECT_DELAY * 1000)),
            ("grpc.min_reconnect_backoff_ms", max(100, int(self.connect_timeout * 1000))),
        ]
        if is_loopback(self.address):
            options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this host
        return options

    def _limit(self, timeout: Optional[float], payload_bytes: int) -> Optional[float]:
        """Seconds that a call may take."""
        timeout = self.timeout if timeout is None else timeout
        return None if timeout is None else timeout + payload_bytes / _SLOWEST_BYTES_PER_SECOND

    def _run(
        self,
        method: str,
        attempt: Callable[[Optional[float]], T],
        stats: tuple[Stats, ...],
        limit: Optional[float],
        retry: bool,
        counted: bool = True,
    ) -> T:
        """Calls `attempt` with the seconds left until it succeeds or should not be retried."""
        start = time.monotonic()
        deadline = None if limit is None else start + limit
        _count(stats, calls=int(counted))
        attempts = 0
        try:
            while True:
                attempts += 1
                now = time.monotonic()
                try:
                    reply = attempt(None if deadline is None else max(deadline - now, 0.001))
                except (grpc.RpcError, ValueError) as raised:
                    error, pushback = self._read_error(raised, method, limit)
                    delay = self._delay(error, pushback, attempts, start, deadline)
                    if not retry or delay is None:
                        raise error from None
                    if attempts == 1:
                        _log.warning("%s; trying again", error)
                    time.sleep(delay)
                    _count(stats, retries=1)
                else:
                    self._reached = True
                    if attempts > 1:
                        waited = time.monotonic() - start
                        _log.warning("%s answers again, after %.1f s", self.address, waited)
                    return reply
        finally:
            _count(stats, seconds_waiting=time.monotonic() - start)

    def _delay(
        self,
        error: CompressionError,
        pushback: Optional[float],
        attempts: int,
        start: float,
        deadline: Optional[float],
    ) -> Optional[float]:
        """Seconds to wait before the next attempt; None when there should be none."""
        if error.code == StatusCode.UNAVAILABLE:
            delay = min(_FIRST_DELAY * 2.0 ** min(attempts - 1, 10), _LONGEST_DELAY)
            if not self._reached:  # the address may be wrong: fail early
                first = start + self.connect_timeout
                deadline = first if deadline is None else min(first, deadline)
        elif error.code == StatusCode.RESOURCE_EXHAUSTED and pushback is not None:
            delay = pushback
        else:
            return None
        delay = delay * float(_random.uniform(0.75, 1.25))
        if deadline is not None and time.monotonic() + delay >= deadline:
            return None
        return delay

    def _read_error(
        self, raised: BaseException, method: str, limit: Optional[float]
    ) -> tuple[CompressionError, Optional[float]]:
        """Converts gRPC's error into a CompressionError, with the server's pushback in seconds."""
        if isinstance(raised, CompressionError):  # may have ValueError as a base
            raise raised
        if not isinstance(raised, grpc.RpcError):
            if self._closed:  # "Cannot invoke RPC on closed channel!"
                raise FailedPreconditionError("the client is closed") from None
            raise raised
        status: Any = raised
        code, details = status.code(), status.details() or ""
        name = method.rpartition("/")[2]
        if code == grpc.StatusCode.UNKNOWN and details == "Stream removed":
            code = grpc.StatusCode.UNAVAILABLE  # gRPC's text for a broken connection
        if code == grpc.StatusCode.CANCELLED and not self._closed:
            code = grpc.StatusCode.UNAVAILABLE  # by a server or proxy that shuts down
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and _CALM in details:
            code = grpc.StatusCode.UNAVAILABLE
        if code != grpc.StatusCode.UNAVAILABLE:
            self._reached = self._reached or code != grpc.StatusCode.DEADLINE_EXCEEDED
        if code == grpc.StatusCode.UNAVAILABLE:
            unavailable = UnavailableError(self._unavailable(details))
            unavailable.request_id = _trailer(status, _REQUEST_ID_KEY)
            return unavailable, None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED and details in _OWN_DEADLINE:
            taken = "its timeout" if limit is None else f"{limit:.3g} s"
            details = f"{name} at {self.address} took longer than {taken}"
        if code == grpc.StatusCode.UNIMPLEMENTED and not details:
            details = f"the server at {self.address} has no {name}; it is older than this client"
        if code == grpc.StatusCode.CANCELLED:
            return CancelledError(f"{name} was cancelled: the client was closed"), None
        error = make_error(StatusCode[code.name], details or f"{name} failed with {code.name}")
        error.request_id = _trailer(status, _REQUEST_ID_KEY)
        return error, _pushback(status)

    def _unavailable(self, details: str) -> str:
        if self._reached:
            return f"the compression server at {self.address} went away ({details})"
        if self._tls is not None:
            return (
                f"no encrypted connection to {self.address} ({details}); the server may not be "
                "running, not use TLS, have a certificate for another name or of another authority "
                "than `tls` names, or refuse this client's certificate"
            )
        if "Socket closed" in details or "reset" in details or "GOAWAY" in details:
            return (
                f"{self.address} closes connections ({details}); if the server uses TLS, use "
                "Client(tls=...), or set $NNI_COMPRESSION_TLS or $NNI_COMPRESSION_TLS_CA; or the "
                "server has reached its limit of connections (--max_connections)"
            )
        return (
            f"no compression server answers at {self.address} ({details}); start one with "
            f"`compression_server --listen={self.address}`, or name another in "
            "Client(server) or $NNI_COMPRESSION_SERVER"
        )


class _Requests:
    """The requests of an attempt, an iterator for gRPC's sending thread.

    That thread may request one more message after the call has failed; `close` ends the iteration
    and releases the tensors.
    """

    def __init__(self, messages: Iterator[bytes], stats: tuple[Stats, ...]) -> None:
        self._messages: Optional[Iterator[bytes]] = messages
        self._stats = stats
        self._taken: list[bytes] = []
        self._error: Optional[BaseException] = None

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> bytes:
        messages = self._messages
        if messages is None:
            raise StopIteration
        try:
            message = self._taken.pop(0) if self._taken else next(messages)
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise
        _count(self._stats, bytes_sent=len(message))
        return message

    def take_lone(self) -> Optional[bytes]:
        """The message, if there is just one. Called before the iteration has begun."""
        assert self._messages is not None
        self._taken = list(itertools.islice(self._messages, 2))
        return next(self) if len(self._taken) == 1 else None

    def reraise(self) -> None:
        """Raises the error that making a message raised; gRPC only reports that there was one."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the iteration; any thread may call it, also while a message is being made."""
        self._messages = None


def _keep_inherited_channels() -> None:
    """In a forked child: leaks the parent's channels, which only its threads could shut down."""
    if fork_support():
        return
    for transport in list(_transports):
        if transport._channel is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(transport._channel))


os.register_at_fork(after_in_child=_keep_inherited_channels)


def _check_fork() -> None:
    """Raises in a forked child of a process that has used gRPC: a new channel might hang."""
    if _opened_by is None or _opened_by == os.getpid() or fork_support():
        return
    raise FailedPreconditionError(
        "this process was forked from one that was connected to a compression server, and gRPC "
        "does not work in a forked child; call the server from the parent, start the process by "
        "'spawn' or 'forkserver', or set GRPC_ENABLE_FORK_SUPPORT=1 for the parent"
    )


def _trailer(status: Any, key: str) -> Optional[str]:
    return next(
        (str(value) for name, value in status.trailing_metadata() or () if name == key), None
    )


def _pushback(status: Any) -> Optional[float]:
    pushback = _trailer(status, _PUSHBACK_KEY)
    if pushback is None:
        return _retry_delay(status)
    try:
        milliseconds = int(pushback)
    except ValueError:
        return None
    return max(milliseconds, 1) / 1000 if milliseconds >= 0 else None


def _retry_delay(status: Any) -> Optional[float]:
    """The delay in seconds of a google.rpc.RetryInfo in the status's details.

    Parsed by hand: the generated code of google.rpc.Status would be another dependency.
    """
    details = next((v for k, v in status.trailing_metadata() or () if k == _DETAILS_KEY), b"")
    try:
        for number, content in fields(details):
            detail = any_pb2.Any.FromString(bytes(content)) if number == 3 else any_pb2.Any()
            if not detail.type_url.endswith("/google.rpc.RetryInfo"):
                continue
            for _, delay in fields(detail.value):
                milliseconds: int = duration_pb2.Duration.FromString(bytes(delay)).ToMilliseconds()
                return max(milliseconds, 1) / 1000
    except (DataLossError, DecodeError):
        return None
    return None


def _count(stats: tuple[Stats, ...], **counts: Any) -> None:
    for each in stats:
        each.add(**counts)
