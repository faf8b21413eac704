"""Puts masks and quantization into the modules of a model, and removes them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import torch

from ..adapters.backend import ActivationKey, Pruning, Quantizing, Range
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.pruning import PrunerBinding
from ..adapters.quantizing import QuantizerBinding
from ..errors import InvalidArgumentError
from ..values.magnitudes import Counter, Threshold
from ..values.masks import Mask
from ..values.plan import LayerPlan
from ..values.quantization import QuantizedTensor
from . import modules
from .activations import Activation, ranges
from .custom import FixedValues, OutputFunction, tensor_of
from .magnitudes import TorchCounter, mask_from_threshold
from .rounding import parameters_of, weight_range
from .transfer import from_host, to_host
from .weights import Place, TorchWeight


def _install_in_modules(
    binding: Binding[TorchWeight],
    begin: Callable[[TorchWeight, modules.WeightState], None],
    undo: contextlib.ExitStack,
) -> None:
    """Makes modules read their weights through states.

    Args:
        begin: puts the binding's initial state in force, in place of the state of a copied model
            or of an earlier binding.
    """
    with binding.computing():
        for weight in binding.weights.values():
            weight.binding = binding
            state = modules.state_of(*weight.places[0]) or modules.WeightState()
            undo.callback(state.snapshot())
            for place in weight.places:
                undo.callback(_reinstall, place, modules.state_of(*place))
                modules.install(*place, state)
            begin(weight, state)
            setattr(state, binding.role, weight)


def _reinstall(place: Place, state: Optional[modules.WeightState]) -> None:
    """Restores a module's parameter: compressed with this state, or plain."""
    if state is None:
        modules.uninstall(*place)
    else:
        modules.install(*place, state)


def _uninstall(weight: TorchWeight) -> None:
    for place in weight.places:
        modules.uninstall(*place)


def _with_zeros(weight: TorchWeight, value: torch.Tensor) -> torch.Tensor:
    """The value where the weight's mask keeps it."""
    mask = weight.mask
    return value if mask is None else value.masked_fill(~mask.to(value.device), 0)


def _on_device(mask: Mask, weight: TorchWeight) -> torch.Tensor:
    return torch.from_numpy(mask.to_numpy()).to(weight.dense.device)


