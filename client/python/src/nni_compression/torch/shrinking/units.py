"""Channels that go together, and the parts of a model in which they are chosen together."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import channels
from .choice import head_size
from .dependencies import Coupled, Dependencies
from .removed import Removed
from .runs import Runs
from .smaller import fixed_modules, smaller


@dataclass(eq=False)
class Unit:
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

    def channels_of(self, unit: Unit) -> set[int]:
        """Those of a unit."""
        return unit.side(self.is_inputs).get(self.name, set())


@dataclass(frozen=True)
class Part:
    """Units that have to be chosen together.

    Args:
        units: those of the members, and of grouped convolutions that use them.
        members: names of modules.
        modules: by name.
    """

    units: Sequence[Unit]
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
                return not_from_filters(name)
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
    def _ordered(self) -> list[Unit]:
        """The units by the channels of a grouped convolution, or else of the first member."""

        def place(unit: Unit) -> Any:
            if self._constraints:
                return min(self._constraints[0].channels_of(unit), default=-1)
            return min(
                (number, min(unit.filters[name]))
                for number, name in enumerate(self.members)
                if name in unit.filters
            )

        return sorted(self.units, key=place)

    @property
    def in_runs(self) -> list[list[Unit]]:
        """The units of each run, in order."""
        length = len(self.units) // self.runs
        return [self._ordered[at : at + length] for at in range(0, len(self.units), length)]

    @property
    def half(self) -> list[Unit]:
        """Half of the units of each run, rounded down."""
        return [unit for own in self.in_runs for unit in own[: len(own) // 2]]

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


class Units:
    """All units of a model that have filters of convolutions and Linear layers.

    Args:
        model: plain and comparable; as it is while this is used.
        dependencies: its own.
    """

    def __init__(self, model: nn.Module, dependencies: Dependencies) -> None:
        self._model = model
        self._dependencies = dependencies
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._all = self._joined(self._coupled())

    def parts(self, members: Collection[str]) -> list[Part]:
        """Those with filters of the members, as they have to be chosen together.

        Units are in one part if they are of one member, or of one grouped convolution.
        """
        own = [unit for unit in self._all if any(name in unit.filters for name in members)]
        sets = _Sets(len(own))
        for number, unit in enumerate(own):
            for is_inputs in (False, True):
                for name in unit.side(is_inputs):
                    module = self._modules[name]
                    is_grouped = channels.has_filters(module) and channels.groups_of(module) > 1
                    if is_grouped or (name in members and not is_inputs):
                        sets.has(number, (name, is_inputs))
        found: dict[int, list[Unit]] = {}
        for number, unit in enumerate(own):
            found.setdefault(sets.find(number), []).append(unit)
        return [self._part(together, members) for together in found.values()]

    def _part(self, units: Sequence[Unit], members: Collection[str]) -> Part:
        names = {name for unit in units for name in unit.filters}
        return Part(units, [name for name in members if name in names], self._modules)

    def try_half(self, members: Collection[str], runs: Runs) -> None:
        """Removes half of the units, as a graph does not show all that a model does with a tensor.

        Units of which something stays are kept. The weights of the model are changed.
        """
        parts = self.parts(members)
        removed = filters_of(unit for part in parts if not part.problem for unit in part.half)
        filters = {name: removed[name] for name in members if name in removed}
        if not filters:
            return
        for name, own in filters.items():
            channels.zero_filters(self._modules[name], own)
        tried = smaller(
            self._model, runs, self._dependencies, Removed(filters), zero_constants=True
        )
        owners = {
            (name, index): unit
            for unit in self._all
            for name, own in unit.filters.items()
            for index in own
        }
        for coupled in tried.choice.found:
            for each in coupled.filters if coupled.kept and not coupled.carries else ():
                owners[each].kept = owners[each].kept or coupled.kept

    def _coupled(self) -> list[Coupled]:
        found: list[Coupled] = []
        known: set[tuple[str, int]] = set()
        for name, module in self._modules.items():
            if channels.has_filters(module):
                filters = [i for i in range(channels.outputs_of(module)) if (name, i) not in known]
                for coupled in self._dependencies.coupled(name, filters).values():
                    found.append(coupled)
                    known |= coupled.filters
        return found

    def _joined(self, found: Sequence[Coupled]) -> list[Unit]:
        sets = _Sets(len(found))
        for number, coupled in enumerate(found):
            for name, index in coupled.filters:
                sets.has(number, (name, index))
                size = head_size(self._modules, name)
                if size is not None:
                    sets.has(number, (name, "head", index // size))
        units: dict[int, Unit] = {}
        for number, coupled in enumerate(found):
            units.setdefault(sets.find(number), Unit()).add(coupled)
        fixed = fixed_modules(self._model)
        for unit in units.values():
            for name in sorted({*unit.filters, *unit.inputs} & fixed.keys()):
                unit.kept = unit.kept or f"{name} {fixed[name]}"
        return list(units.values())


def filters_of(units: Iterable[Unit]) -> dict[str, tuple[int, ...]]:
    """Name of a module -> its filters in units, in order."""
    found: dict[str, set[int]] = {}
    for unit in units:
        for name, own in unit.filters.items():
            found.setdefault(name, set()).update(own)
    return {name: tuple(sorted(own)) for name, own in found.items()}


def not_from_filters(name: str) -> str:
    """Why filters of a layer cannot go."""
    return f"not all channels of {name} come from filters"
