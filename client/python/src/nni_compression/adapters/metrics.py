"""The numbers of a compressor, as a flat dictionary for loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Optional

from ..values.statistics import Stats
from .backend import Backend
from .binding import Binding


def of(binding: Binding[Any], *, sqnr: bool) -> dict[str, float]:
    """See `Compressor.metrics`."""
    tracker, backend = binding.tracker, binding.backend
    found = {"epoch": float(tracker.epoch), "step": float(tracker.step)}
    if tracker.plan.coverage is not None:
        found["coverage"] = tracker.plan.coverage.share
    sizes = {name: math.prod(shape) for name, shape in binding.shapes.items()}
    found.update(_with_mean("sparsity", binding.sparsities(), sizes))
    calibration = binding.calibration()
    bits = {n: float(layer["weight_bits"]) for n, layer in calibration.items() if _has_bits(layer)}
    found.update(_with_mean("bits", bits, sizes))
    for name, layer in calibration.items():
        for key in ("weight_scale", "output_scale", "input_scale"):
            scale = _mean_scale(backend, layer.get(key))
            if scale is not None:
                found[f"{key}/{name}"] = scale
    if sqnr:
        found.update({f"sqnr/{name}": ratio for name, ratio in backend.sqnr(binding).items()})
    found.update(of_stats(tracker.session.stats))
    return found


def of_stats(stats: Stats) -> dict[str, float]:
    """Calls, bytes, and time spent waiting."""
    return {
        "calls": float(stats.calls),
        "retries": float(stats.retries),
        "bytes_sent": float(stats.bytes_sent),
        "bytes_received": float(stats.bytes_received),
        "seconds_waiting": stats.seconds_waiting,
    }


def _has_bits(layer: Mapping[str, Any]) -> bool:
    return bool(layer.get("weight_bits"))


def _with_mean(key: str, values: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Numbers of layers, and their mean over all elements of the weights."""
    if not values:
        return {}
    elements = sum(sizes[name] for name in values)
    mean = sum(value * sizes[name] for name, value in values.items()) / elements
    return {key: mean, **{f"{key}/{name}": value for name, value in values.items()}}


def _mean_scale(backend: Backend[Any], scale: Any) -> Optional[float]:
    """Of one scale, or of one for each channel or group."""
    if scale is None:
        return None
    if isinstance(scale, (int, float)):
        return float(scale)
    return float(backend.to_numpy(scale).mean())
