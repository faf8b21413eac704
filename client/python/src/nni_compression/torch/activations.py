"""Outputs and inputs of a module: their min/max observer, and their quantized values.

The arithmetic is `torch.fake_quantize_per_tensor_affine`; gradients use a straight-through
estimator and are zero where a value was clamped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch

from . import operator
from .masking import is_dynamo, is_exporting
from .rounding import Parameters


class Activation:
    """The outputs, or the inputs, of the modules that share a weight.

    While parameters are None, numbers pass unchanged. Any thread may run the model; `seen` and
    `forget` are for the thread that takes the step.
    """

    def __init__(self) -> None:
        self.observes = True  # False in a copy, which is bound to no session
        self._parameters: Optional[Parameters] = None
        self._numbers: tuple[float, int, int, int] = (1.0, 0, 0, 0)
        # [-minimum, maximum] for each device, so that no copy or synchronization is needed.
        self._seen: dict[torch.device, torch.Tensor] = {}
        self.key = operator.register(self)

    @staticmethod
    def of_copy() -> Activation:
        """For a copy, which is bound to no session and observes nothing."""
        made = Activation()
        made.observes = False
        return made

    @property
    def parameters(self) -> Optional[Parameters]:
        """The quantization parameters; None: numbers pass unchanged."""
        return self._parameters

    @parameters.setter
    def parameters(self, value: Optional[Parameters]) -> None:
        if value is not None:
            assert value.scale is not None and value.zero_point is not None
            scale, zero_point = float(value.scale), int(value.zero_point)
            self._numbers = (scale, zero_point, value.code_min, value.code_max)
        self._parameters = value

    def __call__(self, value: Any, training: bool) -> Any:
        """The quantized tensor; values that are not floating-point tensors pass unchanged.

        In training the range is observed: one range per step, however often the module runs.
        """
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if is_dynamo() and not is_exporting() and operator.is_possible(value):
            return operator.quantize(value, self.key, training)
        if training and self.observes and value.numel() and not is_exporting():
            _observe(self, value)
        if self._parameters is None:
            return value
        wide = value.to(torch.float32)
        if is_exporting() and _has_open_sizes(value):
            return self._plainly(wide).to(value.dtype)
        quantized: torch.Tensor = torch.fake_quantize_per_tensor_affine(wide, *self._numbers)
        return quantized.to(value.dtype)

    def quantize_detached(
        self, value: torch.Tensor, training: bool
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """See `operator.Activation`."""
        if training and self.observes and value.numel():
            self.note(value)
        if self._parameters is None:
            return value, None
        wide = value.to(torch.float32)
        found: Any = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(  # type: ignore
            wide, *self._numbers
        )
        return found[0], found[1]

    def _plainly(self, value: torch.Tensor) -> torch.Tensor:
        """The same numbers, without gradient, by operations that support dynamic sizes."""
        scale, zero_point, smallest, largest = self._numbers
        reciprocal = float(np.float32(1) / np.float32(scale))
        codes = (value * reciprocal).round() + zero_point
        return (codes.clamp(smallest, largest) - zero_point) * scale

    def note(self, value: torch.Tensor) -> None:
        """Extends the range by the numbers of a tensor."""
        with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
            smallest, largest = torch.aminmax(value.detach())
            seen = torch.stack((smallest.neg(), largest)).to(torch.float32)
            before = self._seen.get(value.device)
            self._seen[value.device] = seen if before is None else torch.maximum(before, seen)

    def seen(self, device: torch.device) -> torch.Tensor:
        """[-minimum, maximum] since `forget`, on a device; -inf for both if none was observed."""
        parts = [part.to(device) for part in list(self._seen.values())]
        if not parts:
            return torch.full((2,), -math.inf, device=device)
        return torch.stack(parts).amax(dim=0)

    @property
    def has_seen(self) -> bool:
        """Whether any number was observed."""
        return bool(self._seen)

    def forget(self) -> None:
        """Begins a new range."""
        self._seen = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": self._parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Activation.__init__(self)
        self.observes = False
        self.parameters = state["parameters"]


def _has_open_sizes(value: torch.Tensor) -> bool:
    """Whether a size may be dynamic; torch.export's strict mode does not report that."""
    return is_dynamo() or not all(isinstance(size, int) for size in value.shape)


def _observe(activation: Activation, value: torch.Tensor) -> None:
    activation.note(value)


# Not traceable by a compiler: it depends on earlier observations.
if hasattr(torch, "compiler") and hasattr(torch.compiler, "disable"):
    _observe = torch.compiler.disable(_observe)
elif hasattr(torch, "_dynamo"):
    _observe = torch._dynamo.disable(_observe)


def ranges(activations: Sequence[Activation], device: torch.device) -> list[list[float]]:
    """The range that each has seen, [minimum, maximum]; an empty list where none was seen.

    One copy from the device for all of them. If `torch.distributed` is initialized, the ranks
    all-reduce their ranges, so every rank has to call this, with the same activations.
    """
    seen = torch.stack([activation.seen(device) for activation in activations])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        maximum = torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(seen, op=maximum)  # type: ignore[no-untyped-call]
    found = []
    for low, high in seen.tolist():
        found.append([] if low == high == -math.inf else [-low, high])
    return found
