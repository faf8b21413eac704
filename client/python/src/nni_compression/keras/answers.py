"""Puts masks and quantization into the layers of a Keras model, and removes them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._tensorflow import results, rounding
from .._tensorflow.calibration import calibration
from .._tensorflow.variables import replaced
from ..adapters.backend import ActivationKey, Pruning, Quantizing, Range
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.pruning import PrunerBinding
from ..adapters.quantizing import QuantizerBinding
from ..adapters.warn import warn
from ..values.magnitudes import ArrayCounter, Counter, Threshold, mask_from_threshold
from ..values.masks import Mask
from ..values.plan import LayerPlan
from ..values.quantization import QuantizedTensor
from . import kernels
from .activations import NOTHING, KerasActivation
from .weights import KerasWeight

Begin = Callable[[KerasWeight, kernels.KernelVariables], None]


def _install_in_layers(
    binding: Binding[KerasWeight], begin: Begin, undo: contextlib.ExitStack
) -> None:
    """Makes layers read their kernels through states.

    Args:
        begin: makes the variables for answers, and puts the binding's initial state in force.
    """
    for weight in binding.weights.values():
        state = kernels.variables_of(weight.owner, weight.attribute)
        if state is None:
            dtype = tf.as_dtype(weight.dense.dtype).as_numpy_dtype
            state = kernels.KernelVariables(tuple(weight.dense.shape), dtype)
            kernels.compress(weight.owner, weight.attribute, state)
            undo.callback(kernels.release, weight.owner, weight.attribute)
        undo.callback(state.snapshot())
        begin(weight, state)
        setattr(state, binding.role, functools.partial(binding.ensure_fresh, weight))


def _unwrap(
    binding: Binding[KerasWeight], write: Callable[[kernels.KernelVariables, Any], Any]
) -> None:
    """Writes answers into the kernels.

    Args:
        write: returns the dense weight with the answer in it; drops the answer's variables.
    """
    for weight in binding.weights.values():
        state = weight.state
        weight.dense.assign(write(state, weight.numpy()))
        setattr(state, binding.role, None)
        if state.mask is None and state.values is None:
            kernels.release(weight.owner, weight.attribute)


def _counted(weight: KerasWeight) -> tuple[Any, Any]:
    """The weight, and the mask in force."""
    return rounding.host(weight.numpy(), weight.dtype), weight.state.kept()


class KerasPruning(Pruning[KerasWeight]):
    """Masks of a model's layers."""

    why_weights_only = ""

    def install(
        self,
        binding: PrunerBinding[KerasWeight],
        given: Mapping[str, Mask],
        undo: contextlib.ExitStack,
    ) -> None:
        _install_in_layers(binding, functools.partial(self._begin, given), undo)

    def put(self, masks: Mapping[KerasWeight, Mask]) -> None:
        for weight, mask in masks.items():
            weight.state.mask.assign(mask.to_numpy())

    def counters(self, weights: Sequence[KerasWeight]) -> Mapping[str, Counter]:
        return {weight.name: ArrayCounter(*_counted(weight)) for weight in weights}

    def put_threshold(self, weight: KerasWeight, threshold: Threshold) -> None:
        dense, kept = _counted(weight)
        weight.state.mask.assign(mask_from_threshold(dense, threshold, kept).to_numpy())

    def mask(self, weight: KerasWeight) -> Any:
        return weight.state.mask.numpy()

    def to_array(self, result: Any) -> Any:
        return results.as_array(result)

    def unwrap(self, binding: Binding[KerasWeight]) -> None:
        _unwrap(binding, self._written)

    def _begin(
        self, given: Mapping[str, Mask], weight: KerasWeight, state: kernels.KernelVariables
    ) -> None:
        if state.mask is None:
            state.add_mask()
        mask = given.get(weight.name)
        shape = tuple(weight.dense.shape)
        weight.state.mask.assign(np.ones(shape, np.bool_) if mask is None else mask.to_numpy())

    def _written(self, state: kernels.KernelVariables, dense: Any) -> Any:
        mask = state.mask.numpy()
        if state.values is None:  # otherwise a quantizer may give zeros another value
            state.mask = None
        return np.where(mask, dense, np.zeros((), dense.dtype))


