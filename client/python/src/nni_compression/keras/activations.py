"""Outputs and inputs of a Keras layer: their min/max observer, and their quantized values.

The bits are those of `torch.fake_quantize_per_tensor_affine`; gradients use a straight-through
estimator and are zero where a value was clamped.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._tensorflow.variables import clamped_straight_through
from ..values.quantization import QuantizedTensor

NOTHING = (-np.inf, -np.inf)  # seen


class KerasActivation:
    """The outputs, or the inputs, of a layer.

    The observed range and the quantization parameters are variables, so compiled functions need not
    be traced again when they change. Until an answer is set, numbers pass unchanged.

    Attributes:
        seen: [-minimum, maximum] since `forget`, a float32 variable; `NOTHING` when none was seen.
    """

    def __init__(self) -> None:
        with tf.init_scope():
            self.seen = tf.Variable(np.array(NOTHING, np.float32), trainable=False)
            # Scale, its reciprocal, zero point, smallest and largest code.
            self._numbers = tf.Variable(np.ones(5, np.float32), trainable=False)
            self._active = tf.Variable(np.array(False), trainable=False)
        self._layer = _layer_class()(self)

    def __call__(self, value: Any) -> Any:
        """The quantized tensor; values that are not floating-point tensors pass unchanged.

        In training the range is observed: one range per step, however often the layer runs.
        """
        if not isinstance(value, tf.Tensor) or not value.dtype.is_floating:
            return value
        return self._layer(value)

    def note(self, value: Any, training: Any) -> None:
        """Extends the range by the numbers of a tensor, if `training`."""
        new = tf.stack([-tf.reduce_min(value), tf.reduce_max(value)])
        new = tf.where(tf.reduce_any(tf.math.is_nan(value)), tf.constant(np.nan, new.dtype), new)
        new, seen = tf.cast(new, tf.float32), self.seen.read_value()
        bad = tf.logical_or(tf.math.is_nan(new), tf.math.is_nan(seen))
        both = tf.where(bad, np.float32(np.nan), tf.maximum(seen, new))
        self.seen.assign(tf.where(tf.cast(training, tf.bool), both, seen))

    def forget(self) -> None:
        """Begins a new range."""
        self.seen.assign(NOTHING)

    def set_answer(self, answer: Optional[QuantizedTensor]) -> None:
        """Sets scale and zero point; None, or an answer without numbers: values pass unchanged."""
        active = answer is not None and not answer.unquantized
        if answer is not None and active:
            assert answer.scale is not None and answer.zero_point is not None
            scale = np.float32(answer.scale)
            numbers = (scale, 1 / scale, answer.zero_point, answer.code_min, answer.code_max)
            self._numbers.assign(np.array(numbers, np.float32))
        self._active.assign(active)

    def snapshot(self) -> Callable[[], None]:
        """Returns a function that restores the present state."""
        variables = (self.seen, self._numbers, self._active)
        values = [variable.numpy() for variable in variables]

        def restore() -> None:
            for variable, value in zip(variables, values):
                variable.assign(value)

        return restore

    def quantized(self, value: Any) -> Any:
        """The tensor quantized with the present parameters."""
        scale, inverse, zero_point, smallest, largest = tf.unstack(self._numbers.read_value())
        codes = tf.round(tf.cast(value, tf.float32) * inverse) + zero_point
        inside = tf.logical_and(codes >= smallest, codes <= largest)
        values = (tf.clip_by_value(codes, smallest, largest) - zero_point) * scale
        values = tf.cast(values, value.dtype)
        return clamped_straight_through(value, values, inside, self._active.read_value())


@functools.cache
def _layer_class() -> Any:
    class Quantized(tf.keras.layers.Layer):  # type: ignore[misc]
        """A layer, because Keras tells layers whether the one around them is training."""

        def __init__(self, activation: KerasActivation) -> None:
            super().__init__(autocast=False)
            self._activation = activation

        def call(self, value: Any, training: Any = None) -> Any:
            if training is not None and training is not False:
                self._activation.note(value, training)
            return self._activation.quantized(value)

    return Quantized
