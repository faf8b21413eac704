"""What a session is told of the filters of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..values.filter_groups import FilterGroup


@dataclass(frozen=True)
class Grouping:
    """Which filters go together, and which cannot go.

    Attributes:
        groups: of layers.
        kept: layer -> why none of its filters can go.
    """

    groups: tuple[FilterGroup, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
