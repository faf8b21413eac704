"""The calls of one session: their route, their statistics, and the lease that they renew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Callable, Optional, TypeVar

from .._transport.channel import SERVICE, Exchange, Revision, Transport
from .._wire import compression_pb2 as pb
from ..errors import FailedPreconditionError
from ..values.statistics import Stats
from .exchange import decode

_M = TypeVar("_M")


class Caller:
    """Makes the calls of a session. Thread-safe.

    `timeout` is in seconds, retries included; None means the client's.

    Attributes:
        route: the routing key.
        lease: seconds without a call after which the server ends the session.
        closed: whether the session was closed here; no further call is made then.
    """

    def __init__(
        self,
        transport: Transport,
        stats: tuple[Stats, ...],
        *,
        session_id: str,
        route: str,
        lease: float,
    ) -> None:
        self.transport = transport
        self.route = route
        self.lease = lease
        self.closed = False
        self._id = session_id
        self._stats = stats
        self._revision = Revision()
        self._last_call = time.monotonic()

    def unary(
        self,
        method: str,
        request: Any,
        reply_type: Callable[[], _M],
        timeout: Optional[float],
        *,
        open_only: bool = True,
        counted: bool = True,
    ) -> _M:
        """Makes a unary call.

        Args:
            open_only: whether the call needs an open session, and renews its lease.
            counted: whether it counts in the statistics.
        """

        def call() -> _M:
            raw = self.transport.unary(
                f"{SERVICE}/{method}",
                request.SerializeToString(),
                route=self.route,
                revision=self._revision,
                stats=self._stats,
                timeout=timeout,
                counted=counted,
            )
            reply: _M = decode(reply_type, memoryview(raw))
            return reply

        return self._renewing(call) if open_only else call()

    def stream(self, method: str, exchange: Exchange, timeout: Optional[float]) -> None:
        """Makes a bidirectional call; `exchange` receives the replies."""

        def call() -> None:
            self.transport.stream(
                f"{SERVICE}/{method}",
                exchange,
                route=self.route,
                revision=self._revision,
                stats=self._stats,
                timeout=timeout,
            )

        self._renewing(call)

    def upload(
        self,
        method: str,
        messages: Callable[[], Iterator[bytes]],
        reply_type: Callable[[], _M],
        timeout: Optional[float],
        *,
        payload_bytes: int,
    ) -> _M:
        """Makes a client-streaming call."""

        def call() -> _M:
            raw = self.transport.upload(
                f"{SERVICE}/{method}",
                messages,
                route=self.route,
                revision=self._revision,
                stats=self._stats,
                timeout=timeout,
                payload_bytes=payload_bytes,
            )
            reply: _M = decode(reply_type, memoryview(raw))
            return reply

        return self._renewing(call)

    def renew(self) -> None:
        """Renews the lease, once and without retries: for the background thread."""
        self.transport.unary(
            f"{SERVICE}/KeepAlive",
            pb.KeepAliveRequest(session_id=self._id).SerializeToString(),
            route=self.route,
            timeout=max(1.0, self.lease / 3),
            retry=False,
        )
        self._last_call = time.monotonic()

    def next_renewal(self, *, failed: bool) -> float:
        """When the lease should be renewed, on the monotonic clock; sooner after a failure."""
        if failed:
            return time.monotonic() + self.lease / 10
        return self._last_call + self.lease / 3

    def _renewing(self, call: Callable[[], _M]) -> _M:
        if self.closed:
            raise FailedPreconditionError(f"session {self._id} is closed")
        result = call()
        self._last_call = time.monotonic()
        return result
