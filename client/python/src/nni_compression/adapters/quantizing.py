"""Quantized weights, outputs and inputs: which need an answer, and how it is applied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import numpy as np

from ..errors import CompressionError, InvalidArgumentError
from ..session import AnswerKey
from ..values.masks import Mask
from ..values.quantization import Memory, QuantizedTensor
from .backend import ActivationKey, Backend, Range, W
from .binding import Binding
from .custom import OwnAlgorithm
from .tracker import Tracker, split_results

TARGETS = ("output", "input")  # the activations of a layer

Transfer = Literal["weights", "ranges"]


class QuantizerBinding(Binding[W]):
    """Quantized weights: values that the service computed, or parameters for rounding locally.

    Args:
        transfer: what is sent when weights change.
    """

    role = "quantizer"

    def __init__(
        self,
        tracker: Tracker,
        weights: Sequence[W],
        backend: Backend[W],
        transfer: Transfer,
        own: Optional[OwnAlgorithm[W]] = None,
    ) -> None:
        super().__init__(tracker, weights, backend, own)
        self.transfer = transfer
        #: Layer name -> the session's memory of it, from the last answer.
        self.memory: dict[str, Memory] = {}
        #: (layer, "output" or "input") -> their last answer.
        self.activation_answers: dict[ActivationKey, QuantizedTensor] = {}
        self._quantizing = backend.quantizing(own)
        self._gave_masks = False
        if self.activations and self._quantizing.why_weights_only:
            name, target = self.activations[0]
            raise InvalidArgumentError(
                f"quant_types asks for {target}s of layer {name!r}; "
                f"{self._quantizing.why_weights_only}"
            )

    @property
    def activations(self) -> list[ActivationKey]:
        """(layer, "output" or "input") that the plan quantizes, in the order bound."""
        layers = self.tracker.plan.layers
        return [
            (name, target)
            for name in self.weights
            for target in TARGETS
            if f"{target}_range" in layers[name].step_inputs
        ]

    @property
    def activation_ranges(self) -> dict[ActivationKey, tuple[float, float]]:
        """(layer, "output" or "input") -> its moving-average range, from the last answer."""
        return {k: a.range for k, a in self.activation_answers.items() if a.range is not None}

    def calibration(self) -> dict[str, dict[str, Any]]:
        if self.final is not None:
            return dict(self.final)
        return self._quantizing.calibration(self)

    def further_state(self) -> dict[str, Any]:
        found = {
            **super().further_state(),
            "memory": {
                name: {key: list(numbers) for key, numbers in memory.items()}
                for name, memory in self.memory.items()
            },
            "activations": _by_layer(self.activation_ranges),
            "seen": _by_layer(self._quantizing.seen_here(self)),
        }
        return {key: value for key, value in found.items() if value}

    def start_from(
        self, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]], *, joined: bool
    ) -> None:
        if state is None:
            return
        self.memory.update(state.get("memory", {}))
        ranges = _flat(state.get("activations", {}))
        known = {key: ranges[key] for key in self.activations if key in ranges}
        self.activation_answers.update(self._activations_now(known))

    def installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        if state is not None:
            self._quantizing.see(self, _flat(state.get("seen", {})))
        super().installed(state, undo)

    def detach(self) -> None:
        super().detach()
        self._quantizing.detached(self)

    def keep_results(self) -> None:
        self.final = self.calibration()

    def unwrap(self) -> None:
        self._quantizing.unwrap(self)

    def give_masks(self) -> None:
        if self.own is not None:  # its values are computed and masked in the trainer
            return
        kept = {name: self._quantizing.kept(weight) for name, weight in self.weights.items()}
        if not self._gave_masks and all(mask is None for mask in kept.values()):
            return
        self.tracker.session.set_mask(
            {
                name: np.ones(self.weights[name].layer().shape, np.bool_) if mask is None else mask
                for name, mask in kept.items()
            }
        )
        self._gave_masks = True

    def take_step(self, number: int) -> None:
        """Sets the session's step; with transfer "ranges", sends the changed ranges of the plan."""
        with self.tracker.lock, self.computing():
            self._advance(lambda: self._take_step(number))
        self._forget_own()

    def _install(self, undo: contextlib.ExitStack) -> None:
        self._quantizing.install(self, undo)

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = self.backend.tokens(weights)
        session = self.tracker.session
        if self.transfer == "weights":
            arrays = self.backend.read(weights)
            answers, error = split_results(lambda: session.quantize_weight(arrays, reply="values"))
        else:
            ranges = self._ranges(weights)
            answers, error = split_results(lambda: session.quantize_range(ranges))
        for name, answer in answers.items():
            self._remember(name, answer)
        self._take(answers, tokens)
        self._raise(error)

    def _take_step(self, number: int) -> None:
        asked = []
        # Otherwise the answers would be of other weights.
        if self.transfer == "ranges" and self.tracker.takes(number):
            plan = self.tracker.plan
            asked = [
                self.weights[name]
                for name in self.tracker.pending(self._tokens)
                if "range" in plan.layers[name].step_inputs
            ]
            self._send_statistics([weight.name for weight in asked])
        seen = self._quantizing.seen(self) if self.activations else {}
        try:
            self._step(number, asked, seen, self._gradients())
        except CompressionError as error:
            if error.errors:  # the step is applied; a refused range would be refused again
                self._quantizing.forget_seen(self)
            raise
        self._quantizing.forget_seen(self)
        # The step may have begun to quantize activations that were not observed.
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
        seen: Mapping[ActivationKey, Range],
        gradients: Mapping[str, Any],
    ) -> None:
        tokens = self.backend.tokens(asked)
        ranges = self._ranges(asked)
        outputs, inputs = _by_target(seen)
        answers, error = split_results(
            lambda: self.tracker.take_step(number, ranges, outputs, inputs, gradients)
        )
        for key, answer in answers.items():
            self._remember(key, answer)
            if isinstance(key, tuple):
                self._take_activation(key, answer)
        # Another rank may have applied the step without a layer, which is still stale then.
        stale = self.tracker.session.stale if error is None else ()
        self._take(
            {k: a for k, a in answers.items() if isinstance(k, str) and k not in stale}, tokens
        )
        self._raise(error)

    def _activations_now(
        self, ranges: Mapping[ActivationKey, Range]
    ) -> Mapping[ActivationKey, QuantizedTensor]:
        """The answers for activations with these ranges at the session's step.

        Args:
            ranges: the moving-average ranges of the session, or initial ones if it has none.
        """
        tracker = self.tracker
        if not ranges or not tracker.owned:
            return {}
        # The server ignores ranges for a step that was applied: it returns the present parameters.
        outputs, inputs = _by_target(ranges)
        result = tracker.session.step(tracker.session_step, outputs=outputs, inputs=inputs)
        tracker.step_applied = True
        tracker.mark_stale(result)
        for key, answer in result.answers.items():
            self._remember(key, answer)
        return {key: a for key, a in result.answers.items() if isinstance(key, tuple)}

    def _ranges(self, weights: Sequence[W]) -> Mapping[str, Any]:
        return self._quantizing.ranges(weights, self.tracker.plan.layers)

    def _remember(self, key: AnswerKey, answer: QuantizedTensor) -> None:
        if answer.memory:
            self.memory[key if isinstance(key, str) else key[0]] = answer.memory

    def _take_activation(self, key: ActivationKey, answer: QuantizedTensor) -> None:
        if answer.range is not None:
            self.activation_answers[key] = answer
            self._quantizing.put_activation(self, key, answer)

    def _take(self, answers: Mapping[str, QuantizedTensor], tokens: Mapping[str, Any]) -> None:
        self._quantizing.put({self.weights[name]: answer for name, answer in answers.items()})
        for name, answer in answers.items():
            self.tracker.answered(name, tokens[name], lasting=self._lasts(answer))

    def _lasts(self, answer: QuantizedTensor) -> bool:
        """Whether the answer applies to any weight, until the server reports it stale."""
        if answer.unquantized:
            return True
        rounds_here = self._quantizing.rounds_when_read and self.transfer == "ranges"
        return rounds_here and answer.scale is None


