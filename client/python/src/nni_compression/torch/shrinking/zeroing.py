"""Sets the constants to zero that removed filters leave in a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Callable

import torch
from torch import nn

from . import channels
from .constants import observe


def zero_constants(
    model: nn.Module, run: Callable[[], Any], removed: Mapping[str, Collection[int]]
) -> None:
    """Makes removed filters, and what norms and depthwise convolutions make of them, give zero.

    These are biases, and the shifts of norms: `bias` and `running_mean`. Arguments as `observe`.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    with torch.no_grad():
        for name, filters in removed.items():
            if layers[name].bias is not None:
                layers[name].bias[sorted(filters)] = 0
        for _ in layers:  # each round reaches the next norm, at least
            changed = [
                _zeroed(layers[name], seen.is_constant, seen.values)
                for name, seen in observe(model, run, removed).items()
            ]
            if not any(changed):
                return


def _zeroed(module: Any, constant: torch.Tensor, values: torch.Tensor) -> bool:
    """Makes channels of a norm, or depthwise convolution, zero; whether any was not."""
    if channels.is_depthwise(module):
        constant = constant & (values == 0)
        wanted = {"bias": torch.zeros_like(values)}
    elif isinstance(module, channels.NORMS):
        wanted = {"bias": torch.zeros_like(values), "running_mean": values}
    else:
        return False
    changed = False
    for name, value in wanted.items():
        present = getattr(module, name, None)
        if present is not None and bool((present[constant] != value[constant]).any()):
            present[constant] = value[constant].to(present.dtype)
            changed = True
    return changed
