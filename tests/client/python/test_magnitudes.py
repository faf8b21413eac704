"""Counting magnitudes and making masks of thresholds, against sorting; without a server."""

from __future__ import annotations

import itertools
import struct
import types
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from nni_compression._calls.counting import Counting
from nni_compression._wire import compression_pb2 as pb
from nni_compression.values import magnitudes

DTYPES = ("float16", "bfloat16", "float32", "float64")
BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
SHAPES = [(1,), (7,), (3, 5), (4, 3, 2, 2), (50, 41)]
KINDS = ("normal", "ties", "zeros", "tiny", "wide", "equal")


def words_of(dtype: str, shape: tuple[int, ...], kind: str, seed: int = 0) -> Any:
    """The bits of a weight."""
    random = np.random.default_rng(seed)
    if kind == "tiny":  # subnormal numbers, whatever the type
        words = random.integers(0, 50, shape).astype(np.uint64)
        sign = random.integers(0, 2, shape).astype(np.uint64) << np.uint64(BITS[dtype] - 1)
        return (words | sign).astype(f"u{BITS[dtype] // 8}")
    numbers = {
        "normal": random.normal(size=shape),
        "ties": random.integers(-3, 4, shape) / 4,
        "zeros": random.choice([0.0, -0.0, 0.0, 1.5], shape),
        "wide": random.choice([1, -1], shape) * np.exp2(random.uniform(-14, 14, shape)),
        "equal": np.full(shape, -0.75),
    }[kind]
    if dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype).view(f"u{BITS[dtype] // 8}")


def weight_of(words: Any, dtype: str) -> Any:
    """What a client sends."""
    if dtype == "bfloat16":
        return nc.Tensor(words, dtype, words.shape)
    return words.view(dtype)


def pruned_by_sorting(words: Any, kept: Any, count: int) -> Any:
    """The mask that removes the `count` smallest weights that are kept, the first of equal ones."""
    keys = (words << 1).reshape(-1)
    order = [i for i in np.argsort(keys, kind="stable") if kept.reshape(-1)[i]]
    mask = kept.copy().reshape(-1)
    mask[order[:count]] = False
    return mask.reshape(words.shape)


def answer(message: pb.MagnitudeCounts, bits: int, count: int, removed: int) -> nc.Threshold:
    """What a server that removes `count` of the weights counted answers."""
    below, key = 0, 0
    for known, round_ in enumerate(message.rounds):
        assert round_.prefix == key
        assert (np.array(round_.counts) > 0).all()
        assert len(round_.counts) == len(round_.digits)
        digits = np.cumsum(round_.digits)
        assert (np.diff(digits) > 0).all()
        assert (digits < 1 << 16).all()
        sums = below + np.cumsum(round_.counts)
        at = min(int(np.searchsorted(sums, count, side="right")), len(sums) - 1)
        below = int(sums[at]) - round_.counts[at]
        key = key << 16 | int(digits[at])
        decided = 16 * (known + 1) == bits
    return nc.Threshold(
        key,
        16 * len(message.rounds),
        ties=count - below if decided else 0,
        pruned=removed + count if decided else 0,
    )


def cases() -> Iterator[Any]:
    for dtype, shape, kind in itertools.product(DTYPES, SHAPES, KINDS):
        yield pytest.param(dtype, shape, kind, id=f"{dtype}-{'x'.join(map(str, shape))}-{kind}")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "shape", "kind"), cases())
