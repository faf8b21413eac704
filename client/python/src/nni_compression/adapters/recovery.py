"""What is done about sessions that were lost, and bindings that failed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Callable, TypeVar

from ..errors import CompressionError, FailedPreconditionError, NotFoundError, StatusCode
from .lifecycle import Lifecycle
from .warn import warn

_log = logging.getLogger("nni_compression")

_R = TypeVar("_R")


class Recovery:
    """Binds a model again. What fails then is tried again by every later call, until it succeeds.

    Args:
        lifecycle: of the model.
        state: gives what a checkpoint would have now.
    """

    def __init__(self, lifecycle: Lifecycle, state: Callable[[], Mapping[str, Any]]) -> None:
        self._lifecycle = lifecycle
        self._state = state

    def settle(self) -> None:
        """Makes up for a rebind that failed; raises as it did when it fails again."""
        binding = self._lifecycle.bound
        if binding.overdue is not None and binding.tracker.owned:
            binding.overdue()

    def rebind(self) -> None:
        """Binds the model as it is now, from what is here."""
        self._until_it_succeeds(lambda: self._lifecycle.bind(self._state(), drop=True))

    def resume(self) -> None:
        """Binds the model from the state that was loaded."""
        self._until_it_succeeds(self._bind_resumed)

    def retried(self, call: Callable[[], _R]) -> _R:
        """Makes a call; makes it once more in a new session where the server has lost this one."""
        try:
            return call()
        except NotFoundError as error:
            self.replace_lost_session(error)
            return call()

    def replace_lost_session(self, error: NotFoundError) -> None:
        """Binds another session in place of one that the server has lost; else raises `error`."""
        settings = self._lifecycle.settings
        lost = self._lifecycle.bound.tracker.session
        replace = not error.errors and settings.on_lost_session == "rebind"
        replace = replace and lost.id != self._lifecycle.join
        with contextlib.suppress(NotFoundError):
            # What somebody has closed was meant to end.
            replace = replace and settings.client.session_info(lost.id).state != "closed"
        if not replace:
            raise error
        self._until_it_succeeds(self._bind_another, lost=True)

    def warn_of_replaced_layers(self) -> None:
        """Warns where modules of the model are no longer those that were bound."""
        replaced = self._replaced()
        if replaced:
            warn(_replaced_text(replaced))

    def check_not_replaced(self) -> None:
        """FailedPreconditionError where the model is no longer what answers are about."""
        replaced = self._replaced()
        if replaced:
            raise FailedPreconditionError(_replaced_text(replaced))

    def warn_of_new_layers(self) -> None:
        """Warns of layers that the model has got since it was bound."""
        binding = self._lifecycle.bound
        known = binding.tracker.plan.layers
        with contextlib.suppress(ValueError):  # of layers that are not built yet
            bound = {id(weight.op) for weight in binding.weights.values()}
            found = [w for w in binding.backend.find_weights() if id(w.op) not in bound]
            new = [w.name for w in found if w.name not in known]
            if new:
                warn(
                    f"layers {new[:10]} came into the model after it was bound and are not "
                    "compressed; rebind() takes them in"
                )

    def _replaced(self) -> list[str]:
        binding = self._lifecycle.bound
        return binding.backend.replaced(binding.weights.values())

    def _until_it_succeeds(self, bind: Callable[[], None], *, lost: bool = False) -> None:
        """Binds. If that fails, every call tries again first, lest it went on as if nothing were.

        What the server, or anything here, refuses is not tried again unless the session there was
        is `lost`: all is as it was before.
        """
        lifecycle = self._lifecycle
        binding = lifecycle.bound
        binding.overdue = lambda: self._until_it_succeeds(bind, lost=lost)
        try:
            bind()
        except Exception as error:
            if not lost and _is_refusal(error):
                binding.overdue, lifecycle.resume = None, None
            raise
        binding.overdue = None

    def _bind_resumed(self) -> None:
        assert self._lifecycle.resume is not None
        self._lifecycle.bind(self._lifecycle.resume)
        self._lifecycle.resume = None

    def _bind_another(self) -> None:
        """Goes on in a new session from what is here."""
        lost = self._lifecycle.bound.tracker.session
        self._lifecycle.bind(self._state(), drop=True)
        tracker = self._lifecycle.bound.tracker
        _log.warning(
            "the server no longer has session %s; session %s goes on with what is here, "
            "at epoch %d, step %d",
            lost.id,
            tracker.session.id,
            tracker.epoch,
            tracker.step,
        )


def _replaced_text(names: list[str]) -> str:
    return (
        f"the model's layers {names[:10]} are no longer those that were bound: their modules "
        "were replaced or removed; they are not compressed. rebind() takes the model in as it is"
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the same would fail again, whoever answers."""
    refusals = (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION)
    return not isinstance(error, CompressionError) or error.code in refusals
