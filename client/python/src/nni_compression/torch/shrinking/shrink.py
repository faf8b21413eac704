"""A smaller dense model without the filters that masks remove: `shrink`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Optional, TypeVar, Union

import torch
from torch import nn

from ...errors import InvalidArgumentError
from .._files import ExampleInputs, example_inputs_of
from . import channels
from .choice import Choice
from .dependencies import Dependencies, torch_pruning
from .removed import Removed, find_removed
from .report import KeptFilters, ShrinkReport
from .runs import Runs, make_comparable, restore
from .smaller import smaller

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
    choice, small = smaller(work, runs, dependencies, removed, zero_constants=zero_constants)
    report = _report(work, small, removed, choice)
    restore(small, before)
    setattr(small, _REPORT, report)
    _log.log(logging.WARNING if report.kept else logging.INFO, "shrink: %s", report)
    return small  # type: ignore[return-value]


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
