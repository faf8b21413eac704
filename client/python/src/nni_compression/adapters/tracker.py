"""Tracks which layers of a session need a new answer, for any framework.

An adapter has the model; a `Tracker` has, for each layer that the session compresses, whether an
answer is needed. It identifies weights by tokens: opaque values that compare equal as long as the
weight is unchanged.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Callable, Optional, TypeVar

from ..errors import CompressionError
from ..session import AnswerKey, Session
from ..values.plan import Plan

K = TypeVar("K")

ONCE = "once"
WHEN_STALE = "when_stale"
ON_WEIGHT_CHANGE = "on_weight_change"
_NO_MASKS: Mapping[str, int] = MappingProxyType({})


IsMask = Callable[[int], bool]  # whether a checksum is that of the mask in force


class LayerStatus:
    """The status of the last answer for one layer."""

    __slots__ = ("answered", "is_mask", "lasting", "name", "refresh", "stale", "token")

    def __init__(self, name: str, refresh: str) -> None:
        self.name = name
        self.refresh = refresh
        self.answered = False
        self.stale = False
        self.lasting = False
        self.token: Any = None
        self.is_mask: Optional[IsMask] = None

    def needs(self, token: Callable[[], Any]) -> bool:
        """Whether a new answer is needed; `token` is called only if it matters."""
        if not self.answered or self.stale:
            return True
        if self.refresh != ON_WEIGHT_CHANGE or self.lasting:
            return False
        return bool(self.token != token())

    @property
    def stands(self) -> bool:
        """Whether there is an answer that only a change of the weight can make stale."""
        if not self.answered or self.stale:
            return False
        return self.refresh != ON_WEIGHT_CHANGE or self.lasting or self.token is not None


class Tracker:
    """The calls of one adapter on one session, and which layers need another one.

    Belongs to the process that made it: in a forked child `owned` is false, and the adapter uses
    its present answers. Methods may be called from any thread that holds `lock`.

    Args:
        session: a `Session`.
        epoch, step: of the training; absolute.
        session_step: the session's own step, as far as it is known; it never decreases. By default
            `step`.
        step_applied: whether that step was applied, so that tensors sent with it are ignored.

    The attributes of these names have the present values.
    """

    def __init__(
        self,
        session: Session,
        *,
        epoch: int = 0,
        step: int = 0,
        session_step: Optional[int] = None,
        step_applied: bool = False,
    ) -> None:
        self.session = session
        self.epoch = epoch
        self.step = step
        self.session_step = step if session_step is None else session_step
        self.step_applied = step_applied
        self.lock = threading.RLock()
        self._pid = os.getpid()
        self._open = True
        self.status: dict[str, LayerStatus] = {}
        for name in self.plan.compressed:
            # An unknown value, from a newer server: asking too often is slow, too rarely is wrong.
            refresh = self.plan.layers[name].refresh or ON_WEIGHT_CHANGE
            self.status[name] = LayerStatus(name, refresh)

    @property
    def plan(self) -> Plan:
        """How the session compresses each layer."""
        return self.session.plan

    @property
    def owned(self) -> bool:
        """Whether calls may be made: the session is open and this is not a forked child."""
        return self._open and os.getpid() == self._pid

    def pending(self, tokens: Mapping[str, Callable[[], Any]]) -> list[str]:
        """The layers to ask for now, in the order bound. Empty when `owned` is false."""
        if not self.owned:
            return []
        return [name for name, status in self.status.items() if status.needs(tokens[name])]

    def answered(
        self, name: str, token: Any, *, lasting: bool = False, is_mask: Optional[IsMask] = None
    ) -> None:
        """Records an answer for the weight with this token.

        Args:
            lasting: whether it is one for changed weights, too.
            is_mask: for a layer that is stale as soon as the session has another mask, which
                another rank has got; None: the trainer's own is in force, whatever the session has.
        """
        status = self.status[name]
        status.answered = True
        status.stale = False
        status.lasting = lasting
        status.token = token
        status.is_mask = is_mask

    def forget(self, names: Optional[Iterable[str]] = None) -> None:
        """Treats the weights of these layers, or all, as changed."""
        for name in self.status if names is None else names:
            if name in self.status:
                self.status[name].token = None

    def update_epoch(self, epoch: int) -> frozenset[str]:
        """Sets the epoch and returns the layers to ask for, which callers may ignore.

        No call is made when the plan says that epochs change nothing.
        """
        if self.owned and self.plan.needs_update_epoch:
            stale = self.session.update_epoch(epoch)
            self.mark_stale(stale, stale.masks)
        self.epoch = epoch
        return self.stale

    def take_step(
        self,
        step: int,
        ranges: Optional[Mapping[str, Any]] = None,
        outputs: Optional[Mapping[str, Any]] = None,
        inputs: Optional[Mapping[str, Any]] = None,
        gradients: Optional[Mapping[str, Any]] = None,
    ) -> Mapping[AnswerKey, Any]:
        """Sets the step and returns the answers for ranges: `StepResult.answers`.

        No call is made when the plan says that steps change nothing and there are no ranges.
        """
        answers: Mapping[AnswerKey, Any] = MappingProxyType({})
        if self.owned and (self.plan.needs_step or ranges):
            try:
                result = self.session.step(
                    step, ranges, outputs=outputs, inputs=inputs, gradients=gradients
                )
            except CompressionError as error:
                if error.errors:  # single layers failed: the step is applied, the stale set unknown
                    self.step = step
                    self._on_session_step(step, max(step, self.session_step))
                    self.mark_stale(self.status)
                raise
            self._on_session_step(step, result.step)
            self.mark_stale(result, result.masks)
            answers = result.answers
        self.step = step
        return answers

    def takes(self, step: int) -> bool:
        """Whether the session applies tensors that are sent with this step, or ignores them."""
        return step > self.session_step or (step == self.session_step and not self.step_applied)

    def _on_session_step(self, sent: int, now: int) -> None:
        """Records the session's step after a call."""
        # Another rank may have advanced it.
        self.step_applied = self.step_applied or self.takes(sent) or now > self.session_step
        self.session_step = max(now, self.session_step)

    @property
    def stale(self) -> frozenset[str]:
        """Layers whose answer is missing or stale, apart from changes of weights."""
        return frozenset(n for n, s in self.status.items() if s.stale or not s.answered)

    def mark_stale(self, stale: Iterable[str], masks: Mapping[str, int] = _NO_MASKS) -> None:
        """Replaces the stale set by the service's.

        Args:
            masks: `StaleLayers.masks`: layers of which it has another mask than the one in force
                are stale, too.
        """
        stale = frozenset(stale)
        for name, status in self.status.items():
            mask = masks.get(name, 0)
            is_other = mask != 0 and status.is_mask is not None and not status.is_mask(mask)
            status.stale = name in stale or is_other

    def close(self) -> None:
        """Stops all calls. The present answers stay in force."""
        self._open = False