def test_the_masks_are_those_of_sorting(
    monkeypatch: pytest.MonkeyPatch, dtype: str, shape: tuple[int, ...], kind: str, masked: bool
) -> None:
    monkeypatch.setattr(magnitudes, "_PART", 100)  # more than one
    words = words_of(dtype, shape, kind)
    weight = weight_of(words, dtype)
    kept = np.random.default_rng(1).random(shape) < (0.6 if masked else 1.1)
    total = int(kept.sum())
    for count in sorted({0, 1, total // 3, total // 2, total - 1, total} & {*range(total + 1)}):
        counting = Counting({"fc": nc.ArrayCounter(weight, kept if masked else None)})
        calls = 0
        while requests := counting.requests():
            calls += 1
            (request,) = requests.values()
            assert request.header.role == pb.TENSOR_ROLE_COUNTS
            assert list(request.header.shape) == [len(request.data)]
            sent = pb.MagnitudeCounts.FromString(bytes(request.data))
            if total == 0:
                assert not any(round_.digits for round_ in sent.rounds)
                break
            told = answer(sent, BITS[dtype], count, words.size - total)
            exchange: Any = types.SimpleNamespace(results={"fc": told}, errors={})
            counting.take(exchange)
        else:
            assert calls == BITS[dtype] // 16
            threshold = counting.results["fc"]
            assert isinstance(threshold, nc.Threshold)
            mask = nc.mask_from_threshold(weight, threshold, kept if masked else None)
            expected = pruned_by_sorting(words, kept, count)
            np.testing.assert_array_equal(mask.to_numpy(), expected)
            assert mask.pruned == threshold.pruned


def test_a_round_counts_what_begins_with_the_bits_that_are_known() -> None:
    counter = nc.ArrayCounter(np.array([1, -1, 1 + 2**-23, 2, 0], np.float32))
    first = counter.count(0, 0)
    assert [first.digits.tolist(), first.counts.tolist()] == [[0, 0x7F00, 0x8000], [1, 3, 1]]
    second = counter.count(0x7F00, 16)
    assert [second.digits.tolist(), second.counts.tolist()] == [[0, 2], [2, 1]]
    assert counter.count(0x1234, 16).digits.size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_finite_is_named(
    monkeypatch: pytest.MonkeyPatch, dtype: str, value: float
) -> None:
    monkeypatch.setattr(magnitudes, "_PART", 4)
    words = words_of(dtype, (3, 5), "normal")
    bad = words_of(dtype, (3, 5), "normal")
    with np.errstate(all="ignore"):
        one = np.array([value], np.float32 if dtype == "bfloat16" else dtype)
    bad[2, 1] = one.view(np.uint32)[0] >> 16 if dtype == "bfloat16" else one.view(words.dtype)[0]
    bad[2, 3] = bad[2, 1]
    counting = Counting(
        {
            "a": nc.ArrayCounter(weight_of(words, dtype)),
            "b": nc.ArrayCounter(weight_of(bad, dtype)),
        }
    )
    assert [request.header.layer for request in counting.requests().values()] == ["a"]
    told = f'weight of layer "b": element 11 is {value}; it must be finite'
    assert counting.errors["b"].message == told
    kept = np.isfinite(np.zeros((3, 5)))
    kept[2] = False
    assert nc.ArrayCounter(weight_of(bad, dtype), kept).count(0, 0).counts.sum() == 10


def test_the_largest_finite_number_is_counted() -> None:
    for dtype in ("float16", "float32", "float64"):
        largest = np.array([np.finfo(dtype).max], dtype)
        assert nc.ArrayCounter(largest).count(0, 0).counts.tolist() == [1]


def test_a_weight_that_has_changed_since_it_was_counted_is_an_error() -> None:
    weight = np.arange(8, dtype=np.float32)
    threshold = nc.Threshold(2 * int(np.float32(3).view(np.uint32)), 32, ties=1, pruned=4)
    assert nc.mask_from_threshold(weight, threshold).pruned == 4
    weight[7] = 0
    with pytest.raises(nc.InternalError, match="removes 5 weights and the server has counted 4"):
        nc.mask_from_threshold(weight, threshold)


@pytest.mark.parametrize("kept", [np.ones(3, bool), np.ones((2, 2), np.uint8)])
def test_a_mask_that_does_not_fit_is_refused(kept: Any) -> None:
    with pytest.raises(nc.InvalidArgumentError, match=r"kept is .*; it must be bool of \(2, 2\)"):
        nc.ArrayCounter(np.ones((2, 2), np.float32), kept)


def test_rounds_that_no_longer_follow_are_counted_again() -> None:
    weight = np.array([1, 2, 3, 4], np.float64)
    counting = Counting({"fc": nc.ArrayCounter(weight)})

    def sent() -> list[tuple[int, int]]:
        (request,) = counting.requests().values()
        rounds = pb.MagnitudeCounts.FromString(bytes(request.data)).rounds
        return [(round_.prefix, sum(round_.counts)) for round_ in rounds]

    def take(key: int, known_bits: int) -> None:
        result = {"fc": nc.Threshold(key, known_bits)}
        exchange: Any = types.SimpleNamespace(results=result, errors={})
        counting.take(exchange)

    assert sent() == [(0, 4)]
    take(0x8000, 16)
    assert sent() == [(0, 4), (0x8000, 1)]
    take(0x80000000, 32)
    assert sent() == [(0, 4), (0x8000, 1), (0x80000000, 1)]
    take(0x8010, 16)  # another rank has changed something
    assert sent() == [(0, 4), (0x8010, 1)]
    take(0x80200000, 32)  # under other bits than those that were counted
    assert sent() == [(0, 4), (0x8020, 1)]


def test_a_threshold_that_is_never_decided_ends() -> None:
    counting = Counting({"fc": nc.ArrayCounter(np.ones(4, np.float16))})
    exchange: Any = types.SimpleNamespace(results={"fc": nc.Threshold(0, 0)}, errors={})
    for _ in range(4):
        counting.requests()
        counting.take(exchange)
    with pytest.raises(nc.InternalError, match="is not decided after 5 calls"):
        counting.take(exchange)


@pytest.mark.parametrize(
    "threshold", [(0, 0), (0, 8), (0, 24), (0, 64), (1 << 16, 16), (1 << 32, 32)]
)
def test_a_threshold_that_cannot_be_one_is_refused(threshold: tuple[int, int]) -> None:
    key, known_bits = threshold
    result = pb.MaskResult(layer="fc", threshold=pb.Threshold(key=key, known_bits=known_bits))
    with pytest.raises(nc.DataLossError, match="layer 'fc' got a threshold"):
        nc.Threshold.from_wire(result, 32)


def test_checksums_are_the_servers() -> None:
    threshold = nc.Threshold(1 << 63, 64, ties=2, pruned=3)
    assert threshold.checksum == zlib.crc32(struct.pack("<QQQ", 1 << 63, 2, 3))
    mask = nc.Mask.from_numpy([True, False, True])
    assert mask.checksum == zlib.crc32(b"\x05")
