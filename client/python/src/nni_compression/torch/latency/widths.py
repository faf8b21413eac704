"""The widths of a model's parts that lose least, within a budget of time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from ...errors import UnimplementedError

Numbers = Any  # of numpy


@dataclass
class Problem:
    """Each part has one of its widths; each pair of parts has a latency for each pair of widths.

    Attributes:
        losses: of each part, by the number of its width.
        dense: seconds of all that is in the sum, with all channels.
        fixed: seconds of what has always the same width.
        alone: seconds of each part, by the number of its width.
        pairs: numbers of two parts -> seconds by the widths of the first and of the second.
    """

    losses: Sequence[Numbers]
    dense: float = 0.0
    fixed: float = 0.0
    alone: list[Numbers] = field(default_factory=list)
    pairs: dict[tuple[int, int], Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alone = [np.zeros(len(own)) for own in self.losses]

    def add(
        self, first: Optional[int], second: Optional[int], seconds: Callable[[int, int], float]
    ) -> None:
        """Adds a latency, by the numbers of the widths of two parts.

        A part may be the same as the other one, and None: then its number is 0.
        """
        if first is None and second is None:
            self.fixed += seconds(0, 0)
        elif first is None or second is None or first == second:
            part = second if first is None else first
            assert part is not None
            for n in range(len(self.losses[part])):
                own = seconds(0 if first is None else n, 0 if second is None else n)
                self.alone[part][n] += own
        else:
            pair, shape = (first, second), tuple(len(self.losses[n]) for n in (first, second))
            known = self.pairs.setdefault(pair, np.zeros(shape))
            known += [[seconds(a, b) for b in range(shape[1])] for a in range(shape[0])]

    def seconds(self, chosen: Sequence[int]) -> float:
        """The latency of a choice of widths."""
        total = self.fixed + sum(own[each] for own, each in zip(self.alone, chosen))
        total += sum(own[chosen[a], chosen[b]] for (a, b), own in self.pairs.items())
        return float(total)


@dataclass(frozen=True)
class Solution:
    """Widths by their numbers.

    Attributes:
        chosen: of each part.
        gap: by how much the sum of losses may be above the smallest possible one, of that sum.
    """

    chosen: Sequence[int]
    gap: float


def solve(problem: Problem, budget: float, limit_s: float) -> Optional[Solution]:
    """The widths with the smallest sum of losses whose latency is at most `budget` seconds.

    It is an integer linear program: a number, 0 or 1, for each width of a part, and one for each
    pair of widths of a pair of parts, which sum up to those of both.

    Args:
        limit_s: seconds after which the best that is known is the answer.

    Returns None if there are none.
    """
    optimize, sparse = scipy()
    sizes = [len(own) for own in problem.losses]
    starts = np.cumsum([0, *sizes])
    count = int(starts[-1]) + sum(own.size for own in problem.pairs.values())
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    right: list[float] = []

    def equation(places: Sequence[int], factors: Sequence[float], total: float) -> None:
        rows.extend([len(right)] * len(places))
        columns.extend(places)
        values.extend(factors)
        right.append(total)

    for start, size in zip(starts, sizes):
        equation(range(start, start + size), [1.0] * size, 1.0)
    seconds = np.zeros(count)
    seconds[: starts[-1]] = np.concatenate(problem.alone)
    at = int(starts[-1])
    for (first, second), own in problem.pairs.items():
        seconds[at : at + own.size] = own.ravel()
        places = np.arange(at, at + own.size).reshape(own.shape)
        for part, lines in ((first, places), (second, places.T)):
            for width, line in enumerate(lines):
                equation([*line, starts[part] + width], [*[1.0] * len(line), -1.0], 0.0)
        at += own.size
    unit = max(budget, 1e-12)  # of time, so that numbers are about 1
    equalities = sparse.csr_matrix((values, (rows, columns)), shape=(len(right), count))
    losses = np.zeros(count)
    losses[: starts[-1]] = np.concatenate(problem.losses)
    found = optimize.milp(
        losses,
        integrality=np.arange(count) < starts[-1],
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(equalities, right, right),
            optimize.LinearConstraint(
                seconds[None] / unit, -np.inf, (budget - problem.fixed) / unit
            ),
        ],
        options={"time_limit": limit_s, "mip_rel_gap": 1e-6},
    )
    if found.x is None:
        return None
    chosen = [int(found.x[start : start + size].argmax()) for start, size in zip(starts, sizes)]
    return Solution(chosen, float(found.mip_gap))


def scipy() -> Sequence[Any]:
    """Its modules `optimize` and `sparse`; UnimplementedError without the package."""
    try:
        return [importlib.import_module(f"scipy.{name}") for name in ("optimize", "sparse")]
    except ImportError as error:
        raise UnimplementedError(
            f"target_latency needs the package scipy ({error}): "
            "pip install 'nni-compression[shrink]'"
        ) from error
