"""A model with a part of its latency: filters go until it is reached."""

from __future__ import annotations

import copy
import logging
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...errors import InvalidArgumentError
from ..shrinking import channels
from ..shrinking.dependencies import Dependencies
from ..shrinking.removed import Removed
from ..shrinking.report import Latency
from ..shrinking.runs import Runs
from ..shrinking.smaller import Smaller, smaller
from ..shrinking.units import Units, filters_of
from .calls import calls_of
from .parts import WidthsOfPart, problem_of, widths_of
from .runtimes import Run, Runtime, compared, runtime_of
from .table import Table
from .widths import Problem, Solution, scipy, solve

_log = logging.getLogger("nni_compression")

_ENOUGH = 0.03  # by which a latency may differ from the target, of the target
_ATTEMPTS = 6
_SOLVER_S = 30.0
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Target:
    """A latency, as a part of the model's own, and where it is measured."""

    value: float
    runtime: Runtime

    @staticmethod
    def of(value: Any, runtime: Any) -> Target:
        """Checks both arguments of `shrink`."""
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1:
            raise InvalidArgumentError(
                f"target_latency is {value!r}; it must be a number above 0 and below 1"
            )
        scipy()  # before anything is measured
        return Target(float(value), runtime_of(runtime))

    def check(self, model: nn.Module) -> None:
        """Raises InvalidArgumentError for a model that cannot be measured as it is."""
        devices = {own.device.type for own in model.parameters()}
        dtypes = {own.dtype for own in model.parameters() if own.is_floating_point()}
        if devices != {"cpu"}:
            raise InvalidArgumentError(
                "target_latency is measured on the CPU; the model is on "
                f"{', '.join(sorted(devices))}"
            )
        if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
            raise InvalidArgumentError(
                "target_latency needs parameters that are all float32, or all float64; these are "
                f"{', '.join(sorted(map(str, dtypes)))}"
            )


def reach(
    work: nn.Module,
    runs: Runs,
    dependencies: Dependencies,
    removed: Removed,
    target: Target,
) -> Smaller:
    """Removes filters until a model takes `target` of the time that it takes as it is.

    Args:
        work: plain and comparable, with the zeros of the masks. Its weights are changed.
        runs, dependencies: its own.
        removed: filters that go in any case.

    Raises InvalidArgumentError, with the smallest latency, if that is not possible.
    """
    search = _Search(work, runs, dependencies, removed, target)
    widths = search.widths()
    dtype = next(own.dtype for own in work.parameters() if own.is_floating_point())
    calls = calls_of(work, lambda: work(*runs.positional, **runs.named))
    return search.best(widths, problem_of(widths, calls, Table(target.runtime, dtype)))


class _Search:
    """Makes and measures smaller models; arguments as those of `reach`."""

    def __init__(
        self,
        work: nn.Module,
        runs: Runs,
        dependencies: Dependencies,
        removed: Removed,
        target: Target,
    ) -> None:
        self._work, self._runs, self._dependencies = work, runs, dependencies
        self._removed, self._target, self._runtime = removed, target.value, target.runtime
        self._modules: dict[str, Any] = dict(work.named_modules())
        self._state = copy.deepcopy(work.state_dict())
        self._dense = self._run_of(copy.deepcopy(work))

    def widths(self) -> list[WidthsOfPart]:
        """Those of all parts that can become smaller."""
        members = [name for name, module in self._modules.items() if channels.has_filters(module)]
        units = Units(self._work, self._dependencies)
        units.try_half(members, self._runs)
        self._work.load_state_dict(self._state)
        parts = units.parts(members)
        found = widths_of(parts, self._modules)
        if not found:
            reasons = dict.fromkeys(part.problem for part in parts if part.problem)
            raise InvalidArgumentError(
                f"target_latency is {self._target:g}, and no filter of the "
                f"{type(self._work).__name__} can go: {'; '.join(reasons) or 'it has no two'}"
            )
        return found

    def best(self, widths: Sequence[WidthsOfPart], problem: Problem) -> Smaller:
        """The smaller model that is nearest to the target.

        A sum over single layers has neither what is between them nor what a runtime makes of
        several at once. So it is only used to compare widths, and its budget follows from what was
        measured.
        """
        least = Solution([0] * len(widths), 0.0)
        measured = {problem.dense: 1.0}  # by the sum over layers
        attempts: list[Smaller] = []
        latencies: list[Latency] = []
        budget = problem.dense * self._target
        while len(attempts) < _ATTEMPTS:
            solution = solve(problem, budget, _SOLVER_S) or least
            predicted = problem.seconds(solution.chosen)
            if predicted in measured:
                break
            attempts.append(self._attempt(widths, solution))
            latencies.append(self._latency(attempts[-1].model, solution.gap))
            measured[predicted] = latencies[-1].ratio
            if latencies[-1].distance <= _ENOUGH:
                break
            budget = _next_budget(measured, self._target)
        nearest, latency = min(zip(attempts, latencies), key=lambda each: each[1].distance)
        smallest = min(measured.values())
        if (
            problem.seconds(least.chosen) in measured
            and latency.is_missed
            and smallest > self._target
        ):
            raise InvalidArgumentError(
                f"target_latency {self._target:g} cannot be reached in {latency.runtime}: "
                f"the smallest latency that was measured is {smallest:.3f} of the model's own"
            )
        return replace(nearest, latency=latency)

    def _attempt(self, widths: Sequence[WidthsOfPart], solution: Solution) -> Smaller:
        """Makes the smaller model of these widths."""
        self._work.load_state_dict(self._state)
        going = [each.removed(number) for each, number in zip(widths, solution.chosen)]
        own = filters_of(unit for units in going for unit in units)
        filters = {name: set(indices) for name, indices in self._removed.filters.items()}
        for name, indices in own.items():
            if channels.has_filters(self._modules[name]):
                channels.zero_filters(self._modules[name], indices)
                filters.setdefault(name, set()).update(indices)
        removed = Removed(
            {name: tuple(sorted(indices)) for name, indices in filters.items()},
            self._removed.others,
        )
        return smaller(self._work, self._runs, self._dependencies, removed, zero_constants=True)

    def _latency(self, model: nn.Module, gap: float) -> Latency:
        """Measures a model and the dense one in turns."""
        before, after = compared(self._dense, self._run_of(model))
        runtime, threads = f"{self._runtime.name} {self._runtime.version}", self._runtime.threads
        latency = Latency(runtime, threads, self._target, before, after, gap)
        _log.debug("shrink: tried %s", latency)
        return latency

    def _run_of(self, model: nn.Module) -> Run:
        return self._runtime.model(model, self._runs.positional, self._runs.named)


def _next_budget(measured: Mapping[float, float], target: float) -> float:
    """Where a line through two points has the target: the nearest ones below and above it, or the
    two lowest ones.

    Args:
        measured: sum over layers -> latency as a part of the dense model's.
    """
    above = [each for each in sorted(measured) if measured[each] > target]
    below = [each for each in sorted(measured) if measured[each] <= target]
    first, second = above[0], below[-1] if below else above[1]
    slope = (measured[first] - measured[second]) / (first - second)
    return first + (target - measured[first]) / slope if slope > 0 else first * target
