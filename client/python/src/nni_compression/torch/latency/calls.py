"""Calls of single layers: what their latency depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import torch
from torch import nn

from ..shrinking import channels

_KINDS: tuple[Any, ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class LayerCall:
    """A convolution or Linear of any weights, called with an input of one shape.

    Attributes:
        kind: the name of its class in torch.nn.
        outputs: output channels.
        shape: of the input.
        channel: the dimension of the input that has the channels.
        bias: whether it has one.
        groups: of a convolution.
        options: other arguments of a convolution.
        is_depthwise: whether it has a group for each channel.
    """

    kind: str
    outputs: int
    shape: tuple[int, ...]
    channel: int
    bias: bool
    groups: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    is_depthwise: bool = False

    @staticmethod
    def of(module: Any, value: torch.Tensor) -> Optional[LayerCall]:
        """A layer of a model, and its input; None for a type that is not known."""
        kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
        if kind is None:
            return None
        shape, channel = tuple(value.shape), channels.dimension(module, value)
        outputs, bias = channels.outputs_of(module), module.bias is not None
        if kind is nn.Linear:
            return LayerCall(kind.__name__, outputs, shape, channel, bias)
        names = ["kernel_size", "stride", "padding", "dilation"]
        if isinstance(module, channels.TRANSPOSED):
            names.append("output_padding")
        options = tuple((name, getattr(module, name)) for name in names)
        depthwise = channels.is_depthwise(module)
        return LayerCall(
            kind.__name__, outputs, shape, channel, bias, module.groups, options, depthwise
        )

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return self.shape[self.channel]

    def resized(self, inputs: int, outputs: int) -> LayerCall:
        """The same with other numbers of channels, which its groups have to divide."""
        shape = list(self.shape)
        shape[self.channel] = outputs if self.is_depthwise else inputs
        groups = outputs if self.is_depthwise else self.groups
        return replace(self, outputs=outputs, shape=tuple(shape), groups=groups)

    def layer(self, dtype: torch.dtype) -> Any:
        """A layer like this in evaluation mode."""
        if self.kind == "Linear":
            made: Any = nn.Linear(self.inputs, self.outputs, bias=self.bias, dtype=dtype)
        else:
            made = getattr(nn, self.kind)(
                self.inputs,
                self.outputs,
                bias=self.bias,
                groups=self.groups,
                dtype=dtype,
                **dict(self.options),
            )
        return made.eval()

    def __str__(self) -> str:
        """Equal for equal calls, in every process."""
        options = "".join(f" {name}={value}" for name, value in self.options)
        groups = f" groups={self.groups}" if self.groups > 1 else ""
        return (
            f"{self.kind} {self.inputs}->{self.outputs} of {list(self.shape)}"
            f"{options}{groups}{' bias' if self.bias else ''}"
        )


def calls_of(model: nn.Module, run: Callable[[], Any]) -> Mapping[str, Sequence[LayerCall]]:
    """Name of a layer -> its calls as a module, of one run of the model."""
    found: dict[str, list[LayerCall]] = {}

    def record(name: str) -> Callable[..., None]:
        def before(module: nn.Module, positional: Any, named: Any) -> None:
            value = next((each for each in (*positional, *named.values())), None)
            call = LayerCall.of(module, value) if isinstance(value, torch.Tensor) else None
            if call is not None:
                found.setdefault(name, []).append(call)

        return before

    with _hooks(model, record), torch.no_grad():
        run()
    return found


@contextlib.contextmanager
def _hooks(model: nn.Module, record: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, module in model.named_modules()
        if channels.has_filters(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
