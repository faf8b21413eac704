"""Which filters of a model go together, as a pruner of filters has to know before it decides."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import nn

from ...adapters.grouping import Grouping
from ...values.filter_groups import FilterGroup
from .. import dense_weights
from .._files import ExampleInputs
from ..weights import TorchWeight
from . import channels
from .choice import head_size
from .dependencies import Coupled, Dependencies, has_channels
from .removed import Removed, plain_copy
from .runs import Runs, make_comparable
from .shrink import chosen, fixed_modules


@dataclass(eq=False)
class _Unit:
    """Channels that go as a whole, by the names of modules.

    Attributes:
        filters: of convolutions, Linear layers, norms.
        inputs: of the layers that use them.
        kept: why they cannot go; empty: they can.
    """

    filters: dict[str, set[int]] = field(default_factory=dict)
    inputs: dict[str, set[int]] = field(default_factory=dict)
    kept: str = ""

    def add(self, other: Coupled) -> None:
        """Adds what goes with it."""
        both = (*other.outputs.items(), *other.channelwise.items())
        for own, items in ((self.filters, both), (self.inputs, other.inputs.items())):
            for name, indices in items:
                own.setdefault(name, set()).update(indices)
        self.kept = self.kept or other.kept

    def side(self, is_inputs: bool) -> Mapping[str, set[int]]:
        """The input channels, or the others."""
        return self.inputs if is_inputs else self.filters


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
            fixed = fixed_modules(work)
            self._units = _units(dependencies, self._modules, fixed)
            self._try(work, runs, dependencies)
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
        kept = {self._layers[name]: _not_from_filters(name) for name in members}
        for part in _parts(self._units, members, self._modules):
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

    def _try(self, work: nn.Module, runs: Runs, dependencies: Dependencies) -> None:
        """Removes half of the units, as a graph does not show all that a model does with a tensor.

        Units of which something stays are kept.
        """
        members = [name for name in self._layers if self._is_member(name, None)]
        removed: dict[str, set[int]] = {}
        for part in _parts(self._units, members, self._modules):
            for unit in () if part.problem else part.half:
                for name in unit.filters.keys() & set(part.members):
                    removed.setdefault(name, set()).update(unit.filters[name])
        if not removed:
            return
        filters = {name: tuple(sorted(removed[name])) for name in members if name in removed}
        for name, own in filters.items():
            channels.zero_filters(self._modules[name], own)
        choice, _ = chosen(work, runs, dependencies, Removed(filters), zero_constants=True)
        owners = {
            (name, index): unit
            for unit in self._units
            for name, own in unit.filters.items()
            for index in own
        }
        for coupled in choice.found:
            for each in coupled.filters if coupled.kept and not coupled.carries else ():
                owners[each].kept = owners[each].kept or coupled.kept


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


def _not_from_filters(name: str) -> str:
    return f"not all channels of {name} come from filters"


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


class _Sets:
    """Disjoint sets of numbers, which are joined where they have something in common."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))
        self._first: dict[Hashable, int] = {}  # something that one of them has

    def find(self, number: int) -> int:
        """The number that stands for its set."""
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def has(self, number: int, something: Hashable) -> None:
        """Joins all that have this."""
        other = self.find(self._first.setdefault(something, number))
        self._parents[max(self.find(number), other)] = min(self.find(number), other)


