"""Masks and quantized values as variables, through which a forward pass reads a dense weight.

Compiled functions and graphs need not be traced again when they change.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf


class WeightVariables:
    """The mask and quantized values that turn a layer's dense weight into the effective one.

    Args:
        shape: of the weight.
        dtype: of the variable.

    Attributes:
        pruner, quantizer: called before an eager forward pass to refresh the state.
        mask: bool variable, True = kept; None without a pruner.
        values: variable of the quantized weight; None without a quantizer.
        active: bool variable: whether the values are in force.
        inside: bool variable: where no code was clamped, so that a gradient passes.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.pruner: Optional[Callable[[], None]] = None
        self.quantizer: Optional[Callable[[], None]] = None
        self.mask: Any = None
        self.values: Any = None
        self.active: Any = None
        self.inside: Any = None
        self._shape = shape
        self._dtype = dtype

    def refresh(self) -> None:
        """Makes mask and quantization those of the present weight."""
        for source in (self.quantizer, self.pruner):
            if source is not None:
                source()

    def add_mask(self) -> None:
        """Adds a mask variable that keeps all weights until a mask is set."""
        self.mask = self._variable(np.ones(self._shape, np.bool_))

    def add_values(self) -> None:
        """Adds variables for quantized values; the weight passes unchanged until they are set."""
        self.values = self._variable(np.zeros(self._shape, self._dtype))
        self.active = self._variable(np.array(False))
        self.inside = self._variable(np.ones(self._shape, np.bool_))

    def set_values(self, values: Any, inside: Any) -> None:
        """Sets the quantized values in force; None: the weight passes unchanged."""
        if values is not None:
            self.values.assign(values)
            self.inside.assign(inside)
        self.active.assign(values is not None)

    def snapshot(self) -> Callable[[], None]:
        """Returns a function that restores the present state."""
        before = dict(self.__dict__)
        variables = [v for v in (self.mask, self.values, self.active, self.inside) if v is not None]
        values = [(variable, self.value(variable)) for variable in variables]

        def restore() -> None:
            self.__dict__.update(before)
            for variable, value in values:
                self._put(variable, value)

        return restore

    def _put(self, variable: Any, value: Any) -> None:
        variable.assign(value)

    def effective(self, weight: Any) -> Any:
        """Quantized first, then masked: zeros stay zero. Differentiable in `weight`, a tensor."""
        if self.values is not None:
            weight = clamped_straight_through(
                weight,
                tf.cast(self.values.read_value(), weight.dtype),
                self.inside.read_value(),
                self.active.read_value(),
            )
        if self.mask is not None:
            weight = tf.where(self.mask, weight, tf.zeros([], weight.dtype))
        return weight

    def quantized(self, dense: Any) -> Any:
        """The quantized values, if any are in force; else `dense`, an array of the weight."""
        active = self.values is not None and self.value(self.active)
        return self.value(self.values) if active else dense

    def compressed(self, dense: Any) -> Any:
        """The result of `effective` for an array of the dense weight."""
        weight = self.quantized(dense)
        if self.mask is not None:
            weight = np.where(self.value(self.mask), weight, np.zeros((), weight.dtype))
        return weight

    def kept(self) -> Optional[np.ndarray[Any, Any]]:
        """The mask in force; None where there is no pruner."""
        if self.mask is None:
            return None
        mask: np.ndarray[Any, Any] = self.value(self.mask)
        return mask

    def value(self, variable: Any) -> Any:
        """The present value of `mask`, `values`, `inside` or `active`: an array."""
        return variable.numpy()

    def _variable(self, initial: Any) -> Any:
        with tf.init_scope():
            return tf.Variable(initial, trainable=False)


def clamped_straight_through(dense: Any, quantized: Any, inside: Any, in_force: Any) -> Any:
    """The quantized tensor if it is in force; its gradient is the dense one's where `inside`."""
    passes = tf.logical_or(inside, tf.logical_not(in_force))

    # All are arguments: in a graph, a custom gradient must not capture variables.
    @tf.custom_gradient  # type: ignore[misc]
    def apply(dense: Any, quantized: Any, in_force: Any, passes: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return tf.where(passes, upstream, tf.zeros([], upstream.dtype)), None, None, None

        return tf.where(in_force, quantized, dense), gradient

    return apply(dense, quantized, in_force, passes)


def replaced(value: Any, replacement: Any) -> Any:
    """The replacement; its gradient is the value's."""

    @tf.custom_gradient  # type: ignore[misc]
    def apply(value: Any, replacement: Any) -> Any:
        return tf.identity(replacement), lambda upstream: (upstream, None)

    return apply(value, replacement)
