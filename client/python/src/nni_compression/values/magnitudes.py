"""Histograms of magnitudes: what a trainer sends in place of weights, and the masks that it makes
of the answers.

The key of a weight is its bits without the sign, shifted left by one: a number of as many bits as
the weight, and keys order as magnitudes do. A round counts the weights by 16 bits of their keys,
the upper ones first; later rounds count only the weights whose keys begin with the upper bits of
the threshold, which the server has found from the rounds before.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np
import numpy.typing as npt

from .._wire import compression_pb2 as pb
from ..errors import DataLossError, InternalError, InvalidArgumentError
from .dtypes import numpy_dtype
from .masks import Mask
from .tensors import Tensor, TensorLike

ROUND_BITS = 16
DIGITS = 1 << ROUND_BITS

#: By dtype, the first digit of the first round that an infinity or a NaN has.
INFINITE_DIGIT = {"float16": 0xF800, "bfloat16": 0xFF00, "float32": 0xFF00, "float64": 0xFFE0}

_PART = 1 << 20  # elements at a time, so that intermediate results stay in the cache


class Digits(NamedTuple):
    """A round: uint16 digits that occur, ascending, and int64 numbers of weights, at least 1."""

    digits: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, histogram: npt.ArrayLike) -> Digits:
        """From the numbers of weights by digit, zeros included."""
        every = np.asarray(histogram, np.int64)
        digits = np.flatnonzero(every)
        return cls(digits.astype(np.uint16), every[digits])


class Counter(Protocol):
    """Counts the weights of one layer that its mask in force keeps, wherever they are."""

    @property
    def shape(self) -> Sequence[int]:
        """Of the weight."""

    @property
    def bits(self) -> int:
        """Of an element: 16, 32 or 64."""

    def count(self, key: int, known_bits: int) -> Digits:
        """Counts the weights whose keys begin with these bits by the next 16 bits of the keys.

        Raises InvalidArgumentError in the first round, with `not_finite`, for a weight that is not.
        """


@dataclass(frozen=True)
class Threshold:
    """Which weights of a layer are pruned, in addition to those that its mask removes: those with
    smaller keys and, of those with this key, the first ones in C order.

    Attributes:
        key: its upper `known_bits` bits, as a number.
        known_bits: all of them, once it is decided.
        ties: how many weights with this key are pruned.
        pruned: how many weights the layer's mask then removes in all.
        target_sparsity: share that the algorithm should remove, in [0, 1].
        epoch: of the server's answer.
    """

    key: int
    known_bits: int
    ties: int = 0
    pruned: int = 0
    target_sparsity: Optional[float] = None
    epoch: Optional[int] = None

    @classmethod
    def from_wire(cls, result: pb.MaskResult, bits: int) -> Threshold:
        """Of a weight whose elements have so many bits; DataLossError if it cannot be one."""
        wire = result.threshold
        known = wire.known_bits
        if known % ROUND_BITS or not 0 < known <= bits or wire.key >> known:
            raise DataLossError(
                f"layer {result.layer!r} got a threshold {wire.key:#x} of {known} bits for a "
                f"weight of {bits}"
            )
        return cls(wire.key, known, wire.ties, wire.pruned, result.target_sparsity, result.epoch)

    @property
    def checksum(self) -> int:
        """By which the server refers to it; see `StaleLayers.masks`."""
        return zlib.crc32(struct.pack("<QQQ", self.key, self.ties, self.pruned))

    def check(self, pruned: int) -> None:
        """Raises InternalError unless this is what a mask that was made of it removes in all."""
        if pruned != self.pruned:
            raise InternalError(
                f"the mask removes {pruned} weights and the server has counted {self.pruned}: the "
                "weight, or its mask, has changed since it was counted"
            )


class Rounds:
    """The rounds of one layer that have been counted so far: the content of a call."""

    def __init__(self, counter: Counter) -> None:
        self.bits = counter.bits
        self._counter = counter
        self._rounds: list[tuple[int, Digits]] = []  # with the bits that keys begin with

    def count(self, key: int = 0, known_bits: int = 0) -> None:
        """Counts the next round, given the upper bits of the threshold.

        Rounds under other bits than these, which the server no longer asks for, are dropped.
        """
        kept: list[tuple[int, Digits]] = []
        for prefix, digits in self._rounds[: known_bits // ROUND_BITS]:
            if prefix != key >> (known_bits - ROUND_BITS * len(kept)):
                break
            kept.append((prefix, digits))
        known = ROUND_BITS * len(kept)
        prefix = key >> (known_bits - known)
        self._rounds = [*kept, (prefix, self._counter.count(prefix, known))]

    def message(self) -> bytes:
        """A MagnitudeCounts."""
        found = [
            pb.MagnitudeCounts.Round(
                prefix=prefix,
                digits=np.diff(each.digits.astype(np.int64), prepend=0).tolist(),
                counts=each.counts.tolist(),
            )
            for prefix, each in self._rounds
        ]
        message: bytes = pb.MagnitudeCounts(rounds=found).SerializeToString()
        return message


class ArrayCounter:
    """A `Counter` of an array in memory.

    Args:
        weight: float16, float32 or float64, or a `Tensor` (bfloat16).
        kept: bool of its shape: the mask in force; None: all are kept.

    >>> weight = np.array([1, -2, 2, 3], dtype=np.float32)
    >>> [numbers.tolist() for numbers in ArrayCounter(weight).count(0, 0)]
    [[32512, 32768, 32896], [1, 2, 1]]
    """

    def __init__(self, weight: TensorLike, kept: Optional[npt.NDArray[np.bool_]] = None) -> None:
        self._tensor, self._kept = _checked(weight, kept)
        self.shape = self._tensor.shape
        self.bits = 8 * numpy_dtype(self._tensor.dtype).itemsize

    def count(self, key: int, known_bits: int) -> Digits:
        """See `Counter.count`."""
        histogram = np.zeros(DIGITS, np.int64)
        shift = self.bits - ROUND_BITS - known_bits
        for _, keys, kept in _parts(self._tensor, self._kept):
            counted = keys if kept is None else keys[kept]
            if known_bits:
                counted = counted[counted >> (self.bits - known_bits) == key]
            digits = (counted >> shift & (DIGITS - 1)).astype(np.intp)
            histogram += np.bincount(digits, minlength=DIGITS)
        infinite = INFINITE_DIGIT[self._tensor.dtype]
        if not known_bits and histogram[infinite:].any():
            raise self._not_finite(infinite)
        return Digits.of(histogram)

    def _not_finite(self, infinite: int) -> InvalidArgumentError:
        index = 0
        for start, keys, kept in _parts(self._tensor, self._kept):
            bad = keys >> (self.bits - ROUND_BITS) >= infinite
            found = np.flatnonzero(bad if kept is None else bad & kept)
            if found.size:
                index = start + int(found[0])
                break
        array = np.frombuffer(self._tensor.data, numpy_dtype(self._tensor.dtype))
        value = array[index : index + 1]
        if self._tensor.dtype == "bfloat16":
            value = (value.astype("<u4") << 16).view("<f4")
        return not_finite(index, float(value[0]))


def not_finite(index: int, value: float) -> InvalidArgumentError:
    """For a weight that cannot be counted; `index` in C order."""
    return InvalidArgumentError(f"element {index} is {value}; it must be finite")


def mask_from_threshold(
    weight: TensorLike, threshold: Threshold, kept: Optional[npt.NDArray[np.bool_]] = None
) -> Mask:
    """The mask of a weight that was counted with the same `kept`, once its threshold is decided.

    Raises InternalError when the weight has changed since.

    >>> weight = np.array([1, -2, 2, 3], dtype=np.float32)
    >>> key = 2 * int(np.float32(2).view(np.uint32))
    >>> threshold = Threshold(key, 32, ties=1, pruned=2)
    >>> mask_from_threshold(weight, threshold).to_numpy().tolist()
    [False, False, True, True]
    """
    tensor, flat = _checked(weight, kept)
    remaining = np.empty(math.prod(tensor.shape), np.bool_)
    ties = threshold.ties
    for start, keys, mask in _parts(tensor, flat):
        limit = keys.dtype.type(threshold.key)
        part = keys >= limit
        equal = keys == limit
        if mask is not None:
            part &= mask
            equal &= mask
        if ties:
            first = np.flatnonzero(equal)[:ties]
            part[first] = False
            ties -= first.size
        remaining[start : start + part.size] = part
    threshold.check(remaining.size - int(np.count_nonzero(remaining)))
    return Mask(
        np.packbits(remaining, bitorder="little"),
        tensor.shape,
        target_sparsity=threshold.target_sparsity,
        epoch=threshold.epoch,
    )


def _checked(
    weight: TensorLike, kept: Optional[npt.NDArray[np.bool_]]
) -> tuple[Tensor, Optional[npt.NDArray[np.bool_]]]:
    """The weight, and the mask in force in C order."""
    tensor = Tensor.of(weight, "weight")
    if kept is None:
        return tensor, None
    mask = np.asarray(kept)
    if mask.dtype != np.bool_ or mask.shape != tensor.shape:
        raise InvalidArgumentError(
            f"kept is {mask.dtype} of shape {mask.shape}; it must be bool of {tensor.shape}"
        )
    return tensor, mask.reshape(-1)


def _parts(
    tensor: Tensor, kept: Optional[npt.NDArray[np.bool_]]
) -> Iterator[tuple[int, npt.NDArray[Any], Optional[npt.NDArray[np.bool_]]]]:
    """For some elements at a time: the index of the first, their keys, and which are kept."""
    words = np.frombuffer(tensor.data, f"<u{numpy_dtype(tensor.dtype).itemsize}")
    for start in range(0, words.size, _PART):
        part = slice(start, start + _PART)
        yield start, words[part] << 1, None if kept is None else kept[part]
