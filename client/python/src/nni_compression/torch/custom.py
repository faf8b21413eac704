"""Results of custom algorithms in the modules of PyTorch models."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch

from . import modules
from .activations import Activation
from .rounding import Parameters


class FixedValues(Parameters):
    """Quantized values that cannot be recomputed from parameters; for `WeightState.parameters`."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__("custom", "custom", 0, 0, 0, None, None, None)
        self.values = values

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The values of the last computation."""
        return self.values.to(weight.device, weight.dtype)


class OutputFunction(Activation):
    """Outputs that a subclass's `quantize_layer_output` quantizes; the gradient uses an STE.

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
    """Checks the result of `quantize_weight` or `quantize_layer_output`."""
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
