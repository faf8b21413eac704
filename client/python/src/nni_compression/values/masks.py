"""Masks: one bit a weight."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgumentError


class Mask:
    """Which weights of a layer are kept; immutable.

    Args:
        bits: uint8 [ceil(n / 8)]; bit 0 of byte 0 is element 0 in C order, 1 = kept. Bits after
            the last element are 0. Referred to, not copied.
        shape: the weight's.
        target_sparsity: share that the algorithm should remove, in [0, 1]; None when unknown.
        epoch: of the server's answer; None when unknown.

    Raises InvalidArgumentError when the bits do not fit the shape.

    >>> mask = Mask.from_numpy(np.array([[True, False], [True, True]]))
    >>> mask.sparsity, mask.shape
    (0.25, (2, 2))
    >>> mask.to_numpy().tolist()
    [[True, False], [True, True]]
    """

    __slots__ = ("_pruned", "bits", "epoch", "shape", "target_sparsity")

    def __init__(
        self,
        bits: Any,
        shape: Sequence[int],
        *,
        target_sparsity: Optional[float] = None,
        epoch: Optional[int] = None,
    ) -> None:
        array = np.asarray(memoryview(bits), dtype=np.uint8).reshape(-1)
        self.shape: tuple[int, ...] = tuple(int(size) for size in shape)
        self.target_sparsity = target_sparsity
        self.epoch = epoch
        self.bits: npt.NDArray[np.uint8] = array.view()
        self.bits.flags.writeable = False
        self._pruned: Optional[int] = None
        n = self.size
        if array.size != (n + 7) // 8:
            raise InvalidArgumentError(
                f"mask has {array.size} bytes; shape {self.shape} takes {(n + 7) // 8}"
            )
        if n % 8 and array[-1] >> (n % 8):
            raise InvalidArgumentError(
                f"mask has bits set after its last element; they must be 0 (shape {self.shape})"
            )

    @classmethod
    def from_numpy(cls, kept: npt.ArrayLike) -> Mask:
        """Packs an array of booleans (or of 0 and 1), True = kept, of the weight's shape."""
        array = np.asarray(kept)
        if array.dtype != np.bool_:
            other = ((array != 0) & (array != 1)).reshape(-1)
            if other.any():
                index = int(np.argmax(other))
                raise InvalidArgumentError(
                    f"mask has {array.reshape(-1)[index]} at flat index {index}; "
                    "its elements must be 0 and 1, or booleans"
                )
            array = array.astype(np.bool_)
        return cls(np.packbits(array.reshape(-1), bitorder="little"), array.shape)

    def to_numpy(self) -> npt.NDArray[np.bool_]:
        """A new boolean array of the weight's shape, True = kept."""
        flat = np.unpackbits(self.bits, count=self.size, bitorder="little")
        return flat.view(np.bool_).reshape(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def pruned(self) -> int:
        """Number of elements removed."""
        if self._pruned is None:
            self._pruned = self.size - int(_POPCOUNT[self.bits].sum(dtype=np.int64))
        return self._pruned

    @property
    def sparsity(self) -> float:
        """Share of elements removed, in [0, 1]."""
        return self.pruned / self.size if self.size else 0.0

    @property
    def checksum(self) -> int:
        """By which the server refers to it; see `StaleLayers.masks`."""
        return zlib.crc32(self.bits.data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, sparsity={self.sparsity:.4g})"


_POPCOUNT: npt.NDArray[np.uint8] = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)