def split_results(
    call: Callable[[], Mapping[K, Any]],
) -> tuple[Mapping[K, Any], Optional[CompressionError]]:
    """The results of `call`, and the error that it raised for other layers, if any.

    The service has applied the layers it answered even when others failed, so an adapter applies
    their results before it raises. An error that is not about single layers is raised at once.
    """
    try:
        return call(), None
    except CompressionError as error:
        if not error.errors:
            raise
        return error.results, error


class Closer:
    """Ends a session on the server when its owner is garbage-collected, or with the process.

    Args:
        owner: the object that keeps the session alive; held by a weak reference.
        session: a `Session`.
        client: a `Client` to close after it, if any.
    """

    def __init__(self, owner: Any, session: Session, client: Optional[Any]) -> None:
        self._owned = (session, client)
        self._pid = os.getpid()
        _closers.add(self)
        # Garbage collection may interrupt any code, with any lock held, so the call is made in
        # another thread; threading.Thread would take a lock to start.
        finalizer = weakref.finalize(owner, _thread.start_new_thread, self.close, ())
        finalizer.atexit = False
        self._finalizer = finalizer

    def cancel(self) -> None:
        """Leaves the session open; another owner ends it."""
        self._finalizer.detach()
        _closers.discard(self)

    def close(self, timeout: float = 10.0) -> None:
        """Ends the session and ignores errors, as its lease ends it too. Not in a forked child."""
        self.cancel()
        if os.getpid() == self._pid:
            close_quietly(*self._owned, timeout=timeout)


_closers: set[Closer] = set()
_EXIT_TIMEOUT = 1.0  # seconds per session, so that processes exit fast


@atexit.register
def _close_all() -> None:
    for closer in list(_closers):
        closer.close(_EXIT_TIMEOUT)


def close_quietly(session: Session, client: Optional[Any], *, timeout: float = 10.0) -> None:
    """Ends a session and closes a client; ignores errors."""
    with contextlib.suppress(Exception):
        session.close(timeout=timeout)
    if client is not None:
        with contextlib.suppress(Exception):
            client.close()
