"""A smaller dense model without the filters that masks remove: `shrink`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Optional, TypeVar, Union

import torch
from torch import nn

from ...errors import InvalidArgumentError
from .._files import ExampleInputs, example_inputs_of
from ..latency.target import Target, reach
from . import channels
from .dependencies import Dependencies, torch_pruning
from .removed import find_removed
from .report import KeptFilters, ShrinkReport
from .runs import Runs, make_comparable, restore
from .smaller import Smaller, smaller

_log = logging.getLogger("nni_compression")

M = TypeVar("M", bound=nn.Module)
_REPORT = "shrink_report"


def shrink(
    model: M,
    example_inputs: Union[torch.Tensor, ExampleInputs],
    *,
    masks: Optional[Mapping[str, Any]] = None,
    zero_constants: bool = False,
    target_latency: Optional[float] = None,
    runtime: str = "torch",
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
        target_latency: above 0 and below 1: further filters go, so that the smaller model takes
            this part of the time that `model` takes without masks, for a call with
            `example_inputs`, on the CPU, on `torch.get_num_threads()` threads. Those with the
            smallest weights go, from the layers where that loses least for the time that is saved.
            Constants are set to zero. See docs/shrink.md. Needs scipy, which the extra `shrink`
            has.
        runtime: where latency is measured: "torch", or "onnxruntime", which needs the packages
            onnx, onnxscript and onnxruntime.

    Returns: a new model, with a `ShrinkReport` as its attribute `shrink_report`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    torch_pruning()
    given = _checked_inputs(example_inputs)
    target = None if target_latency is None else Target.of(target_latency, runtime)
    with torch.inference_mode(False):  # type: ignore[no-untyped-call]
        return _shrunk(model, given, masks, zero_constants, target)


def _checked_inputs(given: Any) -> ExampleInputs:
    if given is None:
        raise InvalidArgumentError(
            "example_inputs is None; it must be a tensor, a tuple of positional arguments, or a "
            "dict of keyword arguments"
        )
    return example_inputs_of(given)


def _shrunk(
    model: M,
    given: ExampleInputs,
    masks: Optional[Mapping[str, Any]],
    zero_constants: bool,
    target: Optional[Target],
) -> M:
    work, removed = find_removed(model, masks)
    if not removed.filters and target is None:
        raise InvalidArgumentError(
            f"no filter of the {type(model).__name__} is removed: there is no convolution, no "
            "Linear and no norm with a mask, or with weights, that are all zero for one of its "
            "output channels"
        )
    if target is not None:
        target.check(work)
    before = make_comparable(work)
    runs = Runs(work, given)
    dependencies = Dependencies.of(work, runs.positional, runs.named)
    if target is None:
        found = smaller(work, runs, dependencies, removed, zero_constants=zero_constants)
    else:
        found = reach(work, runs, dependencies, removed, target)
    report = _report(work, found)
    restore(found.model, before)
    setattr(found.model, _REPORT, report)
    latency = report.latency
    is_unusual = bool(report.kept) or (latency is not None and latency.is_missed)
    _log.log(logging.WARNING if is_unusual else logging.INFO, "shrink: %s", report)
    return found.model  # type: ignore[return-value]


def _report(work: nn.Module, found: Smaller) -> ShrinkReport:
    removed, choice = found.removed, found.choice
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
        _parameters(work),
        _parameters(found.model),
        found.latency,
    )


def _parameters(model: nn.Module) -> int:
    return sum(own.numel() for own in model.parameters())
