"""One model bound to one session, for any framework: which answers to request, and when.

`pruning.PrunerBinding` and `quantizing.QuantizerBinding` are the two kinds. Their backend changes
the model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, ClassVar, Generic, Optional

from ..errors import (
    CompressionError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StatusCode,
)
from ..values.masks import Mask
from .backend import Backend, W
from .clocks import Clocks
from .custom import OwnAlgorithm
from .statistics import Statistics
from .tracker import ON_WEIGHT_CHANGE, Tracker

_log = logging.getLogger("nni_compression")


class Binding(Generic[W]):
    """Keeps the compressed weights of a model synchronized with a session.

    Any thread may read weights; calls to the service are made by one thread at a time.

    Args:
        tracker: of the session.
        weights: every weight that was bound; only those that the plan compresses are touched.
        backend: of the model.
        own: of a custom algorithm.

    Attributes:
        weights: name -> weight, of those.
        shapes: name -> the shape that it was bound with.
        final: the results that are kept after `unwrap`; None before.
        rebind: called when a weight no longer fits what was bound.
        on_lost: called when the server no longer has the session; binds another one, or raises.
        overdue: a failed rebind that has to succeed first. As long as it raises, no call is made
            and no weight is read.
        successor: the binding that has replaced this one.
        keep_on_bad_weight: whether a layer whose weight the server refuses keeps what it has.
        statistics: those that the plan declares; None: none.
        clocks: what notices a schedule that stands still.
    """

    #: Which slot of a weight's state is this binding's: "pruner" or "quantizer".
    role: ClassVar[str] = ""

    def __init__(
        self,
        tracker: Tracker,
        weights: Sequence[W],
        backend: Backend[W],
        own: Optional[OwnAlgorithm[W]] = None,
    ) -> None:
        self.tracker = tracker
        self.backend = backend
        self.own = own
        self.weights = {w.name: w for w in weights if w.name in tracker.status}
        self.shapes = {name: tuple(weight.layer().shape) for name, weight in self.weights.items()}
        self._tokens: Mapping[str, Callable[[], Any]] = {
            name: weight.token for name, weight in self.weights.items()
        }
        self.statistics = self._statistics()
        self.clocks = self._clocks()
        self.final: Optional[dict[str, Any]] = None
        self.rebind: Optional[Callable[[], None]] = None
        self.on_lost: Optional[Callable[[NotFoundError], None]] = None
        self.overdue: Optional[Callable[[], None]] = None
        self.successor: Optional[Binding[W]] = None
        self.keep_on_bad_weight = False

    # Requests to the service.

    def ensure_fresh(self, weight: W) -> None:
        """Asks for all layers that need it when this one does.

        Not while a custom algorithm computes, which may read the compressed weight of its `op`.
        """
        if self.own is not None and self.own.is_running:
            return
        tracker = self.tracker
        may_ask = self.statistics is None or self.statistics.may_ask
        if tracker.owned and (
            self.overdue is not None
            or (may_ask and tracker.status[weight.name].needs(weight.token))
        ):
            self.refresh()

    def refresh(self) -> None:
        """Asks for all layers that need it, in one stream. Errors name the layer."""
        with self.tracker.lock, self.computing():
            names = self.tracker.pending(self._tokens)
            if self.overdue is not None and self.tracker.owned:
                self.overdue()
            elif any(not self.weights[name].fits for name in names):
                assert self.rebind is not None
                self.rebind()
            elif names:
                try:
                    self._send_statistics(names)
                    self._ask([self.weights[name] for name in names])
                except NotFoundError as error:
                    if error.errors or self.on_lost is None:
                        raise
                    self.on_lost(error)
                except FailedPreconditionError as error:
                    if self.statistics is None:
                        raise
                    explained = self.statistics.explained(error)
                    if explained is error:
                        raise
                    raise explained from error
        if self.successor is not None:
            self.successor.refresh()

    def take_step(self, number: int) -> None:
        """Sets the session's step."""
        with self.tracker.lock:
            self._advance(lambda: self.tracker.take_step(number, gradients=self._gradients()))
            self._forget_own()

    def update_epoch(self, epoch: int) -> None:
        """Sets the session's epoch."""
        with self.tracker.lock:
            self._advance(lambda: self.tracker.update_epoch(epoch))
            self._forget_own()

    def check_statistics(self) -> None:
        """Warns, or raises, where layers are stale of which no statistics were collected."""
        if self.statistics is not None:
            self.statistics.check_observed(self.refresh)

    def weights_changed(self) -> None:
        """Treats all weights as changed, but for those that can be shown not to be."""
        self.backend.weights_changed(self)

    @property
    def depends_on_weights(self) -> bool:
        """Whether some layer has to be asked for when its weight changes."""
        return any(s.refresh == ON_WEIGHT_CHANGE for s in self.tracker.status.values())

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The context in which answers are requested."""
        with contextlib.ExitStack() as stack:
            if self.own is not None:
                stack.enter_context(self.own.running())
            stack.enter_context(self.backend.computing())
            yield

    # Lifecycle.

    def start_from(
        self, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]], *, joined: bool
    ) -> None:
        """Sets the initial state of the session, which `install` puts in force.

        Args:
            masks: by layer name.
            state: what `state_dict` gave; None: the session is a new one.
            joined: whether another rank has bound the session, and may have advanced it: it may
                have other masks, which are requested.
        """

    def install(self, undo: contextlib.ExitStack) -> None:
        """Makes the model read its weights through this binding, in its initial state.

        `undo` reverts all changes. Raises RuntimeError, before anything is changed, when another
        pruner (or quantizer) has one of the weights already.
        """
        for weight in self.weights.values():
            if weight.is_taken(self.role):
                raise RuntimeError(
                    f"layer {weight.name!r} already has a {self.role}; unwrap() that one first"
                )
        self._install(undo)

    def installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        """Finishes the installation; `undo` reverts it."""
        if state is not None and self.statistics is not None:
            self.statistics.restore(state)
        self.backend.installed(self, undo)

    def leave(self, undo: contextlib.ExitStack) -> None:
        """Removes this binding from the model before another is installed; `undo` reverts that."""
        for weight in self.weights.values():
            undo.callback(setattr, weight.state, self.role, getattr(weight.state, self.role))
            setattr(weight.state, self.role, None)

    def detach(self) -> None:
        """Stops all calls; the present answers stay in force."""
        self.tracker.close()

    def keep_results(self) -> None:
        """Stores in `final` the results that stay available after `unwrap`."""
        raise NotImplementedError

    def unwrap(self) -> None:
        """Writes the answers into the dense weights and removes this binding from the model."""
        raise NotImplementedError

    # For checkpoints and exports.

    def packed_masks(self) -> dict[str, Mask]:
        """The masks in force, by layer name; layers that have none yet are left out."""
        return {}

    def sparsities(self) -> dict[str, float]:
        """Layer name -> the share of its weight that the mask in force removes."""
        return {}

    def calibration(self) -> dict[str, dict[str, Any]]:
        """Layer name -> its present quantization parameters."""
        return {}

    def further_state(self) -> dict[str, Any]:
        """Further entries of `state_dict`."""
        return {} if self.statistics is None else self.statistics.state()

    def give_masks(self) -> None:
        """Sends masks that the session does not have, for exports."""

    # Helpers of both kinds.

    def _install(self, undo: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _ask(self, weights: Sequence[W]) -> None:
        raise NotImplementedError

    def _statistics(self) -> Optional[Statistics]:
        """What collects and sends the plan's; InvalidArgumentError where the backend cannot."""
        plan = self.tracker.plan.layers
        for name, weight in self.weights.items():
            kinds = [*(["gradient"] if self._wants_gradient(name) else ()), *plan[name].statistics]
            for kind in kinds:
                why_none = self.backend.why_no_statistic(weight, kind)
                if why_none:
                    raise InvalidArgumentError(
                        f"the algorithm asks for the {kind} of layer {name!r}, {why_none}"
                    )
        weights = [weight for name, weight in self.weights.items() if plan[name].statistics]
        if not weights:
            return None
        return Statistics(self.tracker, self.backend, self.backend.collector(weights, plan))

    def _clocks(self) -> Clocks:
        """Nothing is noticed by default."""
        return Clocks(self.tracker, counts_steps=False, counts_epochs=False)

    def _advance(self, call: Callable[[], Any]) -> None:
        """Sets the epoch or the step."""
        if self.statistics is None:
            call()
        else:
            self.statistics.advance(call)

    def _send_statistics(self, names: Sequence[str]) -> None:
        """Sends what answers for these layers depend on."""
        if self.statistics is not None:
            self.statistics.send(names)

    def _wants_gradient(self, name: str) -> bool:
        return "gradient" in self.tracker.plan.layers[name].step_inputs

    def _gradients(self) -> Mapping[str, Any]:
        """The gradients to send with a step: those in the plan that exist now."""
        wanting = [weight for name, weight in self.weights.items() if self._wants_gradient(name)]
        return self.backend.gradients(wanting) if wanting else {}

    def _forget_own(self) -> None:
        """Makes a custom algorithm compute again after each epoch and step."""
        if self.own is not None:
            self.tracker.forget()

    def _raise(self, error: Optional[CompressionError]) -> None:
        """Raises the error of single layers, if any, with the epoch and step.

        Layers that may keep their present answer are only logged.
        """
        if error is None:
            return
        tracker = self.tracker
        when = f"at epoch {tracker.epoch}, step {tracker.step}"
        refused = {e.code == StatusCode.INVALID_ARGUMENT for e in error.errors.values()}
        if not self.keep_on_bad_weight or refused != {True}:
            error.message += f" ({when})"
            raise error
        for name, reason in error.errors.items():
            _log.warning("%s (%s); layer %r keeps what it has", reason, when, name)
            if name in self._tokens:  # else it is about an activation
                is_mask = tracker.status[name].is_mask
                tracker.answered(name, self._tokens[name](), is_mask=is_mask)
