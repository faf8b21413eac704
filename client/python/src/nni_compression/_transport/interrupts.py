"""Defers Ctrl-C in critical sections."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Defers a Ctrl-C until the block has ended; keep the block short.

    A KeyboardInterrupt between gRPC's start of a call and its registration leaves a channel that
    never closes. Does nothing in other threads, which signals do not interrupt, or where SIGINT has
    no handler in Python.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held = []
    signal.signal(signal.SIGINT, lambda *came: held.append(came))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])
