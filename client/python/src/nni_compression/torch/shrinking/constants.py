"""Channels that have the same value everywhere, whatever the model is given.

A filter whose weights are zero gives its bias. What norms and activations make of it is constant
too, until something else is added, or zeros of a padding are. To see which channels that is, the
model runs with noise in place of all that the other filters give: what is still the same in every
place of every run depends on nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from torch import nn

from . import channels

# The signs of the noise: a ReLU behind it gives zero for one of the first two, and not for the
# other.
_RUNS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    torch.abs,
    lambda noise: -noise.abs(),
    lambda noise: noise,
    lambda noise: 3 * noise,
)
_CHANNELWISE = (*channels.NORMS, nn.modules.pooling._AvgPoolNd)
_ROUNDINGS = 64  # by which numbers may differ that are constant but for the order of operations


@dataclass
class Inputs:
    """The range of each input channel of a module, over all its calls."""

    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def of(module: nn.Module, value: torch.Tensor) -> Inputs:
        """Of one call."""
        values = channels.by_channel(module, value)
        return Inputs(values.amin(1), values.amax(1))

    @property
    def is_constant(self) -> torch.Tensor:
        """Bool, for each channel."""
        largest = torch.maximum(self.low.abs(), self.high.abs())
        eps = torch.finfo(self.low.dtype).eps
        return self.high - self.low <= _ROUNDINGS * eps * largest  # False for NaN

    @property
    def values(self) -> torch.Tensor:
        """Of channels that are constant."""
        return self.low

    def joined(self, other: Inputs) -> Inputs:
        """Of the calls of both."""
        return Inputs(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


def observe(
    model: nn.Module, run: Callable[[], Any], removed: Mapping[str, Collection[int]]
) -> dict[str, Inputs]:
    """The inputs of the layers and norms that are called as modules, by name.

    Args:
        model: in evaluation mode.
        run: calls it.
        removed: name of a layer -> its filters whose weights are zero and stay zero.
    """
    noise = _Noise()
    probes = {
        name: _Probe(module, removed.get(name, ()), noise)
        for name, module in model.named_modules()
        if channels.has_filters(module) or isinstance(module, (*_CHANNELWISE, nn.Embedding))
    }
    hooks: list[Any] = []
    try:
        for probe in probes.values():
            module: Any = probe.module
            hooks.append(module.register_forward_pre_hook(probe.before, with_kwargs=True))
            hooks.append(module.register_forward_hook(probe.after))
        with torch.no_grad(), _whole_modules():
            for noise.signed in _RUNS:
                run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: probe.seen for name, probe in probes.items() if probe.seen is not None}


class _Noise:
    """Normally distributed numbers, the same ones for every model of these shapes."""

    signed: Callable[[torch.Tensor], torch.Tensor] = _RUNS[0]

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def like(self, value: torch.Tensor) -> torch.Tensor:
        numbers = torch.randn(value.shape, generator=self._generator, dtype=value.dtype)
        return self.signed(numbers).to(value.device)


class _Probe:
    """Of one module."""

    def __init__(self, module: nn.Module, removed: Collection[int], noise: _Noise) -> None:
        self.module, self._noise = module, noise
        self._removed = sorted(removed)
        self._is_channelwise = channels.is_depthwise(module) or isinstance(module, _CHANNELWISE)
        self._called_with: Optional[Inputs] = None  # of the present call
        self.seen: Optional[Inputs] = None  # of all

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook: observes the input."""
        value = args[0] if args else kwargs.get("input")
        self._called_with = None
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            here = Inputs.of(module, value)
            self._called_with = here
            self.seen = here if self.seen is None else self.seen.joined(here)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook: noise in place of what does not come from removed filters alone."""
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        given = self._called_with
        if not self._is_channelwise:
            kept = torch.zeros(output.shape[channels.dimension(module, output)], dtype=torch.bool)
        elif given is None:
            return output
        else:
            # What is different at a border would be constant again in a mean over all places, one
            # that depends on their number.
            kept = (given.is_constant & Inputs.of(module, output).is_constant).cpu()
        kept[self._removed] = True
        shape = [1] * output.dim()
        shape[channels.dimension(module, output)] = -1
        return torch.where(kept.view(shape).to(output.device), output, self._noise.like(output))


@contextlib.contextmanager
def _whole_modules() -> Iterator[None]:
    """Without the fused kernels of transformers in evaluation, which call no inner modules."""
    mha = getattr(torch.backends, "mha", None)
    if mha is None:
        yield
        return
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)
