"""Sessions in a process that NNI runs as a trial: labels and, optionally, an end of the process
when its shell is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ..session import Session

# Label -> the environment variable that NNI sets for a trial.
_VARIABLES = {
    "nni_experiment": "NNI_EXP_ID",
    "nni_trial": "NNI_TRIAL_JOB_ID",
    "nni_sequence": "NNI_TRIAL_SEQ_ID",
}
_POLL_INTERVAL = 0.5  # seconds
_CLOSE_TIMEOUT = 5.0
_GRACE = 10.0  # seconds from SIGTERM to the end


def trial_labels(environment: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """The labels of an NNI trial's sessions: `nni_experiment`, `nni_trial`, `nni_sequence`.

    Sessions that are bound inside a trial get them automatically.

    Args:
        environment: where to look; by default this process's.

    Returns none outside a trial.

    >>> trial_labels({"NNI_EXP_ID": "x7", "NNI_TRIAL_JOB_ID": "Kd3", "NNI_TRIAL_SEQ_ID": "0"})
    {'nni_experiment': 'x7', 'nni_trial': 'Kd3', 'nni_sequence': '0'}
    """
    values = os.environ if environment is None else environment
    if not values.get("NNI_TRIAL_JOB_ID"):
        return {}
    return {label: values[name] for label, name in _VARIABLES.items() if values.get(name)}


class ParentWatch:
    """Ends this process, and its sessions, when its parent process has ended.

    NNI stops a trial with a SIGINT to the trial's shell and, five seconds later, a SIGKILL to that
    shell alone: the trainer would continue as an orphan. A thread checks the parent twice a second.
    When the parent has changed, it closes the sessions and raises SIGTERM, so that handlers run;
    ten seconds later it ends the process unconditionally.

    The thread runs only after `start`. References to sessions are weak. A forked child has its own
    parent and no watch until it starts one. Thread-safe.
    """

    _lock: threading.Lock
    _pid: int
    _started: bool
    _sessions: weakref.WeakSet[Session]

    def __init__(self) -> None:
        self._reset()

    def add(self, session: Session) -> None:
        """Closes this session too when the parent has ended."""
        self._notice_fork()
        with self._lock:
            self._sessions.add(session)

    def start(self) -> None:
        """Begins to watch the present parent; further calls do nothing."""
        self._notice_fork()
        with self._lock:
            if self._started:
                return
            self._started = True
            threading.Thread(
                target=self._run,
                args=(os.getppid(),),
                name="nni-compression-parent-watch",
                daemon=True,
            ).start()

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():  # another thread of the parent may have held the lock
            self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._started = False
        self._sessions = weakref.WeakSet()

    def _run(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_INTERVAL)
        with contextlib.suppress(OSError, ValueError):  # standard error may be gone with the parent
            print(
                f"nni_compression: process {parent}, which started this trial, is gone; "
                "closing its sessions and ending",
                file=sys.stderr,
                flush=True,
            )
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            with contextlib.suppress(Exception):
                session.close(timeout=_CLOSE_TIMEOUT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)


watch = ParentWatch()


def end_with_parent() -> None:
    """Makes this process end when the shell that NNI started it in has ended.

    Call it at the beginning of a trial's program. The sessions of all clients are closed first, and
    handlers of SIGTERM run; ten seconds later the process is ended unconditionally. Outside a trial
    it does nothing, so the program can also be started by hand.
    """
    if trial_labels():
        watch.start()
