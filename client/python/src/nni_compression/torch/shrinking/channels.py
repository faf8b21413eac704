"""Channels of modules: their number, where they are in tensors, and how they are taken out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Optional

import torch
from torch import nn

CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
#: What normalizes each channel by itself.
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_OF_NORM = ("weight", "bias", "running_mean", "running_var")
_PLAIN: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_filters(module: nn.Module) -> bool:
    """Whether a module is a layer whose filters can be taken out."""
    return isinstance(module, (CONVOLUTIONS, nn.Linear))


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel is computed from the input channel of the same number."""
    if not isinstance(module, CONVOLUTIONS):
        return False
    return 1 < module.groups == module.out_channels == module.in_channels


def outputs_of(module: Any) -> int:
    """The number of output channels of a layer; of all channels of what keeps their number."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)


def inputs_of(module: Any) -> int:
    """The number of input channels of a layer."""
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def groups_of(module: nn.Module) -> int:
    """The number of groups of a grouped convolution; 1 for all else."""
    return module.groups if isinstance(module, CONVOLUTIONS) and not is_depthwise(module) else 1


def rows(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """A layer's or norm's weight, or mask, as [output channels, all else]."""
    if isinstance(module, TRANSPOSED) and not is_depthwise(module):
        parts = weight.reshape(module.groups, -1, *weight.shape[1:])  # group, input, output
        return parts.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.reshape(len(weight), -1)


def zero_filters(module: Any, filters: Collection[int]) -> None:
    """Writes zeros into the weights of a layer's filters."""
    weight = module.weight.detach()
    if not isinstance(module, TRANSPOSED) or is_depthwise(module):
        weight[list(filters)] = 0
        return
    inputs, outputs = (
        count // module.groups for count in (module.in_channels, module.out_channels)
    )
    for group, place in (divmod(index, outputs) for index in filters):
        weight[group * inputs : (group + 1) * inputs, place] = 0


def dimension(module: Any, value: torch.Tensor) -> int:
    """The dimension of the channels in an input or output of a module."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return value.dim() - 1
    if isinstance(module, CONVOLUTIONS):
        return value.dim() - 1 - len(module.kernel_size)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return 0 if value.dim() == module._get_no_batch_dim() else 1  # type: ignore[no-untyped-call]
    return 1


def by_channel(module: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """An input or output of a module as [channels, all else]."""
    return value.movedim(dimension(module, value), 0).flatten(1)


def column(module: Any, channel: int) -> torch.Tensor:
    """The weights of a layer for one of its input channels, output channels first; a view."""
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight[:, channel]  # type: ignore[no-any-return]
    if isinstance(module, TRANSPOSED):
        return weight[channel]  # type: ignore[no-any-return]
    local = module.in_channels // module.groups
    return weight[filters_of_input(module, channel), channel % local]  # type: ignore[no-any-return]


def filters_of_input(module: Any, channel: int) -> slice:
    """The output channels that an input channel takes part in."""
    groups = groups_of(module)
    group = channel // (inputs_of(module) // groups)
    count = outputs_of(module) // groups
    return slice(group * count, (group + 1) * count)


def adds_same_everywhere(module: Any) -> bool:
    """Whether a constant input channel adds a constant to each output channel.

    Not where the input is padded with zeros, whose places get less.
    """
    cls: Any = type(module)
    if not any(
        isinstance(module, plain)
        and cls.forward is plain.forward
        and getattr(cls, "_conv_forward", None) is getattr(plain, "_conv_forward", None)
        for plain in _PLAIN
    ):
        return False
    if isinstance(module, nn.Linear) or module.padding_mode != "zeros":
        return True
    return not any(module._reversed_padding_repeated_twice)


def add_to_bias(module: Any, outputs: slice, values: torch.Tensor) -> None:
    """Adds to the biases of output channels; a layer without gets some."""
    if module.bias is None:
        zeros = module.weight.detach().new_zeros(outputs_of(module))
        module.bias = nn.Parameter(zeros, requires_grad=module.weight.requires_grad)
    module.bias.detach()[outputs].add_(values.to(module.bias.device, module.bias.dtype))


def remove_outputs(module: Any, removed: Collection[int]) -> None:
    """Takes output channels out of a layer; the same number of each group of a convolution.

    Of a depthwise convolution, a norm and a PReLU they are input channels, too.
    """
    if not removed:
        return
    if isinstance(module, NORMS):
        for name in _OF_NORM:
            _keep(module, name, 0, removed)
        module.num_features -= len(removed)
    elif isinstance(module, nn.PReLU):
        _keep(module, "weight", 0, removed)
        module.num_parameters -= len(removed)
    else:
        transposed = isinstance(module, TRANSPOSED) and not is_depthwise(module)
        depthwise = is_depthwise(module)
        _keep(module, "weight", 1 if transposed else 0, removed)
        _keep(module, "bias", 0, removed)
        if isinstance(module, nn.Linear):
            module.out_features -= len(removed)
        else:
            module.out_channels -= len(removed)
        if depthwise:
            module.in_channels -= len(removed)
            module.groups -= len(removed)


def remove_inputs(module: Any, removed: Collection[int]) -> None:
    """Takes input channels out of a layer; the same number of each group of a convolution."""
    if not removed:
        return
    if isinstance(module, nn.Linear):
        _keep(module, "weight", 1, removed)
        module.in_features -= len(removed)
        return
    if isinstance(module, TRANSPOSED):
        _keep(module, "weight", 0, removed)
    else:
        local = module.in_channels // module.groups
        parts = []
        for group, part in enumerate(module.weight.detach().chunk(module.groups)):
            own = {channel - group * local for channel in removed}
            parts.append(_kept(part, 1, own))
        _replace(module, "weight", torch.cat(parts))
    module.in_channels -= len(removed)


def _keep(module: nn.Module, name: str, dim: int, removed: Collection[int]) -> None:
    present: Optional[torch.Tensor] = getattr(module, name, None)
    if present is not None:
        _replace(module, name, _kept(present.detach(), dim, removed))


def _kept(value: torch.Tensor, dim: int, removed: Collection[int]) -> torch.Tensor:
    kept = [index for index in range(value.shape[dim]) if index not in removed]
    return value.index_select(dim, torch.tensor(kept, device=value.device, dtype=torch.long))


def _replace(module: nn.Module, name: str, value: torch.Tensor) -> None:
    present = module._parameters.get(name)
    if present is None:
        module._buffers[name] = value
    else:
        module._parameters[name] = nn.Parameter(value, requires_grad=present.requires_grad)
