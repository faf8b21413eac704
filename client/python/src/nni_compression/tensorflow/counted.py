"""What bindings of graphs and of Keras models share: weights whose changes are counted."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from ..adapters import binding

W = TypeVar("W", bound=Any)


class CountedBinding(binding.Binding[W]):
    """Weights have a `generation`, counted up when they may have changed, and a `state` (see
    `kernels.WeightState`) with a slot for each kind of binding.
    """

    role = ""  # which slot of WeightState is this binding's: "pruner" or "quantizer"

    def weights_changed(self) -> None:
        """Treats all weights as changed."""
        for weight in self.weights.values():
            weight.generation += 1

    def leave(self, undo: contextlib.ExitStack) -> None:
        for weight in self.weights.values():
            undo.callback(setattr, weight.state, self.role, getattr(weight.state, self.role))
            setattr(weight.state, self.role, None)
