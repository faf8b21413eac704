"""Layers whose filters go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from .._wire import compression_pb2 as pb
from .._wire.structs import text
from ..errors import InvalidArgumentError
from .counters import integer_within

_MAX_UINT32 = 2**32 - 1

Units = Optional[Sequence[int]]


@dataclass(frozen=True)
class FilterGroup:
    """Layers whose filters (output channels, along `Layer.channel_axis`) go together.

    Something behind them adds, multiplies or concatenates their outputs. What goes at a time is a
    unit: some filters of each layer, whose scores are added.

    Attributes:
        members: names of the layers, of which unit i is filter i of each; or layer name -> the unit
            of each of its filters, [filters], None or empty for the same. All units from 0 to the
            highest occur. Given as a sequence or a dict, it is a dict of tuples afterwards.
        runs: into how many consecutive runs of equal length the units are divided, of which each
            loses as many units as the others: the number of groups of a grouped convolution.

    Raises InvalidArgumentError for other types. What fits the layers is the server's to check.

    >>> FilterGroup(["conv1", "downsample"]).members
    {'conv1': (), 'downsample': ()}
    >>> FilterGroup({"q": [0, 0, 1, 1], "v": [0, 0, 1, 1]}).members["v"]
    (0, 0, 1, 1)
    """

    members: Union[Sequence[str], Mapping[str, Units]]
    runs: int = 1

    def __post_init__(self) -> None:
        given: Any = self.members
        if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)):
            names = list(given)
            given = {text(name, f"members[{i}]"): None for i, name in enumerate(names)}
            if len(given) < len(names):
                raise InvalidArgumentError(f"members is {names}; it must not repeat a name")
        if not isinstance(given, Mapping):
            raise InvalidArgumentError(
                f"members is {given!r}; it must be a sequence of layer names, or a dict of layer "
                "names"
            )
        members = {
            text(name, "a key of members"): _units(units, f"members[{name!r}]")
            for name, units in given.items()
        }
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "runs", integer_within(self.runs, "runs", 1, _MAX_UINT32))

    def to_wire(self) -> pb.FilterGroup:
        """The group's message."""
        members: Any = self.members
        return pb.FilterGroup(
            members=[
                pb.FilterGroup.Member(layer=name, units=units) for name, units in members.items()
            ],
            runs=self.runs,
        )


def _units(given: Any, path: str) -> tuple[int, ...]:
    if given is None:
        return ()
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InvalidArgumentError(f"{path} is {given!r}; it must be a sequence of integers")
    return tuple(
        integer_within(unit, f"{path}[{i}]", 0, _MAX_UINT32) for i, unit in enumerate(given)
    )
