"""Recovery from lost sessions and failed bindings."""

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
    """Binds a model again. After a failure every later call retries, until one succeeds.

    Args:
        lifecycle: of the model.
        state: returns the content of a checkpoint of the present state.
    """

    def __init__(self, lifecycle: Lifecycle, state: Callable[[], Mapping[str, Any]]) -> None:
        self._lifecycle = lifecycle
        self._state = state

    def settle(self) -> None:
        """Retries a rebind that failed; raises when it fails again."""
        binding = self._lifecycle.bound
        if binding.overdue is not None and binding.tracker.owned:
            binding.overdue()

    def rebind(self) -> None:
        """Binds the model as it is now, from the present state."""
        self._until_it_succeeds(lambda: self._lifecycle.bind(self._state(), drop=True))

    def resume(self) -> None:
        """Binds the model from the state that was loaded."""
        self._until_it_succeeds(self._bind_resumed)

    def retried(self, call: Callable[[], _R]) -> _R:
        """Makes a call; repeats it in a new session if the server has lost this one."""
        try:
            return call()
        except NotFoundError as error:
            self.replace_lost_session(error)
            return call()

    def replace_lost_session(self, error: NotFoundError) -> None:
        """Replaces a session that the server has lost; if that is not allowed, raises `error`."""
        settings = self._lifecycle.settings
        lost = self._lifecycle.bound.tracker.session
        replace = not error.errors and settings.on_lost_session == "rebind"
        replace = replace and lost.id != self._lifecycle.join
        # The first of ranks that wait for each other must not continue alone.
        statistics = self._lifecycle.bound.statistics
        replace = replace and (statistics is None or not statistics.is_shared)
        with contextlib.suppress(NotFoundError):
            # An explicitly closed session is not replaced.
            replace = replace and self._lifecycle.client.session_info(lost.id).state != "closed"
        if not replace:
            raise error
        self._until_it_succeeds(self._bind_another, lost=True)

    def warn_of_replaced_layers(self) -> None:
        """Warns where modules of the model are no longer those that were bound."""
        replaced = self._replaced()
        if replaced:
            warn(_replaced_text(replaced))

    def check_not_replaced(self) -> None:
        """Raises FailedPreconditionError when modules of the model were replaced since binding."""
        replaced = self._replaced()
        if replaced:
            raise FailedPreconditionError(_replaced_text(replaced))

    def warn_of_new_layers(self) -> None:
        """Warns of layers that were added to the model since it was bound."""
        binding = self._lifecycle.bound
        known = binding.tracker.plan.layers
        with contextlib.suppress(ValueError):  # of layers that are not built yet
            rules = self._lifecycle.rules()
            bound = {id(weight.op) for weight in binding.weights.values()}
            found = [w for w in binding.backend.find_weights(rules) if id(w.op) not in bound]
            new = [w.name for w in found if w.name not in known]
            if new:
                warn(
                    f"layers {new[:10]} were added to the model after it was bound and are not "
                    "compressed; call rebind() to include them"
                )

    def _replaced(self) -> list[str]:
        binding = self._lifecycle.bound
        return binding.backend.replaced(binding.weights.values())

    def _until_it_succeeds(self, bind: Callable[[], None], *, lost: bool = False) -> None:
        """Binds. After a failure, every later call retries first.

        A refusal, by the server or locally, is not retried unless the previous session is `lost`:
        the previous binding stays in force.
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
        """Binds a new session with the present state."""
        lost = self._lifecycle.bound.tracker.session
        self._lifecycle.bind(self._state(), drop=True)
        tracker = self._lifecycle.bound.tracker
        _log.warning(
            "the server no longer has session %s; session %s continues with the present state, "
            "at epoch %d, step %d",
            lost.id,
            tracker.session.id,
            tracker.epoch,
            tracker.step,
        )


def _replaced_text(names: list[str]) -> str:
    return (
        f"the model's layers {names[:10]} are no longer those that were bound: their modules "
        "were replaced or removed; they are not compressed. rebind() binds the model as it is now"
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the same request would fail again on any server."""
    refusals = (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION)
    return not isinstance(error, CompressionError) or error.code in refusals
