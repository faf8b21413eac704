"""Calls for masks, as benchmarks time them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import nni_compression as nc
from harness import seconds


def seconds_of_masks(
    client: nc.Client,
    algorithm: str,
    rule: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    op_type: str = "Linear",
    masks: dict[str, np.ndarray] | None = None,
) -> float:
    """Seconds from weights, which the server does not know, to bool arrays, in one call.

    Args:
        arrays: layer -> its weight, of which one number is changed.
        masks: gets the bool arrays.
    """
    for array in arrays.values():
        array.flat[0] += 1e-3
    layers = [nc.Layer(name=n, op_type=op_type, shape=a.shape) for n, a in arrays.items()]
    found = {} if masks is None else masks

    def call() -> None:
        found.update({name: m.to_numpy() for name, m in session.calc_mask(arrays).items()})

    with client.bind_model(algorithm, [rule], layers=layers, framework="pytorch") as session:
        return seconds(call)
