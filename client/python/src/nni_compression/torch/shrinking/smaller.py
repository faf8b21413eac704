"""The smaller model: what can go is taken out, and the outputs are compared."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Callable, Optional

from torch import nn

from . import channels
from .choice import Choice, take_out
from .constants import Inputs, observe
from .dependencies import Coupled, Dependencies
from .removed import Removed
from .report import Latency
from .runs import Runs
from .zeroing import zero_constants as zero_constants_of


@dataclass(frozen=True)
class Smaller:
    """A smaller model.

    Attributes:
        model: the smaller one.
        removed: what had to go.
        choice: what went.
        latency: where it was measured.
    """

    model: nn.Module
    removed: Removed
    choice: Choice
    latency: Optional[Latency] = None


def smaller(
    work: nn.Module,
    runs: Runs,
    dependencies: Dependencies,
    removed: Removed,
    *,
    zero_constants: bool,
) -> Smaller:
    """A model without what can go.

    Args:
        work: comparable, with the zeros of the masks. It is not changed, unless constants are made
            zero.
        runs, dependencies: its own.
    """
    if zero_constants:
        zero_constants_of(work, runs.all, removed.filters)
    found = _found(dependencies, removed)
    observed = observe(work, runs.all, removed.filters)
    fixed = fixed_modules(work)

    def choose(rejected: Mapping[frozenset[str], str]) -> Choice:
        told = [replace(each, kept=each.kept or rejected.get(_group(each), "")) for each in found]
        return Choice(work, told, removed.filters, observed, fixed)

    choice, model = _verified(work, runs, observed, choose)
    return Smaller(model, removed, choice)


def _group(coupled: Coupled) -> frozenset[str]:
    """Equal for channels of the same layers."""
    return frozenset(coupled.names)


def _found(dependencies: Dependencies, removed: Removed) -> list[Coupled]:
    """What may go, once for all filters that are coupled to each other."""
    found: dict[frozenset[tuple[str, int]], Coupled] = {}
    for name, filters in removed.filters.items():
        for coupled in dependencies.coupled(name, filters).values():
            found.setdefault(coupled.filters, coupled)
    return list(found.values())


def fixed_modules(model: nn.Module) -> dict[str, str]:
    """Module -> why none of its channels can go."""
    own = [
        (name, module, parameter)
        for name, module in model.named_modules()
        for parameter in module._parameters.values()
        if parameter is not None
    ]
    users = Counter(id(parameter) for _, _, parameter in own)
    found = {
        name: "shares a parameter with another module"
        for name, _, parameter in own
        if users[id(parameter)] > 1
    }
    for name, module in model.named_modules():
        if channels.has_filters(module) and module._parameters.get("weight") is None:
            found[name] = "computes its weight from other parameters"
    return found


def _verified(
    work: nn.Module,
    runs: Runs,
    observed: Mapping[str, Inputs],
    choose: Callable[[Mapping[frozenset[str], str]], Choice],
) -> tuple[Choice, nn.Module]:
    """A choice, and the smaller model, whose outputs are equal.

    A graph cannot show all that a model does with a tensor. So where outputs differ, the groups of
    coupled layers are tried one after another.
    """

    def tried(choice: Choice) -> tuple[nn.Module, str]:
        small = copy.deepcopy(work)
        take_out(small, choice, observed)
        return small, runs.problem_of(small)

    choice = choose({})
    small, problem = tried(choice)
    if not problem:
        return choice, small
    runs.check_repeatable()
    rejected = {_group(each): "it was not tried" for each in choice.going}
    for group in list(rejected):
        others = {each: why for each, why in rejected.items() if each != group}
        _, problem = tried(choose(others))
        rejected = {**others, group: f"without it {problem}"} if problem else others
    choice = choose(rejected)
    return choice, tried(choice)[0]
