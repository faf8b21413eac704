"""What `shrink` has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LINES = 5  # reasons that a message has


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
    """

    removed: Mapping[str, tuple[int, ...]]
    kept: Sequence[KeptFilters]
    carriers: Mapping[str, tuple[int, ...]]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        count = sum(map(len, self.removed.values()))
        stayed = sum(len(each.filters) for each in self.kept)
        share = self.parameters_after / max(1, self.parameters_before)
        text = (
            f"removed {count} filters of {len(self.removed)} layers; "
            f"{self.parameters_after:,} of {self.parameters_before:,} parameters ({share:.1%}) stay"
        )
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
