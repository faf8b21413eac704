"""A smaller dense model without the filters that masks remove: `shrink`."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Callable, Optional, TypeVar, Union

import torch
from torch import nn

from ...errors import InvalidArgumentError
from .._files import ExampleInputs, example_inputs_of
from . import channels
from .choice import Choice, take_out
from .constants import Inputs, observe
from .dependencies import Coupled, Dependencies, torch_pruning
from .removed import Removed, find_removed
from .report import KeptFilters, ShrinkReport
from .runs import Runs, make_comparable, restore
from .zeroing import zero_constants as zero_constants_of

_log = logging.getLogger("nni_compression")

M = TypeVar("M", bound=nn.Module)
_REPORT = "shrink_report"


def shrink(
    model: M,
    example_inputs: Union[torch.Tensor, ExampleInputs],
    *,
    masks: Optional[Mapping[str, Any]] = None,
    zero_constants: bool = False,
) -> M:
    """A smaller dense model that computes the same, without the filters that masks remove.

    >>> small = shrink(model, torch.zeros(1, 3, 224, 224))
    >>> print(small.shrink_report)

    A filter is an output channel of a convolution, or a row of a Linear. With it go the channels
    that depend on it: of the norms that follow, of the layers that use it, and the filters of other
    layers that are added to it, if they are constant as well. In evaluation mode the outputs are
    equal up to rounding. Zeros in filters that stay are in the weights. What stays although a mask
    removes it is in the report, with the reason, and in the log.

    Needs PyTorch 2 and the package torch-pruning: ``pip install 'nni-compression[shrink]'``.

    Args:
        model: compressed by a pruner, or a copy or a plain model with zeros in its weights. It is
            not changed.
        example_inputs: what the model is called with: a tensor, a tuple of positional arguments, or
            a dict of keyword arguments.
        masks: of a plain model: layer name -> mask, 1 = kept, as a pruner's `masks` or the file of
            `export_model`. Without, filters whose weights are all zero count as removed.
        zero_constants: a removed filter still gives its bias, and BatchNorm adds a shift. By
            default these constants are moved into the layers that use them. True sets them to zero
            first, as other packages do: the outputs are those of the model without them.

    Returns: a new model, with a `ShrinkReport` as its attribute `shrink_report`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    torch_pruning()
    given = _checked_inputs(example_inputs)
    with torch.inference_mode(False):  # type: ignore[no-untyped-call]
        return _shrunk(model, given, masks, zero_constants)


def _checked_inputs(given: Any) -> ExampleInputs:
    if given is None:
        raise InvalidArgumentError(
            "example_inputs is None; it must be a tensor, a tuple of positional arguments, or a "
            "dict of keyword arguments"
        )
    return example_inputs_of(given)


def _shrunk(
    model: M, given: ExampleInputs, masks: Optional[Mapping[str, Any]], zero_constants: bool
) -> M:
    work, removed = find_removed(model, masks)
    if not removed.filters:
        raise InvalidArgumentError(
            f"no filter of the {type(model).__name__} is removed: there is no convolution, no "
            "Linear and no norm with a mask, or with weights, that are all zero for one of its "
            "output channels"
        )
    before = make_comparable(work)
    runs = Runs(work, given)
    dependencies = Dependencies.of(work, runs.positional, runs.named)
    choice, small = chosen(work, runs, dependencies, removed, zero_constants=zero_constants)
    report = _report(work, small, removed, choice)
    restore(small, before)
    setattr(small, _REPORT, report)
    _log.log(logging.WARNING if report.kept else logging.INFO, "shrink: %s", report)
    return small  # type: ignore[return-value]


def chosen(
    work: nn.Module,
    runs: Runs,
    dependencies: Dependencies,
    removed: Removed,
    *,
    zero_constants: bool,
) -> tuple[Choice, nn.Module]:
    """What goes of a model, and the smaller one.

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

    return _verified(work, runs, observed, choose)


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


def _report(work: nn.Module, small: nn.Module, removed: Removed, choice: Choice) -> ShrinkReport:
    taken = {
        name: tuple(own) for (side, name), own in sorted(choice.gone().items()) if side != "inputs"
    }
    owners = {own: each for each in choice.found for own in each.filters}
    kept: dict[tuple[str, str], list[int]] = {}
    carriers: dict[str, list[int]] = {}
    for name, filters in removed.filters.items():
        for index in sorted(set(filters) - set(taken.get(name, ()))):
            owner = owners[name, index]
            if owner.carries:
                carriers.setdefault(name, []).append(index)
            else:
                kept.setdefault((name, owner.kept), []).append(index)
    return ShrinkReport(
        {n: own for n, own in taken.items() if channels.has_filters(work.get_submodule(n))},
        (
            *(KeptFilters(name, tuple(own), why) for (name, why), own in kept.items()),
            *removed.others,
        ),
        {name: tuple(own) for name, own in carriers.items()},
        *(sum(own.numel() for own in model.parameters()) for model in (work, small)),
    )
