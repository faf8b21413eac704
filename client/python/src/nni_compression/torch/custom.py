"""Algorithms of one's own on PyTorch models: how their results reach the modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

import torch

from ..adapters import custom
from . import modules
from .activations import Activation
from .binding import PrunerBinding, QuantizerBinding, TrackedWeight
from .rounding import Parameters


class CustomPrunerBinding(custom.CustomPruning[TrackedWeight], PrunerBinding):
    """Masks that a subclass's `calc_mask` computes."""

    def _to_numpy(self, result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        result = result.detach().cpu()
        return (result.float() if result.dtype is torch.bfloat16 else result).numpy()


class CustomQuantizerBinding(custom.CustomQuantizing[TrackedWeight], QuantizerBinding):
    """Values that a subclass's `quantize_weight` computes.

    Attributes:
        outputs: layer name -> what quantizes its outputs; None: nothing does.
    """

    outputs: Optional[Callable[[TrackedWeight], Activation]] = None

    def _begin(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        super()._begin(weight, state)
        if self.outputs is not None:
            state.output = self.outputs(weight)

    def _set_values(self, results: Mapping[str, Any]) -> None:
        found = {
            name: tensor_of(result, self.weights[name].tensor, self.where(self.weights[name]))
            for name, result in results.items()
        }
        for name, values in found.items():
            weight = self.weights[name]
            # Not the parameter's own memory, which changes.
            own = values.data_ptr() == weight.dense.data_ptr()
            weight.state.parameters = FixedValues(values.clone() if own else values)


class FixedValues(Parameters):
    """Quantized values that nothing here could compute again: for `WeightState.parameters`."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__("custom", "custom", 0, 0, 0, None, None, None)
        self.values = values

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The values as they were computed last."""
        return self.values.to(weight.device, weight.dtype)


class OutputFunction(Activation):
    """Outputs that a subclass's `quantize_layer_output` quantizes; gradients pass straight through.

    A copy of the model is bound to no algorithm: its outputs pass unchanged.
    """

    def __init__(self, quantize: Optional[Callable[[torch.Tensor], torch.Tensor]] = None) -> None:
        super().__init__()
        self.quantize = quantize

    def __call__(self, value: Any, training: bool) -> Any:
        if self.quantize is None or not isinstance(value, torch.Tensor):
            return value
        with torch.no_grad():
            quantized = self.quantize(value.detach())
        return modules.straight_through(value, quantized)

    def __setstate__(self, state: dict[str, Any]) -> None:
        OutputFunction.__init__(self)


def tensor_of(result: Any, like: torch.Tensor, where: str) -> torch.Tensor:
    """What `quantize_weight` or `quantize_layer_output` returned."""
    if not isinstance(result, torch.Tensor):
        raise TypeError(
            f"{where} returned {result!r:.80}; it must be a tensor of shape {tuple(like.shape)}"
        )
    if result.shape != like.shape:
        raise ValueError(
            f"{where} returned shape {tuple(result.shape)}; it must be {tuple(like.shape)}"
        )
    if result.dtype != like.dtype:
        raise TypeError(f"{where} returned {result.dtype}; it must be {like.dtype}")
    return result.detach()
