"""What `shrink` has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

_LINES = 5  # reasons that a message has
_ALLOWED = 0.05  # by which a latency may differ from the target, of the target
_PROVEN = 1e-4  # a gap of an integer program that counts as none


@dataclass(frozen=True)
class KeptFilters:
    """Filters that masks remove, and that are still there.

    Attributes:
        layer: its name.
        filters: their indices, in the layer before it became smaller.
        reason: why they have to stay.
    """

    layer: str
    filters: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {len(self.filters)} filters, as {self.reason}"


@dataclass(frozen=True)
class Latency:
    """How long a model takes that filters were removed from to reach a target.

    Attributes:
        runtime: its name and version.
        threads: on which it computes.
        target: `after` by `before`, as it was asked for.
        before, after: seconds for the model with all of its filters, and for the smaller one.
        gap: by how much the loss that was minimized may be above the smallest possible one, as a
            part of it. It is not 0 only if the solver ran out of time.
    """

    runtime: str
    threads: int
    target: float
    before: float
    after: float
    gap: float

    @property
    def ratio(self) -> float:
        """`after` by `before`."""
        return self.after / self.before

    @property
    def distance(self) -> float:
        """By how much `ratio` differs from the target, as a part of it."""
        return abs(self.ratio / self.target - 1)

    @property
    def is_missed(self) -> bool:
        """Whether that is more than 5 %."""
        return self.distance > _ALLOWED

    def __str__(self) -> str:
        text = (
            f"{self.after * 1e3:.3g} of {self.before * 1e3:.3g} ms ({self.ratio:.1%}; target "
            f"{self.target:.1%}) in {self.runtime} on {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}"
        )
        if self.gap > _PROVEN:
            text += f"; widths with a loss smaller by up to {self.gap:.2%} may exist"
        return text


@dataclass(frozen=True)
class ShrinkReport:
    """What was removed from a model, and what was left alone.

    Attributes:
        removed: layer -> the indices of the filters that are gone, in the layer before.
        kept: filters that masks remove and that stayed.
        carriers: layer -> filters that stayed for one reason only: what all that were removed gave
            to a layer that pads its input with zeros is in them now. The other groups of a grouped
            convolution keep as many.
        parameters_before: numbers in the model's parameters.
        parameters_after: the same of the smaller model.
        latency: with `target_latency`.
    """

    removed: Mapping[str, tuple[int, ...]]
    kept: Sequence[KeptFilters]
    carriers: Mapping[str, tuple[int, ...]]
    parameters_before: int
    parameters_after: int
    latency: Optional[Latency] = None

    def __str__(self) -> str:
        count = sum(map(len, self.removed.values()))
        stayed = sum(len(each.filters) for each in self.kept)
        share = self.parameters_after / max(1, self.parameters_before)
        text = (
            f"removed {count} filters of {len(self.removed)} layers; "
            f"{self.parameters_after:,} of {self.parameters_before:,} parameters ({share:.1%}) stay"
        )
        if self.latency is not None:
            text += f"; {self.latency}"
        if self.carriers:
            text += (
                f"; {sum(map(len, self.carriers.values()))} filters carry the constants of others, "
                "unless zero_constants is set"
            )
        if self.kept:
            more = f"; and {len(self.kept) - _LINES} more" if len(self.kept) > _LINES else ""
            reasons = "; ".join(map(str, self.kept[:_LINES]))
            text += f"; {stayed} filters that the masks remove were left alone: {reasons}{more}"
        return text