def _counted(weight: TorchWeight) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The weight as it was bound, and the mask in force, on its device."""
    dense = weight.dense.detach().to(weight.bound_dtype)
    return dense, None if weight.mask is None else weight.mask.to(dense.device)


class TorchPruning(Pruning[TorchWeight]):
    """Masks of a model's modules."""

    why_weights_only = ""

    def install(
        self,
        binding: PrunerBinding[TorchWeight],
        given: Mapping[str, Mask],
        undo: contextlib.ExitStack,
    ) -> None:
        def begin(weight: TorchWeight, state: modules.WeightState) -> None:
            mask = given.get(weight.name)
            state.set_mask(None if mask is None else _on_device(mask, weight))

        _install_in_modules(binding, begin, undo)

    def put(self, masks: Mapping[TorchWeight, Mask]) -> None:
        for weight, mask in masks.items():
            weight.state.set_mask(_on_device(mask, weight))

    def counters(self, weights: Sequence[TorchWeight]) -> Mapping[str, Counter]:
        return {weight.name: TorchCounter(*_counted(weight)) for weight in weights}

    def counts_by_default(self, weight: TorchWeight) -> bool:
        return weight.dense.device.type == "cuda"

    def put_threshold(self, weight: TorchWeight, threshold: Threshold) -> None:
        dense, kept = _counted(weight)
        weight.state.set_mask(mask_from_threshold(dense, threshold, kept))

    def mask(self, weight: TorchWeight) -> torch.Tensor:
        device = weight.dense.device
        if weight.mask is None:
            return torch.ones(weight.dense.shape, dtype=torch.bool, device=device)
        # A weight that was offloaded has no device that a mask could be on.
        mask = weight.mask if device.type == "meta" else weight.mask.to(device)
        return mask.detach()  # without its bits, which a copy or a file would have, too

    def sparsities(self, weights: Sequence[TorchWeight]) -> Mapping[str, float]:
        # All counts are computed before the first is awaited.
        counts = {w.name: w.mask.sum() for w in weights if w.mask is not None}
        kept = {name: int(count) for name, count in counts.items()}
        numbers = {w.name: w.bound_shape.numel() for w in weights}
        return {name: 1 - kept.get(name, every) / every for name, every in numbers.items()}

    def to_array(self, result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        result = result.detach().cpu()
        return (result.float() if result.dtype is torch.bfloat16 else result).numpy()

    def unwrap(self, binding: Binding[TorchWeight]) -> None:
        with torch.no_grad():
            for weight in binding.weights.values():
                state = weight.state
                weight.write(_with_zeros(weight, weight.dense))
                state.pruner = None
                # A remaining quantizer may give zeros another value: the mask stays.
                if state.quantizer is None and state.parameters is None:
                    _uninstall(weight)


class TorchQuantizing(Quantizing[TorchWeight]):
    """Quantized weights, outputs and inputs of a model's modules."""

    rounds_when_read = True
    why_weights_only = ""

    def install(self, binding: QuantizerBinding[TorchWeight], undo: contextlib.ExitStack) -> None:
        _install_in_modules(binding, functools.partial(self._begin, binding), undo)

    def put(self, answers: Mapping[TorchWeight, QuantizedTensor]) -> None:
        for weight, answer in answers.items():
            state = weight.state
            state.parameters = parameters_of(answer)
            state.values = None
            if answer.values is not None:
                state.values = from_host(answer.values, weight.bound_dtype, weight.dense.device)
            state.publish()

    def put_values(
        self,
        results: Mapping[str, Any],
        own: OwnAlgorithm[TorchWeight],
        weights: Mapping[str, TorchWeight],
    ) -> None:
        found = {
            name: tensor_of(result, weights[name].tensor, own.where(weights[name]))
            for name, result in results.items()
        }
        for name, values in found.items():
            weight = weights[name]
            # Cloned if it is the parameter's own memory, which changes.
            is_own = values.data_ptr() == weight.dense.data_ptr()
            weight.state.parameters = FixedValues(values.clone() if is_own else values)

    def ranges(
        self, weights: Sequence[TorchWeight], plan: Mapping[str, LayerPlan]
    ) -> Mapping[str, Any]:
        found = {}
        for weight in weights:
            layer = plan[weight.name]
            axis = weight.channel_axis if layer.range_per_channel else None
            found[weight.name] = weight_range(weight.dense, axis, layer.range_group_size)
        return to_host(found)

    def calibration(self, binding: QuantizerBinding[TorchWeight]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, weight in binding.weights.items():
            parameters = weight.state.parameters
            if parameters is not None and parameters.bits:  # else the values are all there is
                found[name] = {
                    "weight_bits": parameters.bits,
                    "weight_scale": parameters.scale,
                    "weight_zero_point": parameters.zero_point,
                    "channel_axis": parameters.channel_axis,
                }
                if parameters.group_size:
                    found[name]["group_size"] = parameters.group_size
        for (name, target), range_ in binding.activation_ranges.items():
            activation = _torch_activation(binding, (name, target))
            if activation is not None and activation.parameters is not None:
                found.setdefault(name, {}).update(
                    {
                        f"{target}_bits": activation.parameters.bits,
                        f"{target}_scale": activation.parameters.scale,
                        f"{target}_zero_point": activation.parameters.zero_point,
                        f"{target}_range": range_,
                    }
                )
        return found

    def kept(self, weight: TorchWeight) -> Optional[np.ndarray[Any, Any]]:
        weight.state.refresh()
        return None if weight.mask is None else weight.mask.cpu().numpy()

    def detached(self, binding: QuantizerBinding[TorchWeight]) -> None:
        # The service no longer sends the values of changed weights: they are rounded here.
        for weight in binding.weights.values():
            state = modules.state_of(*weight.places[0])
            if state is not None:
                state.values = None

    def unwrap(self, binding: Binding[TorchWeight]) -> None:
        with torch.no_grad():
            for weight in binding.weights.values():
                state = weight.state
                values = state.quantized(weight.dense)
                weight.write(values if state.pruner is not None else _with_zeros(weight, values))
                state.parameters = state.values = state.quantizer = None
                state.output = state.input = None
                if state.pruner is None:
                    _uninstall(weight)

    def _begin(
        self,
        binding: QuantizerBinding[TorchWeight],
        weight: TorchWeight,
        state: modules.WeightState,
    ) -> None:
        state.parameters = state.values = None
        state.output = state.input = None
        for name, target in binding.activations:
            if name == weight.name:
                _check_activation(weight, target)
                activation = Activation()
                answer = binding.activation_answers.get((name, target))
                if answer is not None:
                    activation.parameters = parameters_of(answer)
                setattr(state, target, activation)
        if binding.own is not None and binding.own.quantizes_outputs:
            _check_activation(weight, "output")
            state.output = _output_function(binding.own, weight)

    def seen(self, binding: QuantizerBinding[TorchWeight]) -> Mapping[ActivationKey, Range]:
        keys = binding.activations
        found = [(key, _torch_activation(binding, key)) for key in keys]
        present = {key: activation for key, activation in found if activation is not None}
        if not present:
            return {}
        device = binding.weights[keys[0][0]].dense.device
        seen = zip(present, ranges(list(present.values()), device))
        return {key: value for key, value in seen if value}

    def seen_here(self, binding: QuantizerBinding[TorchWeight]) -> Mapping[ActivationKey, Range]:
        found = {key: _torch_activation(binding, key) for key in binding.activations}
        seen = {
            key: activation.seen(torch.device("cpu")).tolist()
            for key, activation in found.items()
            if activation is not None and activation.has_seen
        }
        return {key: [-low, high] for key, (low, high) in seen.items()}

    def see(
        self, binding: QuantizerBinding[TorchWeight], ranges: Mapping[ActivationKey, Range]
    ) -> None:
        for key, range_ in ranges.items():
            activation = _torch_activation(binding, key) if key in binding.activations else None
            if activation is not None:
                device = binding.weights[key[0]].dense.device
                activation.note(torch.tensor(range_, device=device))

    def forget_seen(self, binding: QuantizerBinding[TorchWeight]) -> None:
        for key in binding.activations:
            activation = _torch_activation(binding, key)
            if activation is not None:
                activation.forget()

    def put_activation(
        self,
        binding: QuantizerBinding[TorchWeight],
        key: ActivationKey,
        answer: QuantizedTensor,
    ) -> None:
        activation = _torch_activation(binding, key)
        if activation is not None:
            activation.parameters = parameters_of(answer)
            binding.weights[key[0]].state.publish()


def _torch_activation(
    binding: QuantizerBinding[TorchWeight], key: ActivationKey
) -> Optional[Activation]:
    """The outputs or inputs of a layer; None when another binding has the model."""
    name, target = key
    state = modules.state_of(*binding.weights[name].places[0])
    return None if state is None else getattr(state, target)


def _check_activation(weight: TorchWeight, target: str) -> None:
    place = weight.places[0]
    if not place.is_weight:
        raise InvalidArgumentError(
            f"quant_types asks for {target}s of layer {weight.name!r}; in PyTorch those of modules "
            f"with a parameter `weight` are quantized, and this one is called {place.part!r}: only "
            '"weight" is possible'
        )


def _output_function(own: OwnAlgorithm[TorchWeight], weight: TorchWeight) -> OutputFunction:
    def quantize(output: torch.Tensor) -> torch.Tensor:
        result = own.quantize_output(weight, output)
        return tensor_of(result, output, own.where_output(weight))

    return OutputFunction(quantize)
