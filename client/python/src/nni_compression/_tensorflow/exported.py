"""The tensors of a model for an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..adapters.binding import Binding
from . import rounding


def exported(
    binding: Binding[Any], arrays: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """See `Backend.exported`.

    Args:
        arrays: name of a variable -> the dense array in it.
        weights: name of a variable -> its weight, for those that are compressed.
    """
    tensors, names = {}, {}
    for name, array in arrays.items():
        sent = name
        if name in weights and weights[name].name in binding.weights:
            sent = weights[name].name
            names[sent] = name
            array = _sent(binding, weights[name], array)
        elif name in weights:
            array = weights[name].state.compressed(array)
        tensors[sent] = rounding.host(array, tf.as_dtype(array.dtype).name)
    return tensors, names


def _sent(binding: Binding[Any], weight: Any, dense: Any) -> Any:
    """The tensor from which the server computes the compressed weight."""
    if binding.role == "pruner":
        return weight.state.quantized(dense)
    # The server cannot compute the values of a custom algorithm.
    return dense if binding.own is None else weight.state.compressed(dense)
