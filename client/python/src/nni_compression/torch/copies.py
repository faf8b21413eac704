"""Copies of a model that get the answers of its compressor: `Compressor.apply_to`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Optional

from torch import nn

from ..adapters.binding import Binding
from ..errors import InvalidArgumentError
from . import modules, naming
from .custom import FixedValues, OutputFunction
from .weights import Place, TorchWeight

_NAMED = 5  # layers that a message names


def check_is_module(copy: Any) -> None:
    """Raises TypeError for anything else."""
    if not isinstance(copy, nn.Module):
        raise TypeError(f"copy is a {type(copy).__name__}; it must be a torch.nn.Module")


def apply(binding: Binding[TorchWeight], copy: Any) -> None:
    """Makes a copy compute with the binding's present answers and with all later ones.

    Raises InvalidArgumentError, before anything is changed, if a layer does not fit.
    """
    found = _places_of(binding.weights, copy)
    for name, own in found.items():
        _check(binding.weights[name], own)
    for name, own in found.items():
        state = binding.weights[name].state
        state.publish()
        followers: dict[Hashable, modules.WeightState] = {}
        for place in own:  # tied or not, as the copy has them
            follower = followers.setdefault(
                place.identity, modules.state_of(*place) or modules.WeightState()
            )
            modules.install(*place, follower)
            follower.follow_always(state)
            follower.follow(place.parameters)


def _places_of(weights: Mapping[str, TorchWeight], copy: nn.Module) -> dict[str, list[Place]]:
    """Layer name -> the places in the copy that have the names of that layer.

    Averages, such as PyTorch's AveragedModel and timm's ModelEma, have the copy as `module`.
    """
    inner = copy
    while True:
        named = dict(naming.named_modules(inner))
        found = {
            name: [
                _present(named.get(place.module_of(n)), place.part)
                for place, n in zip(weight.name_places, (name, *weight.aliases))
            ]
            for name, weight in weights.items()
        }
        missing = [name for name, own in found.items() if any(place is None for place in own)]
        within = inner._modules.get("module")
        if not missing or within is None:
            break
        inner = within
    if missing:
        more = ", ..." if len(missing) > _NAMED else ""
        raise InvalidArgumentError(
            f"the {type(copy).__name__} lacks {len(missing)} of the {len(weights)} compressed "
            f"layers: {', '.join(missing[:_NAMED])}{more}; nothing was applied to it"
        )
    return {name: [place for place in own if place is not None] for name, own in found.items()}


def _present(module: Optional[nn.Module], part: str) -> Optional[Place]:
    place = None if module is None else Place(module, part)
    return place if place is not None and place.parameters else None


def _check(weight: TorchWeight, own: list[Place]) -> None:
    state = weight.state
    if isinstance(state.parameters, FixedValues) or isinstance(state.output, OutputFunction):
        raise InvalidArgumentError(
            f"the values of layer {weight.name!r} are computed by a custom algorithm, for this "
            "weight alone; they cannot be applied to a copy"
        )
    for place in own:
        dense = place.dense
        assert dense is not None
        if dense.shape != weight.bound_shape:
            raise InvalidArgumentError(
                f"the weight of layer {weight.name!r} has shape {list(weight.bound_shape)}, and "
                f"that of the copy {list(dense.shape)}"
            )
        theirs = modules.state_of(*place)
        if theirs is not None and (theirs.pruner is not None or theirs.quantizer is not None):
            raise InvalidArgumentError(
                f"layer {weight.name!r} is bound to a session: this is a compressed model itself, "
                "and no copy of one"
            )
