"""Which filters of a model go together, as a pruner of filters has to know before it decides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from ...adapters.grouping import Grouping
from ...values.filter_groups import FilterGroup
from .. import dense_weights
from .._files import ExampleInputs
from ..weights import TorchWeight
from . import channels
from .dependencies import Dependencies, has_channels
from .removed import plain_copy
from .runs import Runs, make_comparable
from .units import Units, not_from_filters


class Structure:
    """The channels of a model.

    Args:
        model: not changed.
        given: example inputs.
        weights: of all layers that are bound.

    Attributes:
        scales: layer -> the name of a parameter with a number for each of its filters: the weight
            of the norm behind it.

    Raises InvalidArgumentError and UnimplementedError, as `shrink` does.
    """

    def __init__(
        self, model: nn.Module, given: ExampleInputs, weights: Sequence[TorchWeight]
    ) -> None:
        with torch.inference_mode(False):  # type: ignore[no-untyped-call]
            work = plain_copy(model)
            _make_plain(work, weights)
            make_comparable(work)
            runs = Runs(work, given, "example_inputs")
            dependencies = Dependencies.of(work, runs.positional, runs.named)
            self._modules: dict[str, Any] = dict(work.named_modules())
            self._layers = _layers(weights, self._modules)
            self._units = Units(work, dependencies)
            self._units.try_half([n for n in self._layers if self._is_member(n, None)], runs)
        filtering = [n for n in self._layers if n in self._modules]
        filtering = [n for n in filtering if channels.has_filters(self._modules[n])]
        self._behind = {name: dependencies.norms_behind(name) for name in filtering}
        scales = {self._layers[name]: dependencies.scale_behind(name) for name in filtering}
        self.scales = {layer: scale for layer, scale in scales.items() if scale is not None}

    def grouping(self, matched: Optional[Collection[str]] = None) -> Grouping:
        """The groups, and the layers that keep all of their filters.

        Args:
            matched: the layers that rules compress; None: not known yet, so that norms are taken to
                be none of them, and all others to be some.

        A norm, and a depthwise convolution, is in a group only if it is compressed: its channels
        follow those before it in any case. A layer that is not compressed is in none if the norms
        behind it are.
        """
        members = [name for name in self._layers if self._is_member(name, matched)]
        groups: list[FilterGroup] = []
        # Those that no filter reaches are in no part.
        kept = {self._layers[name]: not_from_filters(name) for name in members}
        for part in self._units.parts(members):
            for name in part.members:
                kept[self._layers[name]] = part.problem
            if not part.problem and not part.is_alone:
                units = {self._layers[name]: own for name, own in part.units_by_member.items()}
                groups.append(FilterGroup(units, part.runs))
        for name, layer in self._layers.items():
            module = self._modules.get(name)
            if module is None:
                kept[layer] = "a parameter of no convolution, Linear or norm has no filters"
            elif not has_channels(module):
                kept[layer] = f"{type(module).__name__} has no filters that could go"
        return Grouping(tuple(groups), {layer: why for layer, why in kept.items() if why})

    def _is_member(self, name: str, matched: Optional[Collection[str]]) -> bool:
        module, layer = self._modules.get(name), self._layers[name]
        if module is None or not has_channels(module):
            return False
        is_norm = isinstance(module, channels.NORMS)
        if matched is None:
            return not is_norm
        if layer in matched:
            return True
        if is_norm or channels.is_depthwise(module):
            return False
        behind = self._behind[name]
        return not behind or not {self._layers.get(norm) for norm in behind} <= set(matched)


def _make_plain(work: nn.Module, weights: Sequence[TorchWeight]) -> None:
    """Makes weights parameters that are computed, as they will be once they are compressed."""
    modules = dict(work.named_modules())
    for weight in weights:
        for name, place in zip((weight.name, *weight.aliases), weight.name_places):
            module = modules.get(place.module_of(name))
            computed = None if module is None else dense_weights.computed_by(module, place.part)
            if module is not None and computed is not None:
                value = computed.value().detach().clone()
                dense_weights.replace(module, place.part, value)


def _layers(weights: Sequence[TorchWeight], modules: Mapping[str, Any]) -> dict[str, str]:
    """Name of a module -> that of its layer. A layer of another parameter has its own name."""
    found = {}
    for weight in weights:
        named = zip((weight.name, *weight.aliases), weight.name_places)
        places = [place.module_of(name) for name, place in named if place.is_weight]
        # A module that has several names has the first of them.
        present = [name for name in places if name in modules]
        found.update(dict.fromkeys(present or [weight.name], weight.name))
    return found
