"""Checksums over a weight's memory that show whether it changed."""

from __future__ import annotations

import functools

import numpy as np
import torch

from .masking import INTEGERS

_BLOCK_WORDS = 8192
# Blocks at a time, so that intermediate results stay in the cache, or use little GPU memory.
_CPU_BLOCKS = 32
_DEVICE_BLOCKS = 2048


def checksum_of(weight: torch.Tensor) -> torch.Tensor:
    """Integers on the weight's device that change with its bits; takes a pass over its memory.

    For each block of n words w of 32 bits, as signed numbers: sum of a[i] * w[i] for i < n, modulo
    2**64, with odd random a (Carter and Wegman, "Universal classes of hash functions", 1979). A
    block in which one word changed has another sum for certain, one in which many did, or changed
    places, almost surely. Words have half the bits of a sum because the highest bit of a factor
    counts as even or odd only: signs, which are in it, would cancel out in pairs.
    """
    flat = weight.detach().reshape(-1).contiguous().view(torch.uint8)
    if flat.numel() % 4:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 4))
    if flat.storage_offset() % 4:
        flat = flat.clone()
    words = flat.view(torch.int32)
    whole = words.numel() // _BLOCK_WORDS * _BLOCK_WORDS
    on_cpu = words.device.type == "cpu"
    blocks, at_once = (
        words[:whole].view(-1, _BLOCK_WORDS),
        _CPU_BLOCKS if on_cpu else _DEVICE_BLOCKS,
    )
    parts = [blocks[i : i + at_once] for i in range(0, len(blocks), at_once)]
    parts.append(words[whole:].view(1, -1))
    factors = _factors(words.device)
    return torch.cat([_sums(part, factors[: part.shape[1]], on_cpu) for part in parts])


def _sums(blocks: torch.Tensor, factors: torch.Tensor, on_cpu: bool) -> torch.Tensor:
    if on_cpu:  # other devices have no integer matrix product
        return torch.mv(blocks.to(torch.int64), factors)
    return (blocks * factors).sum(1)


@functools.cache
def _factors(device: torch.device) -> torch.Tensor:
    random = np.random.default_rng(0).integers(0, 2**64, _BLOCK_WORDS, np.uint64) | np.uint64(1)
    with torch.inference_mode(False):  # type: ignore[no-untyped-call]
        return torch.from_numpy(random.view(np.int64)).to(device)


def sample_of(weight: torch.Tensor) -> object:
    """The bits of some elements, if they can be read without synchronization; else None.

    Bits, because a NaN is not equal to itself.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    flat = weight.detach().view(-1)[:: max(1, weight.numel() // 16)]
    return tuple(flat.view(INTEGERS[weight.element_size()]).tolist())