def _units(
    dependencies: Dependencies, modules: Mapping[str, Any], fixed: Mapping[str, str]
) -> list[_Unit]:
    """All units with filters of convolutions and Linear layers."""
    found: list[Coupled] = []
    known: set[tuple[str, int]] = set()
    for name, module in modules.items():
        if channels.has_filters(module):
            filters = [i for i in range(channels.outputs_of(module)) if (name, i) not in known]
            for coupled in dependencies.coupled(name, filters).values():
                found.append(coupled)
                known |= coupled.filters
    sets = _Sets(len(found))
    for number, coupled in enumerate(found):
        for name, index in coupled.filters:
            sets.has(number, (name, index))
            size = head_size(modules, name)
            if size is not None:
                sets.has(number, (name, "head", index // size))
    units: dict[int, _Unit] = {}
    for number, coupled in enumerate(found):
        unit = units.setdefault(sets.find(number), _Unit())
        unit.add(coupled)
    for unit in units.values():
        for name in sorted({*unit.filters, *unit.inputs} & fixed.keys()):
            unit.kept = unit.kept or f"{name} {fixed[name]}"
    return list(units.values())


@dataclass(frozen=True)
class _Constraint:
    """A grouped convolution, which loses as many channels of each group.

    Attributes:
        name: of the module.
        is_inputs: whether its input channels are meant.
        groups: their number.
        size: channels of one.
    """

    name: str
    is_inputs: bool
    groups: int
    size: int

    def channels_of(self, unit: _Unit) -> set[int]:
        """Those of a unit."""
        return unit.side(self.is_inputs).get(self.name, set())


@dataclass(frozen=True)
class _Part:
    """Units that have to be chosen together.

    Args:
        units: those of the members, and of grouped convolutions that use them.
        members: names of modules.
        modules: by name.
    """

    units: Sequence[_Unit]
    members: Sequence[str]
    modules: Mapping[str, Any]

    @functools.cached_property
    def problem(self) -> str:
        """Why nothing of it can go; empty: it can."""
        for unit in self.units:
            if unit.kept:
                return unit.kept
        for name in self.members:
            own = sorted(index for unit in self.units for index in unit.filters.get(name, ()))
            if own != list(range(channels.outputs_of(self.modules[name]))):
                return _not_from_filters(name)
        if len(self.units) % self.runs or not all(map(self._is_even, self._constraints)):
            names = ", ".join(dict.fromkeys(each.name for each in self._constraints))
            return f"its filters cannot be followed into the groups of {names}"
        return ""

    @functools.cached_property
    def _constraints(self) -> list[_Constraint]:
        found = []
        for is_inputs in (False, True):
            for name in dict.fromkeys(n for unit in self.units for n in unit.side(is_inputs)):
                groups = channels.groups_of(self.modules[name])
                if groups > 1:
                    module = self.modules[name]
                    count = channels.inputs_of if is_inputs else channels.outputs_of
                    found.append(_Constraint(name, is_inputs, groups, count(module) // groups))
        return found

    @functools.cached_property
    def runs(self) -> int:
        """See `FilterGroup`."""
        return math.lcm(*(each.groups for each in self._constraints))

    def _is_even(self, constraint: _Constraint) -> bool:
        """Whether each group of a convolution has the channels of whole runs."""
        length = len(self.units) // constraint.groups
        counts = {len(constraint.channels_of(unit)) for unit in self.units}
        return len(counts) == 1 and all(
            channel // constraint.size == place // length
            for place, unit in enumerate(self._ordered)
            for channel in constraint.channels_of(unit)
        )

    @functools.cached_property
    def _ordered(self) -> list[_Unit]:
        """The units by the channels of a grouped convolution, or else of the first member."""

        def place(unit: _Unit) -> Any:
            if self._constraints:
                return min(self._constraints[0].channels_of(unit), default=-1)
            return min(
                (number, min(unit.filters[name]))
                for number, name in enumerate(self.members)
                if name in unit.filters
            )

        return sorted(self.units, key=place)

    @property
    def half(self) -> list[_Unit]:
        """Half of the units of each run, rounded down."""
        length = len(self.units) // self.runs
        return [unit for i, unit in enumerate(self._ordered) if i % length < length // 2]

    @functools.cached_property
    def units_by_member(self) -> dict[str, list[int]]:
        """The number of the unit of each filter; empty where that is the filter's own."""
        found = {}
        for name in self.members:
            places = {
                index: number
                for number, unit in enumerate(self._ordered)
                for index in unit.filters.get(name, ())
            }
            own = [places[index] for index in range(len(places))]
            found[name] = [] if own == list(range(len(self.units))) else own
        return found

    @property
    def is_alone(self) -> bool:
        """Whether it is one layer whose filters go one by one."""
        return len(self.members) == 1 and self.runs == 1 and not any(self.units_by_member.values())


def _parts(
    units: Sequence[_Unit], members: Collection[str], modules: Mapping[str, Any]
) -> Iterable[_Part]:
    """Those units that have to be chosen together, as they are of the same members or groups."""
    own = [unit for unit in units if any(name in unit.filters for name in members)]
    sets = _Sets(len(own))
    for number, unit in enumerate(own):
        for is_inputs in (False, True):
            for name in unit.side(is_inputs):
                is_grouped = channels.has_filters(modules[name]) and (
                    channels.groups_of(modules[name]) > 1
                )
                if is_grouped or (name in members and not is_inputs):
                    sets.has(number, (name, is_inputs))
    found: dict[int, list[_Unit]] = {}
    for number, unit in enumerate(own):
        found.setdefault(sets.find(number), []).append(unit)
    for together in found.values():
        names = {name for unit in together for name in unit.filters}
        yield _Part(together, [name for name in members if name in names], modules)
