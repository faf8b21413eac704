"""One model bound to one session, whatever the framework: what to ask for, and when.

An adapter finds the weights of its models and makes three subclasses: of `Binding`, with what its
framework does alike for both kinds, and with that of `PrunerBinding` and `QuantizerBinding`. They
read weights and put answers in force; when to ask, batching, and errors of single layers are here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Generic, Optional, Protocol, TypeVar

from ..errors import CompressionError, InvalidArgumentError, NotFoundError, StatusCode
from ..session import AnswerKey
from ..values.masks import Mask
from ..values.plan import Layer
from ..values.quantization import Memory, QuantizedTensor
from .tracker import ON_WEIGHT_CHANGE, Tracker, split_results

TARGETS = ("output", "input")  # what of a layer is quantized beside its weight

_log = logging.getLogger("nni_compression")


class Weight(Protocol):
    """A weight of a model, under all its names."""

    name: str

    @property
    def op(self) -> Any:
        """The module, layer or operation that has it."""

    @property
    def tensor(self) -> Any:
        """The dense weight as algorithms of one's own get it, without gradient."""

    def layer(self) -> Layer:
        """What BindModel is told."""

    def token(self) -> Any:
        """Equal for as long as the weight is unchanged."""


W = TypeVar("W", bound=Weight)


