"""What a trainer adds to the statistics of a layer that an algorithm asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._wire import compression_pb2 as pb
from ..errors import InvalidArgumentError
from .counters import integer_within
from .tensors import Tensor

MAX_SAMPLES = 2**53
_MAX_SOURCE = 63
_EXPONENTS = (-126, 127)
_PREFIX = "STATISTIC_KIND_"
_KINDS = {
    number: name[len(_PREFIX) :].lower() for name, number in pb.StatisticKind.items() if number
}
_NUMBERS = {name: number for number, name in _KINDS.items()}
_ACTIVATIONS = {number: name.split("_")[1].lower() for name, number in pb.Activation.items()}
_DTYPES = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class StatisticPart:
    """A part of a statistic: what a trainer has reduced since the part before.

    Attributes:
        values: an array, or a CPU or GPU tensor of a framework, of the shape that the plan has. All
            floating-point types but float64 are sent as float32.
        count: how many samples (or batches, or steps) it is over; in [1, 2^53].
        exponent: of a histogram, whose bins have the width 2^exponent; in [-126, 127].
    """

    values: Any
    count: int = 1
    exponent: int = 0

    def to_wire(self, kind: str, source: int, path: str) -> pb.StatisticPart:
        """The part's message, without a sequence; `path` begins error messages."""
        if kind not in _NUMBERS:
            raise InvalidArgumentError(
                f"{path} is of no kind of statistic; the kinds are {', '.join(_NUMBERS)}"
            )
        return pb.StatisticPart(
            kind=_NUMBERS[kind],
            source=source,
            count=integer_within(self.count, f"{path}.count", 1, MAX_SAMPLES),
            exponent=integer_within(self.exponent, f"{path}.exponent", *_EXPONENTS),
        )

    def tensor(self, path: str) -> Tensor:
        """The values as they are sent."""
        values = self.values
        if hasattr(values, "detach"):  # PyTorch's; numpy reads neither its GPUs' nor its bfloat16
            values = values.detach()
            if values.is_floating_point() and values.element_size() < 4:
                values = values.float()
            values = values.cpu()
        if not isinstance(values, Tensor):
            values = np.asarray(values)
            name = values.dtype.name
            if name not in _DTYPES and name.startswith(("float", "bfloat")):
                values = values.astype(np.float32)
        tensor = Tensor.of(values, path, _DTYPES)
        if tensor.dtype not in _DTYPES:
            raise InvalidArgumentError(
                f"{path} is a Tensor of {tensor.dtype}; it must be one of {', '.join(_DTYPES)}"
            )
        return tensor


def kind_name(kind: int) -> str:
    """The name of a kind of statistic: "weight_gradient"."""
    return _KINDS.get(kind, str(kind))  # a newer server's


def activation_name(activation: int) -> str:
    """The name of an activation: "relu6"."""
    return _ACTIVATIONS.get(activation, str(activation))  # a newer server's


def check_source(source: Any) -> int:
    """`source` if parts may have it; else raises InvalidArgumentError."""
    return integer_within(source, "source", 0, _MAX_SOURCE)
