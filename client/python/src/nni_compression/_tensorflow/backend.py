"""What Keras models and graphs have in common, for a compressor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from ..adapters.backend import Backend, Weight
from ..adapters.binding import Binding


class CountedWeight(Weight, Protocol):
    """A weight whose variable leaves no trace when it is written."""

    generation: int  # how often it was treated as changed


G = TypeVar("G", bound=CountedWeight)


class TensorFlowBackend(Backend[G]):
    """Base of the backends of Keras models and graphs."""

    asks_ahead = True

    def __init__(self, model: Any) -> None:
        self.model = model

    def weights_changed(self, binding: Binding[G]) -> None:
        for weight in binding.weights.values():
            weight.generation += 1

    def has(self, binding: Binding[G]) -> bool:
        return all(weight.is_taken(binding.role) for weight in binding.weights.values())


@contextlib.contextmanager
def needs_tf2onnx(path: str) -> Iterator[None]:
    """For the import of what writes the ONNX file `path`: says which package is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"onnx_path is {path!r}, which needs the package tf2onnx (pip install tf2onnx): {error}"
        ) from error
