"""The algorithms once more, in numpy, written from their formulas alone.

They are slow and plain on purpose: what the server answers is compared with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

F32 = np.float32


def prune_smallest(
    weight: np.ndarray[Any, Any], k: int, already: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """The mask (True = kept) that removes exactly k elements: the smallest by (|w|, index).

    `already` marks elements that are pruned before all others.
    """
    magnitude = np.abs(weight.astype(np.float64)).ravel()
    rank = np.ones(magnitude.size) if already is None else 1.0 - already.ravel()
    order = np.lexsort((np.arange(magnitude.size), magnitude, rank))
    kept = np.ones(magnitude.size, dtype=bool)
    kept[order[:k]] = False
    return kept.reshape(weight.shape)


def level(weight: np.ndarray[Any, Any], sparsity: float) -> np.ndarray[Any, Any]:
    """The level pruner's mask."""
    return prune_smallest(weight, int(float(weight.size) * float(sparsity)))


def joint_counts(
    weights: Mapping[str, np.ndarray[Any, Any]],
    sparsity: float,
    normalize: str = "none",
    *,
    min_sparsity: float = 0.0,
    max_sparsity: float = 1.0,
    already: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> dict[str, int]:
    """How many weights each layer loses when all are decided about together, in this order.

    Args:
        normalize: "none", or what magnitudes are divided by: "mean" or "l2" of the layer's; "lamp"
            (Lee et al. 2021): their squares, by the sum of those that are not ranked before.
        min_sparsity, max_sparsity: of each layer.
        already: marks elements that are removed in any case, and do not count otherwise.
    """
    total = int(float(sum(weight.size for weight in weights.values())) * sparsity)
    counts, candidates = {}, []
    for place, (name, weight) in enumerate(weights.items()):
        gone = np.zeros(weight.size, bool) if already is None else already[name].ravel()
        before = int(gone.sum())
        least = max(before, int(float(weight.size) * min(min_sparsity, sparsity)))
        most = max(before, int(float(weight.size) * max_sparsity))
        magnitude = np.sort(np.abs(weight.astype(np.float64)).ravel()[~gone])
        scores = _joint_scores(magnitude, normalize)
        ranked = enumerate(scores[least - before : most - before])
        candidates += [(score, place, rank, name) for rank, score in ranked]
        counts[name] = least
    for *_, name in sorted(candidates)[: max(0, total - sum(counts.values()))]:
        counts[name] += 1
    return counts


def _joint_scores(magnitude: np.ndarray[Any, Any], normalize: str) -> list[float]:
    """Of one layer's magnitudes, ascending."""
    if normalize == "none" or not magnitude.any():
        return list(magnitude)
    scaled = np.ldexp(magnitude, -np.frexp(magnitude[-1])[1])  # whose squares are finite
    if normalize == "mean":
        return list(scaled / (scaled.sum() / scaled.size))
    if normalize == "l2":
        return list(scaled / np.sqrt(np.square(scaled).sum()))
    squares = np.square(scaled)
    return list(squares / np.cumsum(squares[::-1])[::-1])


@dataclass
class Agp:
    """The AGP pruner of one layer (Zhu & Gupta 2017)."""

    final: float
    end: int
    initial: float = 0.0
    start: int = 0
    frequency: int = 1
    pruned: np.ndarray[Any, Any] | None = None

    def target(self, epoch: int) -> float:
        """The share to be removed at an epoch that renews."""
        if epoch >= self.end:
            return self.final
        span = ((self.end - self.start - 1) // self.frequency) * self.frequency
        done = 1 - (epoch - self.start) / span
        target = self.final + (self.initial - self.final) * done**3.0
        return min(max(target, self.initial), self.final)

    def mask(self, weight: np.ndarray[Any, Any], epoch: int) -> np.ndarray[Any, Any]:
        """The mask in force at this epoch, for the first weight that is shown at it."""
        if self.pruned is None:
            self.pruned = np.zeros(weight.shape, dtype=bool)
        if epoch >= self.start and (epoch - self.start) % self.frequency == 0:
            k = int(float(weight.size) * self.target(epoch))
            if k > self.pruned.sum():
                self.pruned = ~prune_smallest(weight, k, self.pruned)
        return ~self.pruned


@dataclass
class Codes:
    """A quantized weight: codes, their parameters, and the values they stand for."""

    codes: np.ndarray[Any, Any]
    scale: Any
    zero_point: Any
    values: np.ndarray[Any, Any]


def naive(weight: np.ndarray[Any, Any], scale_so_far: float = 0.0) -> Codes:
    """The naive quantizer: 8 bits, a scale that only grows."""
    wide = weight.astype(F32)
    scale = max(F32(scale_so_far), np.abs(wide).max() / F32(127))
    if scale == 0:
        return Codes(np.zeros(weight.shape, np.int8), scale, 0, np.zeros(weight.shape, F32))
    codes = np.clip(np.trunc(wide / scale), -127, 127).astype(np.int8)
    return Codes(codes, scale, 0, codes.astype(F32) * scale)


_SMALLEST = np.finfo(F32).tiny


def saturated(values: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """The values, with the largest finite number of the type in place of larger ones."""
    largest = F32(255 * 2.0**120) if dtype == "bfloat16" else np.finfo(dtype).max
    return np.clip(values, -largest, largest)


def qat(
    weight: np.ndarray[Any, Any],
    bits: int,
    symmetric: bool = False,
    channel_axis: int | None = None,
) -> Codes:
    """The QAT quantizer of weights (Jacob et al. 2018), in float32 throughout."""
    wide = weight.astype(F32)
    axes = None if channel_axis is None else _others(wide.ndim, channel_axis)
    low = np.minimum(F32(0), wide.min(axis=axes))
    high = np.maximum(F32(0), wide.max(axis=axes))
    if symmetric:
        top = 2 ** (bits - 1) - 1
        bounds = -top, top
        scale = np.maximum(np.maximum(-low, high) / F32(top), _SMALLEST)
        zero_point = np.zeros_like(scale)
    else:
        top = 2**bits - 1
        bounds = 0, top
        with np.errstate(over="ignore"):
            span = high - low
        exact = (high.astype(np.float64) - low) / top  # where the span overflows
        scale = np.where(np.isfinite(span), span / F32(top), exact.astype(F32))
        scale = np.maximum(scale, _SMALLEST)
        zero_point = np.clip(np.rint(-low / scale), 0, top)
    scale = np.where(high == low, F32(1), scale).astype(F32)
    zero_point = np.where(high == low, F32(0), zero_point).astype(F32)
    along = (lambda x: x) if axes is None else (lambda x: np.expand_dims(x, axes))
    inverse = F32(1) / scale
    codes = np.rint(wide * along(inverse)) + along(zero_point)
    codes = np.clip(codes, *map(F32, bounds))
    with np.errstate(over="ignore"):
        values = (codes - along(zero_point)) * along(scale)
    values = saturated(values, F32)
    return Codes(codes.astype(np.int32), scale, zero_point.astype(np.int32), values.astype(F32))


def qat_in_groups(
    weight: np.ndarray[Any, Any], bits: int, symmetric: bool, group_size: int
) -> Codes:
    """As `qat` for every `group_size` columns of every row of the weight, one after the other."""
    rows = weight.reshape(weight.shape[0], -1)
    parts = [
        qat(row[begin : begin + group_size], bits, symmetric)
        for row in rows
        for begin in range(0, rows.shape[1], group_size)
    ]
    return Codes(
        np.concatenate([part.codes for part in parts]).reshape(weight.shape),
        np.array([part.scale for part in parts], F32),
        np.array([part.zero_point for part in parts], np.int32),
        np.concatenate([part.values for part in parts]).reshape(weight.shape),
    )


def dorefa(weight: np.ndarray[Any, Any], bits: int) -> Codes:
    """The DoReFa quantizer (Zhou et al. 2016)."""
    t = np.tanh(weight.astype(F32))
    levels = F32(2**bits - 1)
    u = t / (F32(2) * np.abs(t).max()) + F32(0.5)
    codes = np.rint(u * levels)
    values = F32(2) * (codes / levels) - F32(1)
    return Codes(codes.astype(np.int32), None, None, values)


def _others(dimensions: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(dimensions) if i != axis)


def to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits, as uint16, of float32 values that bfloat16 can hold (others are cut)."""
    return (np.ascontiguousarray(values, F32).view(np.uint32) >> 16).astype(np.uint16)


def round_to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, F32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(F32)
