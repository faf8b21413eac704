"""Results of custom algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ..adapters import custom


def as_array(result: Any) -> Any:
    """A tensor as an array; bfloat16, in which numpy cannot compute, as float32."""
    if tf.is_tensor(result):
        result = np.asarray(tf.convert_to_tensor(result))
    wide = getattr(result, "dtype", None) == tf.bfloat16.as_numpy_dtype
    return result.astype(np.float32) if wide else result


def values_and_passes(
    results: Mapping[str, Any], own: custom.OwnAlgorithm[Any], weights: Mapping[str, Any]
) -> list[tuple[Any, Any, Any]]:
    """(weight, its quantized values, True wherever a gradient passes: everywhere) of each layer."""
    found = []
    for name, result in results.items():
        weight = weights[name]
        dtype = tf.as_dtype(weight.dtype).as_numpy_dtype
        values = custom.to_values(result, weight.layer().shape, dtype, own.where(weight))
        found.append((weight, values, np.ones(values.shape, np.bool_)))
    return found