class CustomQuantizerBinding(QuantizerBinding[W]):
    """Quantized weights computed in the trainer, when a weight, the epoch or the step changed."""

    def _ask(self, weights: Sequence[W]) -> None:
        assert self.own is not None
        tokens = self.backend.tokens(weights)
        results = self._quantizing.results(self.own.compute, weights)
        self._quantizing.put_values(results, self.own, self.weights)
        stale = [w for w in weights if not self.tracker.status[w.name].answered]
        ranges = self._ranges(stale)
        _, error = split_results(lambda: self.tracker.session.quantize_range(ranges))
        for name, token in tokens.items():
            if error is None or name not in error.errors:
                self.tracker.answered(name, token)
        self._raise(error)


def _by_target(ranges: Mapping[ActivationKey, Range]) -> tuple[dict[str, Range], ...]:
    """Layer name -> range, of outputs and of inputs."""
    return tuple(
        {name: value for (name, of), value in ranges.items() if of == target} for target in TARGETS
    )


def _by_layer(ranges: Mapping[ActivationKey, Range]) -> dict[str, dict[str, list[float]]]:
    """Layer name -> "output" or "input" -> range."""
    found: dict[str, dict[str, list[float]]] = {}
    for (name, target), range_ in ranges.items():
        found.setdefault(name, {})[target] = list(range_)
    return found


def _flat(ranges: Mapping[str, Mapping[str, Range]]) -> dict[ActivationKey, Range]:
    """The inverse of `_by_layer`."""
    return {(name, target): value for name, of in ranges.items() for target, value in of.items()}
