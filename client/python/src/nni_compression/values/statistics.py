"""Statistics of the calls of a client or a session."""

from __future__ import annotations

import threading


class Stats:
    """Counters over the calls made so far; they only grow. Any thread may read them.

    Attributes:
        calls: calls made; retries are not counted again, nor is the FindWeights call before a call
            with large weights.
        retries: attempts after the first.
        bytes_sent, bytes_received: message bytes, tensors and all, without HTTP/2's framing.
        seconds_waiting: time that callers spent inside calls, retries included.
    """

    __slots__ = ("_lock", "bytes_received", "bytes_sent", "calls", "retries", "seconds_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.retries = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.seconds_waiting = 0.0

    def add(
        self,
        *,
        calls: int = 0,
        retries: int = 0,
        bytes_sent: int = 0,
        bytes_received: int = 0,
        seconds_waiting: float = 0.0,
    ) -> None:
        """Increases the counters."""
        with self._lock:
            self.calls += calls
            self.retries += retries
            self.bytes_sent += bytes_sent
            self.bytes_received += bytes_received
            self.seconds_waiting += seconds_waiting

    def __repr__(self) -> str:
        return (
            f"Stats(calls={self.calls}, retries={self.retries}, bytes_sent={self.bytes_sent}, "
            f"bytes_received={self.bytes_received}, seconds_waiting={self.seconds_waiting:.3f})"
        )
