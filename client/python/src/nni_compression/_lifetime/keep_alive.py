"""Renews the leases of idle sessions."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Optional

from ..errors import CompressionError, NotFoundError

if TYPE_CHECKING:
    from ..session import Session

_LONGEST_WAIT = 3600.0  # seconds
_JOIN_TIMEOUT = 2.0


class KeepAlive:
    """A background thread that renews a session's lease after it was idle for a third of the lease.

    A daemon thread with weak references to sessions: it ends when there are none left, when it is
    stopped, or with the process. A forked child has no such thread; its own sessions start another.
    Thread-safe.
    """

    def __init__(self) -> None:
        self._pid: int
        self._changed: threading.Condition
        self._due: dict[weakref.ref[Session], float]
        self._thread: Optional[threading.Thread]
        self._stopped: bool
        self._reset()
        _running.add(self)

    def watch(self, session: Session) -> None:
        """Keeps the session alive until it is closed or forgotten."""
        if os.getpid() != self._pid:
            self._reset()
        with self._changed:
            self._due[weakref.ref(session)] = session.next_renewal(failed=False)
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(
                    target=self._run, name="nni-compression-keep-alive", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread for good; waits for it briefly."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._stopped = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._due = {}
        self._thread = None
        self._stopped = False

    def _run(self) -> None:
        while True:
            reference = self._wait()
            if reference is None:
                return
            due = _renew(reference)
            with self._changed:
                if due is None:
                    self._due.pop(reference, None)
                else:
                    self._due[reference] = due

    def _wait(self) -> Optional[weakref.ref[Session]]:
        """Sleeps until a session is due; None when the thread should end."""
        with self._changed:
            while True:
                for reference in [each for each in self._due if each() is None]:
                    del self._due[reference]
                if self._stopped or not self._due:
                    self._thread = None
                    return None
                reference, due = min(self._due.items(), key=lambda item: item[1])
                wait = due - time.monotonic()
                if wait <= 0:
                    return reference
                self._changed.wait(min(wait, _LONGEST_WAIT))


def _renew(reference: weakref.ref[Session]) -> Optional[float]:
    """Renews a session that was idle; returns the time of the next check, or None for never."""
    session = reference()
    if session is None or session.closed:
        return None
    due = session.next_renewal(failed=False)
    if due > time.monotonic():
        return due  # it made a call in the meantime
    try:
        session.renew()
    except NotFoundError:
        return None
    except CompressionError:
        return session.next_renewal(failed=True)
    return session.next_renewal(failed=False)


_running: weakref.WeakSet[KeepAlive] = weakref.WeakSet()


def _stop_all() -> None:
    for keep_alive in list(_running):
        keep_alive.stop()


atexit.register(_stop_all)
