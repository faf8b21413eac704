"""N:M sparsity of PyTorch models."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn

from ..errors import InvalidArgumentError
from .weights import is_transposed_linear

_CONVOLUTIONS = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


def check_n_m(model: nn.Module, n: int = 2, m: int = 4) -> dict[str, int]:
    """Whether the weights of a model have N:M sparsity.

    >>> assert not any(check_n_m(model).values())

    Args:
        model: compressed or plain; its weights are read as a forward pass reads them.
        n: how many of `m` consecutive input channels may be other than zero, in [1, m].
        m: at least 2.

    Returns: name of each Linear and convolution with at least `m` input channels (those of its
    weight: of a grouped convolution, of one group) -> how many groups of `m` have more than `n`.
    The last group, where `m` does not divide the channels, is smaller.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if m < 2:
        raise InvalidArgumentError(f"m is {m}; it must be at least 2")
    if not 1 <= n <= m:
        raise InvalidArgumentError(f"n is {n}; it must be in [1, {m}], up to m")
    counts = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            axis = _input_axis(module)
            if axis is None:
                continue
            weight = module.weight
            if weight.shape[axis] >= m:
                counts[name] = _exceeding(weight.movedim(axis, -1) != 0, n, m)
    return counts


def _input_axis(module: nn.Module) -> Optional[int]:
    """The dimension of a layer's weight that its input channels are."""
    if isinstance(module, _TRANSPOSED) or is_transposed_linear(module):
        return 0
    return 1 if isinstance(module, (_CONVOLUTIONS, nn.Linear)) else None


def _exceeding(kept: torch.Tensor, n: int, m: int) -> int:
    padded = nn.functional.pad(kept, (0, -kept.shape[-1] % m))
    return int((padded.reshape(*padded.shape[:-1], -1, m).sum(-1) > n).sum())
