"""Histograms of magnitudes, and the masks made of thresholds, on the device that has the weight.

As `values.magnitudes`, whose keys have a bit more than PyTorch's integers: here magnitudes are the
bits without the sign, so that those of a key are shifted by one less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import torch

from ..values.magnitudes import (
    DIGITS,
    INFINITE_DIGIT,
    ROUND_BITS,
    Digits,
    Threshold,
    not_finite,
)
from .masking import INTEGERS
from .transfer import DTYPES

# Elements at a time, so that intermediate results stay in the cache, or use little GPU memory.
_CPU_PART = 1 << 20
_DEVICE_PART = 1 << 24


class TorchCounter:
    """A `Counter` of a weight that stays on its device.

    Args:
        weight: of a dtype that can be sent.
        kept: bool of its shape and device: the mask in force; None: all are kept.
    """

    def __init__(self, weight: torch.Tensor, kept: Optional[torch.Tensor]) -> None:
        self._weight, self._kept = weight, kept
        self.shape = tuple(weight.shape)
        self.bits = 8 * weight.element_size()
        self._infinite = INFINITE_DIGIT[DTYPES[weight.dtype]]

    def count(self, key: int, known_bits: int) -> Digits:
        """See `Counter.count`."""
        found = Digits.of(self.histogram(key, known_bits).cpu().numpy())
        if not known_bits and (found.digits >= self._infinite).any():
            raise not_finite(*self.first_not_finite())
        return found

    def histogram(self, key: int, known_bits: int) -> torch.Tensor:
        """The same as numbers of weights by digit: int64 [65536]."""
        histogram = torch.zeros(DIGITS, dtype=torch.int64, device=self._weight.device)
        shift = self.bits - ROUND_BITS - known_bits
        for _, magnitudes, kept in _parts(self._weight, self._kept):
            counted = magnitudes if kept is None else magnitudes[kept]
            if known_bits:
                counted = counted[_upper(counted, self.bits - known_bits) == key]
            histogram += torch.bincount(_upper(counted, shift) & (DIGITS - 1), minlength=DIGITS)
        return histogram

    def first_not_finite(self) -> tuple[int, float]:
        """The first weight that is not finite, with its index in C order; -1 if all are."""
        for start, magnitudes, kept in _parts(self._weight, self._kept):
            bad = _upper(magnitudes, self.bits - ROUND_BITS) >= self._infinite
            found = (bad if kept is None else bad & kept).nonzero()
            if len(found):
                index = start + int(found[0])
                return index, float(self._weight.reshape(-1)[index])
        return -1, 0.0


def mask_from_threshold(
    weight: torch.Tensor, threshold: Threshold, kept: Optional[torch.Tensor]
) -> torch.Tensor:
    """The mask of a weight that was counted with the same `kept`: bool of its shape and device.

    Raises InternalError when the weight has changed since.
    """
    mask = mask_above(weight, threshold.key, threshold.ties, kept)
    threshold.check(mask.numel() - int(mask.sum()))
    return mask


def ties_with(weight: torch.Tensor, key: int, kept: Optional[torch.Tensor]) -> int:
    """How many of the weights that `kept` keeps have this key."""
    equal = (
        magnitudes == key >> 1 if mask is None else (magnitudes == key >> 1) & mask
        for _, magnitudes, mask in _parts(weight, kept)
    )
    return sum(int(part.sum()) for part in equal)


def mask_above(
    weight: torch.Tensor, key: int, ties: int, kept: Optional[torch.Tensor]
) -> torch.Tensor:
    """What remains of `kept` without smaller keys and without the first `ties` with this key."""
    limit = key >> 1
    remaining = torch.empty(weight.numel(), dtype=torch.bool, device=weight.device)
    for start, magnitudes, mask in _parts(weight, kept):
        part = magnitudes >= limit
        if mask is not None:
            part &= mask
        if ties:
            equal = magnitudes == limit
            first = (equal if mask is None else equal & mask).nonzero()[:ties, 0]
            part[first] = False
            ties -= len(first)
        remaining[start : start + len(part)] = part
    return remaining.reshape(weight.shape)


def _parts(
    weight: torch.Tensor, kept: Optional[torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor, Optional[torch.Tensor]]]:
    """For some elements at a time, in C order: the index of the first, the magnitudes as integers,
    and which are kept.
    """
    bits = 8 * weight.element_size()
    words = weight.reshape(-1).view(INTEGERS[weight.element_size()])
    flat = None if kept is None else kept.reshape(-1)
    size = _CPU_PART if weight.device.type == "cpu" else _DEVICE_PART
    for start in range(0, len(words), size):
        magnitudes = words[start : start + size] & ((1 << (bits - 1)) - 1)
        if bits == ROUND_BITS:
            magnitudes = magnitudes.to(torch.int32)  # digits have as many bits
        yield start, magnitudes, None if flat is None else flat[start : start + size]


def _upper(magnitudes: torch.Tensor, shift: int) -> torch.Tensor:
    """The keys without so many lower bits; without any, the upper bits may be lost."""
    return magnitudes >> (shift - 1) if shift else magnitudes << 1
