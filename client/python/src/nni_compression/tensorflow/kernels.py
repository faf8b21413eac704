"""Keras layers whose kernel is compressed in the forward pass.

A layer is compressed by giving it a subclass of its class in which the kernel, while `call` runs,
is what is left of the untouched variable. Everywhere else it is the variable itself: optimizers,
savers and `layer.kernel` see the dense weight. Masks and quantized values are variables beside the
layer, so compiled functions need not be traced again when they change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

_STATES = "_nni_compression_states"
_ACTIVATIONS = "_nni_compression_activations"
_forward = threading.local()


class WeightState:
    """What stands between a layer's dense weight and the one that its forward pass uses.

    Args:
        shape: of the weight.
        dtype: of the variable.

    Attributes:
        pruner, quantizer: asked, before an eager forward pass, to make the state fresh.
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
        """Keeps everything, until a mask comes."""
        self.mask = self._variable(np.ones(self._shape, np.bool_))

    def add_values(self) -> None:
        """Lets the weight pass, until values come."""
        self.values = self._variable(np.zeros(self._shape, self._dtype))
        self.active = self._variable(np.array(False))
        self.inside = self._variable(np.ones(self._shape, np.bool_))

    def set_values(self, values: Any, inside: Any) -> None:
        """Puts quantized values in force; None lets the weight pass."""
        if values is not None:
            self.values.assign(values)
            self.inside.assign(inside)
        self.active.assign(values is not None)

    def snapshot(self) -> Callable[[], None]:
        """What makes this again what it is now."""
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
        replacements = getattr(_forward, "replacements", None)
        if replacements is not None:
            return tf.cast(replacements[0][self], weight.dtype)
        if self.values is not None:
            weight = straight_through(
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
        """What `effective` gives, of an array of the dense weight."""
        weight = self.quantized(dense)
        if self.mask is not None:
            weight = np.where(self.value(self.mask), weight, np.zeros((), weight.dtype))
        return weight

    def value(self, variable: Any) -> Any:
        """What is in force of `mask`, `values`, `inside` or `active`: an array."""
        return variable.numpy()

    def _variable(self, initial: Any) -> Any:
        with tf.init_scope():
            return tf.Variable(initial, trainable=False)


def straight_through(dense: Any, quantized: Any, inside: Any, in_force: Any) -> Any:
    """The quantized tensor if it is in force; its gradient is the dense one's where `inside`."""
    passes = tf.logical_or(inside, tf.logical_not(in_force))

    # All are arguments: in a graph, variables that are met on the way to others have to be known.
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


def state_of(layer: Any, attribute: str) -> Optional[WeightState]:
    """The state of a layer's weight; None when it is not compressed."""
    states = layer.__dict__.get(_STATES, {})
    found: Optional[WeightState] = states.get(attribute)
    return found


def install(layer: Any, attribute: str, state: WeightState) -> None:
    """Makes the layer's forward pass read the weight through `state`."""
    states = layer.__dict__.setdefault(_STATES, {})
    states[attribute] = state
    _set_class(layer, _compressed_class(plain_class(layer), tuple(sorted(states))))


def uninstall(layer: Any, attribute: str) -> None:
    """Gives the layer its own class back once no weight of it is compressed."""
    states = layer.__dict__[_STATES]
    del states[attribute]
    plain = plain_class(layer)
    _set_class(layer, _compressed_class(plain, tuple(sorted(states))) if states else plain)


def activations_of(layer: Any) -> dict[str, Callable[[Any], Any]]:
    """What quantizes the "output" and the "input" of a compressed layer; may be changed."""
    found: dict[str, Callable[[Any], Any]] = layer.__dict__.setdefault(_ACTIVATIONS, {})
    return found


@contextlib.contextmanager
def replacing(
    weights: Mapping[WeightState, Any],
    activations: Callable[[Any], Mapping[str, Callable[[Any], Any]]],
) -> Iterator[None]:
    """Inside, this thread's forward passes take other tensors for weights, and give and are given
    what other functions make of it: `activations` has those of a layer, as `activations_of`.
    """
    _forward.replacements = (weights, activations)
    try:
        yield
    finally:
        _forward.replacements = None


def plain_class(layer: Any) -> type:
    """The class that the layer has when it is not compressed."""
    cls = type(layer)
    plain: type = cls.__dict__.get("_nni_compression_plain", cls)
    return plain


def dense_weight(layer: Any, attribute: str) -> Any:
    """The variable itself, or None: not built, or no variable."""
    return _reader(plain_class(layer), attribute)(layer)


def _set_class(layer: Any, cls: type) -> None:
    object.__setattr__(layer, "__class__", cls)  # past the tracking of Keras


@functools.cache
def _compressed_class(plain: type, attributes: tuple[str, ...]) -> type:
    """The one subclass of `plain` in which these weights are compressed."""

    @functools.wraps(plain.call)  # type: ignore[attr-defined]
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tf.executing_eagerly():
            for state in self.__dict__[_STATES].values():
                state.refresh()
        replacements = getattr(_forward, "replacements", None)
        activations = (replacements[1] if replacements else activations_of)(self)
        if "input" in activations:
            args = tuple(map(activations["input"], args))
            if "inputs" in kwargs:
                kwargs["inputs"] = activations["input"](kwargs["inputs"])
        running = getattr(_forward, "layer", None)
        _forward.layer = self
        try:
            result = plain.call(self, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            _forward.layer = running
        return activations["output"](result) if "output" in activations else result

    members: dict[str, Any] = {
        "call": call,
        "_nni_compression_plain": plain,
        # Copies made of a configuration are plain layers, as files have them.
        "from_config": classmethod(lambda cls, config: plain.from_config(config)),  # type: ignore[attr-defined]
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    for attribute in attributes:
        members[attribute] = _compressed_property(plain, attribute)
    return type(plain.__name__, (plain,), members)


def _reader(plain: type, attribute: str) -> Callable[[Any], Any]:
    descriptor = inspect.getattr_static(plain, attribute, None)
    if isinstance(descriptor, property) and descriptor.fget is not None:
        return descriptor.fget
    return lambda layer: layer.__dict__.get(attribute)


def _compressed_property(plain: type, attribute: str) -> property:
    read = _reader(plain, attribute)

    def get(self: Any) -> Any:
        weight = read(self)
        if getattr(_forward, "layer", None) is not self:
            return weight
        return self.__dict__[_STATES][attribute].effective(tf.convert_to_tensor(weight))

    return property(get)