class Binding(Generic[W]):
    """Keeps the compressed weights of a model in step with a session.

    Any thread may read weights; the service is asked by one at a time.

    Args:
        tracker: of the session.
        weights: every weight that was bound; only those that the plan compresses are touched.

    Attributes:
        weights: name -> weight, of those.
        shapes: name -> the shape that it was bound with.
        rebind: called when a weight no longer fits what was bound.
        on_lost: called when the server no longer has the session; binds another one, or raises.
        overdue: what failed and has to succeed before anything else is asked: binding another
            session. Nothing is asked for, and no weight is read, as long as it raises.
        successor: the binding that has taken this one's place.
        keep_on_bad_weight: whether a layer whose weight the server refuses keeps what it has.
    """

    def __init__(self, tracker: Tracker, weights: Sequence[W]) -> None:
        self.tracker = tracker
        self.weights = {w.name: w for w in weights if w.name in tracker.status}
        self.shapes = {name: tuple(weight.layer().shape) for name, weight in self.weights.items()}
        self._tokens: Mapping[str, Callable[[], Any]] = {
            name: weight.token for name, weight in self.weights.items()
        }
        wanting = [name for name in self.weights if self._wants_gradient(name)]
        if wanting and not self.sends_gradients:
            raise InvalidArgumentError(
                f"the algorithm asks for the gradient of layer {wanting[0]!r}; this adapter sends "
                "none"
            )
        self.rebind: Optional[Callable[[], None]] = None
        self.on_lost: Optional[Callable[[NotFoundError], None]] = None
        self.overdue: Optional[Callable[[], None]] = None
        self.successor: Optional[Binding[W]] = None
        self.keep_on_bad_weight = False

    #: Whether the adapter can send gradients.
    sends_gradients = False

    def _wants_gradient(self, name: str) -> bool:
        return "gradient" in self.tracker.plan.layers[name].step_inputs

    def gradients(self) -> Mapping[str, Any]:
        """What a step has to carry: those that the plan asks for, of weights that have one now."""
        wanting = [weight for name, weight in self.weights.items() if self._wants_gradient(name)]
        return self._gradients(wanting) if wanting else {}

    def ensure_fresh(self, weight: W) -> None:
        """Asks for all layers that need it when this one does."""
        tracker = self.tracker
        if tracker.owned and (
            self.overdue is not None or tracker.status[weight.name].needs(weight.token)
        ):
            self.refresh()

    def refresh(self) -> None:
        """Asks for all layers that need it, in one stream. Errors name the layer."""
        with self.tracker.lock, self._computing():
            names = self.tracker.pending(self._tokens)
            if self.overdue is not None and self.tracker.owned:
                self.overdue()
            elif any(not self._fits(self.weights[name]) for name in names):
                assert self.rebind is not None
                self.rebind()
            elif names:
                try:
                    self._ask([self.weights[name] for name in names])
                except NotFoundError as error:
                    if error.errors or self.on_lost is None:
                        raise
                    self.on_lost(error)
        if self.successor is not None:
            self.successor.refresh()

    def weights_changed(self) -> None:
        """Treats all weights as changed, but for those that can be shown not to be."""
        self.tracker.forget()

    def _asking(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """The tokens of weights that are about to be asked for."""
        return {weight.name: weight.token() for weight in weights}

    @property
    def depends_on_weights(self) -> bool:
        """Whether some layer has to be asked for when its weight changes."""
        return any(s.refresh == ON_WEIGHT_CHANGE for s in self.tracker.status.values())

    def detach(self) -> None:
        """Makes no call from now on; the answers there are stay in force."""
        self.tracker.close()

    def install(self, undo: contextlib.ExitStack) -> None:
        """Makes the model read its weights through this binding, with what it has been given.

        Whatever it changes, `undo` changes back. Raises RuntimeError, before anything is changed,
        when another pruner (or quantizer) has one of the weights already.
        """
        raise NotImplementedError

    def leave(self, undo: contextlib.ExitStack) -> None:
        """Takes this binding out of the model, which gets another one; `undo` puts it back."""
        raise NotImplementedError

    def unwrap(self) -> None:
        """Writes the answers into the dense weights and takes this binding out of the model."""
        raise NotImplementedError

    def _raise(self, error: Optional[CompressionError]) -> None:
        """Raises the error of single layers, if any, and says when in training it was.

        Layers that may keep what they have are only logged.
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
                tracker.answered(name, self._tokens[name]())

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        """What asking runs in: outside of gradients, where the framework has such a thing."""
        return contextlib.nullcontext()

    def _fits(self, weight: W) -> bool:
        """Whether the bound dtype holds every value of the present one."""
        return True

    def _ask(self, weights: Sequence[W]) -> None:
        raise NotImplementedError

    def _hosts(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """Layer name -> array, or `Tensor`, of the bound dtype."""
        raise NotImplementedError

    def _gradients(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """As `_hosts`, of the weights' gradients; those without one are left out."""
        raise NotImplementedError


class PrunerBinding(Binding[W]):
    """Masks: asked for when the session says so, whatever the weight does."""

    def __init__(self, tracker: Tracker, weights: Sequence[W]) -> None:
        super().__init__(tracker, weights)
        #: What `install` puts in force, by layer name.
        self.given: dict[str, Mask] = {}

    def give_masks(self, masks: Mapping[str, Mask]) -> None:
        """Has `install` put masks in force that the session has, too."""
        self.given = {name: mask for name, mask in masks.items() if name in self.weights}
        for name in self.given:
            self.tracker.answered(name, None)
        self.tracker.mark_stale(self.tracker.session.stale)

    def _ask(self, weights: Sequence[W]) -> None:
        arrays = self._hosts(weights)
        masks, error = split_results(lambda: self.tracker.session.calc_mask(arrays))
        self.set_masks(masks)
        self._raise(error)

    def set_masks(self, masks: Mapping[str, Mask]) -> None:
        """Puts masks in force, by layer name."""
        for name, mask in masks.items():
            if name in self.weights:
                self._set_mask(self.weights[name], mask)
                self.tracker.answered(name, None)

    def packed_masks(self) -> dict[str, Mask]:
        """The masks in force, by layer name; layers that have none yet are left out."""
        raise NotImplementedError

    def _set_mask(self, weight: W, mask: Mask) -> None:
        raise NotImplementedError


class QuantizerBinding(Binding[W]):
    """Quantized weights: values that the service computed, or parameters for rounding here.

    Args:
        transfer: "weights" or "ranges".
    """

    def __init__(self, tracker: Tracker, weights: Sequence[W], transfer: str) -> None:
        super().__init__(tracker, weights)
        self.transfer = transfer
        #: Layer name -> what the session remembers of it, as of the last answer.
        self.memory: dict[str, Memory] = {}
        #: (layer, "output" or "input") -> their last answer.
        self.activation_answers: dict[tuple[str, str], QuantizedTensor] = {}
        if self.activations and self.why_weights_only:
            name, target = self.activations[0]
            raise InvalidArgumentError(
                f"quant_types asks for {target}s of layer {name!r}; {self.why_weights_only}"
            )

    #: Of adapters that cannot quantize outputs and inputs.
    why_weights_only = ""

    @property
    def activations(self) -> list[tuple[str, str]]:
        """(layer, "output" or "input") that the plan quantizes, in the order bound."""
        layers = self.tracker.plan.layers
        return [
            (name, target)
            for name in self.weights
            for target in TARGETS
            if f"{target}_range" in layers[name].step_inputs
        ]

    @property
    def activation_ranges(self) -> dict[tuple[str, str], tuple[float, float]]:
        """(layer, "output" or "input") -> their running range, of the last answer."""
        return {k: a.range for k, a in self.activation_answers.items() if a.range is not None}

    def give_activations(self, ranges: Mapping[tuple[str, str], Sequence[float]]) -> None:
        """Has `install` put in force what the session quantizes outputs and inputs with.

        Args:
            ranges: those that the session has, or goes on from if it has none.
        """
        known = {key: ranges[key] for key in self.activations if key in ranges}
        self.activation_answers.update(self._activations_now(known))

    def _activations_now(
        self, ranges: Mapping[tuple[str, str], Sequence[float]]
    ) -> Mapping[tuple[str, str], QuantizedTensor]:
        """What those that have running ranges are quantized with at the session's step."""
        tracker = self.tracker
        if not ranges or not tracker.owned:
            return {}
        # Of a step that was applied the ranges are not taken in: the answer is what is in force.
        outputs, inputs = _by_target(ranges)
        result = tracker.session.step(tracker.session_step, outputs=outputs, inputs=inputs)
        tracker.step_applied = True
        tracker.mark_stale(result)
        for key, answer in result.answers.items():
            self._remember(key, answer)
        return {key: a for key, a in result.answers.items() if isinstance(key, tuple)}

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = self._asking(weights)
        session = self.tracker.session
        if self.transfer == "weights":
            arrays = self._hosts(weights)
            answers, error = split_results(lambda: session.quantize_weight(arrays, reply="values"))
        else:
            ranges = self._ranges(weights)
            answers, error = split_results(lambda: session.quantize_range(ranges))
        for name, answer in answers.items():
            self._remember(name, answer)
        self._take(answers, tokens)
        self._raise(error)

    def step(self, number: int) -> None:
        """Sets the session's step; in "ranges", what changed and the plan asks for goes with it."""
        with self.tracker.lock, self._computing():
            asked = []
            # Otherwise the answers would be of other weights.
            if self.transfer == "ranges" and self.tracker.takes(number):
                plan = self.tracker.plan
                asked = [
                    self.weights[name]
                    for name in self.tracker.pending(self._tokens)
                    if "range" in plan.layers[name].step_inputs
                ]
            seen = self._seen_activations() if self.activations else {}
            try:
                self._step(number, asked, seen, self.gradients())
            except CompressionError as error:
                if error.errors:  # the step is taken; what was refused would be refused again
                    self._forget_activations()
                raise
            self._forget_activations()
            # The step may have begun to quantize those, too, that nothing was seen of.
            unseen = {
                key: answer.range
                for key, answer in self.activation_answers.items()
                if answer.unquantized and answer.range is not None and key not in seen
            }
            for key, answer in self._activations_now(unseen).items():
                self._take_activation(key, answer)

    def _step(
        self,
        number: int,
        asked: Sequence[W],
        seen: Mapping[tuple[str, str], Sequence[float]],
        gradients: Mapping[str, Any],
    ) -> None:
        tokens = self._asking(asked)
        ranges = self._ranges(asked)
        outputs, inputs = _by_target(seen)
        answers, error = split_results(
            lambda: self.tracker.take_step(number, ranges, outputs, inputs, gradients)
        )
        for key, answer in answers.items():
            self._remember(key, answer)
            if isinstance(key, tuple):
                self._take_activation(key, answer)
        # Another rank may have taken the step, without a layer that still has no answer then.
        stale = self.tracker.session.stale if error is None else ()
        self._take(
            {k: a for k, a in answers.items() if isinstance(k, str) and k not in stale}, tokens
        )
        self._raise(error)

    def _remember(self, key: AnswerKey, answer: QuantizedTensor) -> None:
        if answer.memory:
            self.memory[key if isinstance(key, str) else key[0]] = answer.memory

    def _take_activation(self, key: tuple[str, str], answer: QuantizedTensor) -> None:
        if answer.range is not None:
            self.activation_answers[key] = answer
            self._set_activation(*key, answer)

    def _take(self, answers: Mapping[str, QuantizedTensor], tokens: Mapping[str, Any]) -> None:
        for name, answer in answers.items():
            self._set_answer(self.weights[name], answer)
            self.tracker.answered(name, tokens[name], lasting=self._lasts(answer))

    def _lasts(self, answer: QuantizedTensor) -> bool:
        """Whether the answer holds for any weight: the server says when it no longer does."""
        if answer.unquantized:
            return True
        return self.transfer == "ranges" and answer.scale is None

    def _ranges(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """Layer name -> float32 [2], or [2, C] where the plan wants a range per channel."""
        raise NotImplementedError

    def _set_answer(self, weight: W, answer: QuantizedTensor) -> None:
        raise NotImplementedError

    # Of adapters that quantize outputs and inputs.

    def _seen_activations(self) -> Mapping[tuple[str, str], Sequence[float]]:
        """Smallest and largest number since the last step, of those of which any was seen."""
        return {}

    def seen_here(self) -> Mapping[tuple[str, str], Sequence[float]]:
        """The same of this process alone: what a checkpoint between two steps has to have."""
        return {}

    def see(self, ranges: Mapping[tuple[str, str], Sequence[float]]) -> None:
        """Takes in what `seen_here` gave. The binding is installed."""

    def _forget_activations(self) -> None:
        """The step was taken: what was seen so far counted."""

    def _set_activation(self, layer: str, target: str, answer: QuantizedTensor) -> None:
        raise NotImplementedError


def _by_target(
    ranges: Mapping[tuple[str, str], Sequence[float]],
) -> tuple[dict[str, Sequence[float]], ...]:
    """Layer name -> range, of outputs and of inputs."""
    return tuple(
        {name: value for (name, of), value in ranges.items() if of == target} for target in TARGETS
    )