class KerasQuantizing(Quantizing[KerasWeight]):
    """Quantized weights, outputs and inputs of a model's layers."""

    rounds_when_read = False  # the values are computed when an answer is received
    why_weights_only = ""

    def __init__(self) -> None:
        self._answers: dict[str, QuantizedTensor] = {}
        self._may_warn = True  # of a model that has not run in training

    def install(self, binding: QuantizerBinding[KerasWeight], undo: contextlib.ExitStack) -> None:
        _install_in_layers(binding, self._begin, undo)
        for name, target in binding.activations:
            weight = binding.weights[name]
            if target not in weight.targets:
                continue
            functions = kernels.activations_of(weight.owner)
            undo.callback(_put_back, functions, target, functions.get(target))
            # Compiled functions refer to the present one.
            activation = _keras_activation(binding, (name, target)) or KerasActivation()
            undo.callback(activation.snapshot())
            activation.set_answer(binding.activation_answers.get((name, target)))
            activation.forget()
            functions[target] = activation
        own = binding.own
        if own is None or not own.quantizes_outputs:
            return
        for weight in binding.weights.values():
            if "output" in weight.targets:
                functions = kernels.activations_of(weight.owner)
                undo.callback(_put_back, functions, "output", functions.get("output"))
                functions["output"] = functools.partial(_quantized_output, own, weight)

    def put(self, answers: Mapping[KerasWeight, QuantizedTensor]) -> None:
        for weight, answer in answers.items():
            self._answers[weight.name] = answer
            if answer.unquantized:
                weight.state.set_values(None, None)
            else:
                weight.state.set_values(*rounding.values_and_inside(weight.numpy(), answer))

    def put_values(
        self, found: Mapping[str, Any], own: OwnAlgorithm[KerasWeight], weights: Any
    ) -> None:
        for weight, values, inside in results.values_and_passes(found, own, weights):
            weight.state.set_values(values, inside)

    def ranges(
        self, weights: Sequence[KerasWeight], plan: Mapping[str, LayerPlan]
    ) -> Mapping[str, Any]:
        axes = {w.name: w.channel_axis if plan[w.name].range_per_channel else None for w in weights}
        return {w.name: rounding.array_range(w.numpy(), axes[w.name]) for w in weights}

    def calibration(self, binding: QuantizerBinding[KerasWeight]) -> dict[str, dict[str, Any]]:
        return calibration(self._answers, binding.activation_answers)

    def kept(self, weight: KerasWeight) -> Optional[np.ndarray[Any, Any]]:
        return weight.state.kept()

    def unwrap(self, binding: Binding[KerasWeight]) -> None:
        _unwrap(binding, self._written)
        for weight in binding.weights.values():
            kernels.activations_of(weight.owner).clear()

    def seen(self, binding: QuantizerBinding[KerasWeight]) -> Mapping[ActivationKey, Range]:
        present = _present(binding)
        if not present:
            return {}
        numbers = tf.stack([activation.seen for activation in present.values()]).numpy().tolist()
        seen = {
            key: (-low, high)
            for key, (low, high) in zip(present, numbers)
            if (low, high) != NOTHING
        }
        if self._may_warn and not seen and not binding.activation_answers:
            warn(
                "no layer has run in training since the last step, so no range of outputs and "
                "inputs is known: call the model with training=True"
            )
        self._may_warn = False
        return seen

    def seen_here(self, binding: QuantizerBinding[KerasWeight]) -> Mapping[ActivationKey, Range]:
        seen = {
            key: activation.seen.numpy().tolist() for key, activation in _present(binding).items()
        }
        return {k: (-low, high) for k, (low, high) in seen.items() if (low, high) != NOTHING}

    def see(
        self, binding: QuantizerBinding[KerasWeight], ranges: Mapping[ActivationKey, Range]
    ) -> None:
        present = _present(binding)
        for key, range_ in ranges.items():
            if key in present:
                present[key].note(tf.constant(range_, tf.float32), True)

    def forget_seen(self, binding: QuantizerBinding[KerasWeight]) -> None:
        for activation in _present(binding).values():
            activation.forget()

    def put_activation(
        self,
        binding: QuantizerBinding[KerasWeight],
        key: ActivationKey,
        answer: QuantizedTensor,
    ) -> None:
        activation = _keras_activation(binding, key)
        if activation is not None:
            activation.set_answer(answer)

    def _begin(self, weight: KerasWeight, state: kernels.KernelVariables) -> None:
        if state.values is None:
            state.add_values()
        state.active.assign(False)

    def _written(self, state: kernels.KernelVariables, dense: Any) -> Any:
        active = bool(state.active.numpy())
        written = state.values.numpy() if active else dense
        state.values = state.active = state.inside = None
        if state.pruner is None and state.mask is not None:
            written = np.where(state.mask.numpy(), written, np.zeros((), dense.dtype))
            state.mask = None
        return written


def _keras_activation(
    binding: QuantizerBinding[KerasWeight], key: ActivationKey
) -> Optional[KerasActivation]:
    """The outputs or inputs that belong to a weight; None when they are not quantized."""
    name, target = key
    weight = binding.weights[name]
    if target not in weight.targets:
        return None
    found = kernels.activations_of(weight.owner).get(target)
    return found if isinstance(found, KerasActivation) else None


def _present(binding: QuantizerBinding[KerasWeight]) -> dict[ActivationKey, KerasActivation]:
    found = {key: _keras_activation(binding, key) for key in binding.activations}
    return {key: activation for key, activation in found.items() if activation is not None}


def _put_back(functions: dict[str, Any], target: str, function: Any) -> None:
    """Restores the function that quantizes "output" or "input" of a layer; None: no function."""
    if function is None:
        functions.pop(target, None)
    else:
        functions[target] = function


def _quantized_output(own: OwnAlgorithm[KerasWeight], weight: KerasWeight, output: Any) -> Any:
    """The result of `quantize_layer_output` for an output; the gradient is the output's."""
    result, where = own.quantize_output(weight, output), own.where_output(weight)
    if not tf.is_tensor(result):
        raise TypeError(f"{where} returned {result!r:.80}; it must be a tensor")
    if result.dtype != output.dtype:
        raise TypeError(f"{where} returned {result.dtype.name}; it must be {output.dtype.name}")
    if not result.shape.is_compatible_with(output.shape):
        raise ValueError(f"{where} returned shape {result.shape}; it must be {output.shape}")
    return replaced(output, result)
