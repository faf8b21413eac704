"""Widths of parts of a model: what they lose, and how long the layers then take."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ...errors import InvalidArgumentError
from ..shrinking import channels
from ..shrinking.units import Part, Unit
from .calls import LayerCall
from .table import Table
from .widths import Problem

_FEW_PARTS = 8  # for which more widths are tried
_WIDTHS, _MORE_WIDTHS = 8, 16
_STEPS = (16, 8, 4, 2)  # kernels take channels in blocks
_SHAPE = 0.5  # p of the loss


@dataclass(frozen=True)
class WidthsOfPart:
    """The widths that are tried for a part of a model.

    Attributes:
        part: whose units go.
        widths: units that stay in each run; the last one is all that have any weights.
        order: of each run, its units in the order in which they go.
        losses: by the number of a width.
    """

    part: Part
    widths: Sequence[int]
    order: Sequence[Sequence[Unit]]
    losses: Any

    def removed(self, number: int) -> list[Unit]:
        """The units that go at a width."""
        return [unit for run in self.order for unit in run[: len(run) - self.widths[number]]]

    @functools.cached_property
    def inputs(self) -> Mapping[str, int]:
        """Name of a layer -> how many of its input channels the units are."""
        found: Counter[str] = Counter()
        for unit in self.part.units:
            found.update({name: len(own) for name, own in unit.inputs.items()})
        return found

    @property
    def shares(self) -> Any:
        """Of the units that stay, by the number of a width."""
        return np.array(self.widths) / len(self.order[0])


def widths_of(parts: Sequence[Part], modules: Mapping[str, Any]) -> list[WidthsOfPart]:
    """Of the parts whose units can go, and that have more than one width."""
    usable = [part for part in parts if not part.problem]
    most = _MORE_WIDTHS if len(usable) <= _FEW_PARTS else _WIDTHS
    found = [_widths_of(part, modules, most) for part in usable]
    return [each for each in found if len(each.widths) > 1]


def _widths_of(part: Part, modules: Mapping[str, Any], most: int) -> WidthsOfPart:
    units = [unit for run in part.in_runs for unit in run]
    energies = np.array([_energies(units, modules[name], name) for name in part.members])
    importance = energies.sum(0).reshape(part.runs, -1)
    order = importance.argsort(axis=1, kind="stable")
    order += np.arange(part.runs)[:, None] * order.shape[1]
    count, present = order.shape[1], int((importance > 0).sum(1).max())
    widths = _widths(count, present, most) if present else []
    losses = [_loss(energies[:, order[:, : count - each].ravel()].sum(1)) for each in widths]
    return WidthsOfPart(part, widths, [[units[i] for i in run] for run in order], np.array(losses))


def _energies(units: Sequence[Unit], module: Any, name: str) -> Any:
    """The squares of the weights of a layer by unit, as shares of all."""
    squares = channels.rows(module, module.weight.detach()).double().square().sum(1).numpy()
    if not np.isfinite(squares).all():
        raise InvalidArgumentError(
            f"target_latency: the weight of {name!r} has values that are not finite, or whose "
            "squares are not"
        )
    own = np.array([squares[sorted(unit.filters.get(name, ()))].sum() for unit in units])
    return own / max(squares.sum(), np.finfo(np.float64).tiny)


def _widths(count: int, present: int, most: int) -> list[int]:
    """At most `most` numbers up to `present`, in multiples of a step, of about `count` / `most`."""
    step = next((each for each in _STEPS if count >= each * most), 1)
    even = {max(step, math.ceil(count * number / most / step) * step) for number in range(1, most)}
    return [*sorted(each for each in even if each < present), present]


def _loss(removed: Any) -> float:
    """((1 - e)^-p - 1) / p, summed over layers, for the shares e of their energies that go.

    It grows without bound where little stays, so that no layer becomes a bottleneck.
    """
    stays = np.maximum(1 - removed, np.finfo(np.float64).eps)
    return float(((stays**-_SHAPE - 1) / _SHAPE).sum())


def problem_of(
    widths: Sequence[WidthsOfPart],
    calls: Mapping[str, Sequence[LayerCall]],
    table: Table,
) -> Problem:
    """Latencies of all layers at all widths of the parts before and behind them.

    Where inputs of a layer come from several parts, as behind a concatenation, each has its share
    of the layer's latency, which is taken to be that of a layer all of whose inputs are cut alike.
    """
    problem = Problem([each.losses for each in widths])
    for name, own in calls.items():
        for call in own:
            problem.dense += table.seconds(call)
            _add(problem, name, call, widths, table)
    table.save()
    return problem


def _add(
    problem: Problem, name: str, call: LayerCall, widths: Sequence[WidthsOfPart], table: Table
) -> None:
    behind = next((n for n, each in enumerate(widths) if name in each.part.members), None)
    outputs = _sizes(call, call.outputs, [1.0] if behind is None else widths[behind].shares)

    def add(before: Optional[int], inputs: Sequence[int], count: int) -> None:
        def seconds(first: int, second: int) -> float:
            whole = table.seconds(call.resized(inputs[first], outputs[second]))
            return whole * count / call.inputs

        problem.add(before, behind, seconds)

    always = call.inputs
    for number, each in enumerate(widths):
        count = each.inputs.get(name, 0)
        if count:
            add(number, _sizes(call, call.inputs, each.shares), count)
            always -= count
    if always:
        add(None, [call.inputs], always)


def _sizes(call: LayerCall, count: int, shares: Iterable[float]) -> list[int]:
    """Numbers of channels of a layer, of which each of its groups has at least one."""
    groups = 1 if call.is_depthwise else call.groups
    return [max(1, round(count * share / groups)) * groups for share in shares]
