"""Filters that masks remove, and the plain model with the zeros of the masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import nn

from ...errors import InvalidArgumentError, UnimplementedError
from ...values.masks import Mask
from .. import dense_weights, modules, naming
from ..weights import ROOT, is_transposed_linear
from . import channels
from .report import KeptFilters


@dataclass
class Removed:
    """What masks remove.

    Attributes:
        filters: name of a convolution or Linear -> indices of its output channels; of a norm -> of
            the channels that it makes constant, as their scales are zero.
        others: of layers of other types.
    """

    filters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    others: list[KeptFilters] = field(default_factory=list)


def find_removed(model: nn.Module, masks: Optional[Mapping[str, Any]]) -> tuple[nn.Module, Removed]:
    """A plain copy of a model with the zeros of its masks, and what these remove.

    Args:
        model: compressed or not; not changed.
        masks: see `shrink`.
    """
    plain = _copied(model)
    in_force = _masks_in_force(plain)
    modules.unwrapped(plain, whole=True)
    if masks is not None and in_force:
        raise InvalidArgumentError(
            f"masks are given, and the {modules.plain_class(model).__name__} is compressed; "
            "unwrap() it, or leave masks out"
        )
    if masks is not None:
        in_force = _applied(plain, masks)
    removed = Removed()
    aliases = naming.names_by_module(naming.named_modules(plain))
    for name, module in plain.named_modules():  # a module with several names once
        if in_force:
            masks_of = [in_force[each] for each in aliases[id(module)] if each in in_force]
            _add_masked(removed, name, module, masks_of[-1] if masks_of else None)
        elif channels.has_filters(module) or isinstance(module, channels.NORMS):
            _add_zeros(removed, name, module)
    return plain, removed


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy without wrappers, with compressed weights as plain parameters; makes no call."""
    with modules.copied_as_it_is():
        plain = _copied(model)
    modules.unwrapped(plain, whole=True)
    return plain


def _copied(model: nn.Module) -> nn.Module:
    model = naming.without_wrappers(model)
    kind = modules.plain_class(model).__name__
    if any(type(own).__name__ == "DTensor" for own in model.parameters()):
        raise UnimplementedError(
            f"the parameters of the {kind} are sharded; shrink takes a whole model"
        )
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:  # of tensors that are computed, outside of parametrizations
        raise InvalidArgumentError(f"the {kind} cannot be copied: {error}") from error
    if copied.__dict__.get("compressor", copied) is None:
        del copied.compressor
    return naming.remove_wrappers(copied)


def _masks_in_force(plain: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in naming.named_modules(plain):
        for part in getattr(module, "_compressed_parts", ()):
            state = modules.state_of(module, part)
            if state is None:
                continue
            if state.parameters is not None or state.output is not None or state.input is not None:
                raise InvalidArgumentError(
                    f"layer {name!r} is quantized; shrink the model first and quantize the result"
                )
            if state.mask is not None and part == "weight":
                found[name] = state.mask
    return found


def _applied(plain: nn.Module, masks: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Writes zeros into weights; returns the masks as tensors of bool."""
    if not isinstance(masks, Mapping):
        raise InvalidArgumentError(
            f"masks is a {type(masks).__name__}; it must be a dict of layer names"
        )
    found = {}
    for layer, given in masks.items():
        name = "" if layer == ROOT else layer
        module = naming.module_at(plain, name) if isinstance(name, str) else None
        weight = None if module is None else dense_weights.read(module, "weight")
        if module is None or weight is None:
            raise InvalidArgumentError(f"masks has {layer!r}; the model has no such layer")
        mask = _as_tensor(layer, given).to(weight.device)
        if mask.shape != weight.shape:
            raise InvalidArgumentError(
                f"the mask of {layer!r} has shape {list(mask.shape)}, and its weight "
                f"{list(weight.shape)}"
            )
        with torch.no_grad():
            zeroed = torch.where(mask, weight, weight.new_zeros(()))
            dense_weights.write(module, "weight", zeroed)
        found[name] = mask
    return found


def _as_tensor(layer: Any, given: Any) -> torch.Tensor:
    if isinstance(given, Mapping) and "weight" in given:  # of a file of `export_model`
        given = given["weight"]
    if isinstance(given, Mask):
        given = given.to_numpy()
    try:
        return torch.as_tensor(given) != 0
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"the mask of {layer!r} is a {type(given).__name__}; it must be a tensor or an array"
        ) from error


def _add_masked(
    removed: Removed, name: str, module: nn.Module, mask: Optional[torch.Tensor]
) -> None:
    is_norm = isinstance(module, channels.NORMS)
    if mask is None or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return
    if mask.dim() < 2 and not is_norm:
        return
    kind = type(module).__name__
    is_layer = channels.has_filters(module) or is_norm
    by_filter = channels.rows(module, mask) if is_layer else mask.flatten(1)
    if is_transposed_linear(module):
        by_filter = mask.t()
    indices = tuple((~by_filter.any(1)).nonzero().flatten().tolist())
    if not indices:
        return
    if len(indices) == len(by_filter):
        raise InvalidArgumentError(
            f"the mask of layer {name or ROOT!r} removes all of its {len(indices)} filters; at "
            "least one has to stay"
        )
    if is_layer:
        removed.filters[name] = indices
    else:
        why = f"a {kind} is neither a convolution nor a Linear of PyTorch"
        removed.others.append(KeptFilters(name, indices, why))


def _add_zeros(removed: Removed, name: str, module: nn.Module) -> None:
    weight = dense_weights.read(module, "weight")
    if weight is None:
        return
    by_filter = channels.rows(module, weight.detach())
    indices = tuple((by_filter == 0).all(1).nonzero().flatten().tolist())
    if indices and len(indices) == len(by_filter):  # as a layer is initialized by some models
        if not channels.has_filters(module):
            return
        removed.others.append(KeptFilters(name, indices, "all of its weights are zero"))
    elif indices:
        removed.filters[name] = indices
