"""Quantized weights computed in the trainer, with the quantization parameters of the service.

The arithmetic is float32 in the service's order of operations, so both give the same bits (DoReFa
to one code: the last bit of tanh differs between mathematical libraries).
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ..values.quantization import QuantizedTensor
from ..values.tensors import Tensor


def host(array: Any, dtype: str) -> Any:
    """A weight in the form that the client accepts; numpy itself lacks bfloat16."""
    if dtype == "bfloat16":
        return Tensor(array.view(np.uint16), "bfloat16", array.shape)
    return array


def array_range(weight: Any, channel_axis: Optional[int]) -> Any:
    """Smallest and largest element: float32 [2], or [2, C] for the slices along a dimension."""
    wide = weight.astype(np.float32)
    axes = None
    if channel_axis is not None:
        axes = tuple(axis for axis in range(wide.ndim) if axis != channel_axis)
    return np.stack([wide.min(axis=axes), wide.max(axis=axes)])


def values_and_inside(dense: Any, answer: QuantizedTensor) -> tuple[Any, Any]:
    """The quantized weight in its own dtype, and where a gradient passes, for an answer."""
    wide = dense.astype(np.float32)
    if answer.values is None:
        values = _saturated(_rounded(wide, answer), answer, dense.dtype).astype(dense.dtype)
    else:  # bfloat16 is received as uint16 bits
        values = np.asarray(answer.values).view(dense.dtype)
    return values, _inside(wide, answer)


def _rounded(weight: Any, answer: QuantizedTensor) -> Any:
    """The quantized values of a float32 weight."""
    assert answer.code_min is not None and answer.code_max is not None
    if answer.scale is None:
        squashed = np.tanh(weight)
        largest = np.abs(squashed).max()
        if largest == 0:
            return np.zeros_like(weight)
        levels = np.float32(answer.code_max)
        codes = np.rint((squashed / (largest * 2) + np.float32(0.5)) * levels)
        return codes * np.float32(2) / levels - np.float32(1)
    scale, zero_point = _scale_and_zero_point(weight, answer)
    codes = np.clip(_codes(weight, answer), answer.code_min, answer.code_max)
    with np.errstate(over="ignore"):  # see _saturated
        return (codes - zero_point) * scale


def _saturated(values: Any, answer: QuantizedTensor, dtype: Any) -> Any:
    """The values, clamped to the finite range of the type."""
    assert answer.code_min is not None and answer.code_max is not None
    largest = min(float(tf.as_dtype(dtype).max), float(np.finfo(np.float32).max))
    scale = 0.0 if answer.scale is None else float(np.max(answer.scale))
    if scale * (answer.code_max - answer.code_min) <= largest:
        return values
    return np.clip(values, np.float32(-largest), np.float32(largest))


def _codes(weight: Any, answer: QuantizedTensor) -> Any:
    """The codes of an affine formula, not clamped."""
    scale, zero_point = _scale_and_zero_point(weight, answer)
    if answer.rounding == "truncate":
        return np.trunc(weight / scale) + zero_point
    return np.rint(weight * (np.float32(1) / scale)) + zero_point


def _scale_and_zero_point(weight: Any, answer: QuantizedTensor) -> tuple[Any, Any]:
    """Both as float32, in a shape that broadcasts over the weight."""
    shape = [1] * weight.ndim
    if answer.channel_axis is not None:
        shape[answer.channel_axis] = -1
    found = (np.asarray(numbers, np.float32) for numbers in (answer.scale, answer.zero_point))
    scale, zero_point = (numbers.reshape(shape) if numbers.ndim else numbers for numbers in found)
    return scale, zero_point


def _inside(weight: Any, answer: QuantizedTensor) -> Any:
    """True where QAT does not clamp: bool of the weight's shape."""
    if answer.rounding != "half_even":
        return np.ones(weight.shape, np.bool_)
    codes = _codes(weight, answer)
    return (codes >= answer.code_min) & (codes <= answer.code_max)
