"""Keras layers whose kernel is compressed in the forward pass.

A layer is compressed by giving it a subclass of its class in which the kernel, while `call` runs,
is the effective weight computed from the unchanged variable. Everywhere else it is the variable
itself: optimizers, savers and `layer.kernel` see the dense weight. Masks and quantized values are
variables outside of the layer, so compiled functions need not be traced again when they change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

import tensorflow as tf

from .._tensorflow.variables import WeightVariables

_STATES = "_nni_compression_states"
_ACTIVATIONS = "_nni_compression_activations"
_forward = threading.local()


class KernelVariables(WeightVariables):
    """The variables of a layer's kernel."""

    def effective(self, weight: Any) -> Any:
        replacements = getattr(_forward, "replacements", None)
        if replacements is not None:
            return tf.cast(replacements[0][self], weight.dtype)
        return super().effective(weight)


def variables_of(layer: Any, attribute: str) -> Optional[KernelVariables]:
    """The state of a layer's weight; None when it is not compressed."""
    states = layer.__dict__.get(_STATES, {})
    found: Optional[KernelVariables] = states.get(attribute)
    return found


def compress(layer: Any, attribute: str, state: KernelVariables) -> None:
    """Makes the layer's forward pass read the weight through `state`."""
    states = layer.__dict__.setdefault(_STATES, {})
    states[attribute] = state
    _set_class(layer, _compressed_layer_class(plain_layer_class(layer), tuple(sorted(states))))


def release(layer: Any, attribute: str) -> None:
    """Restores the layer's own class once no weight of it is compressed."""
    states = layer.__dict__[_STATES]
    del states[attribute]
    plain = plain_layer_class(layer)
    _set_class(layer, _compressed_layer_class(plain, tuple(sorted(states))) if states else plain)


def activations_of(layer: Any) -> dict[str, Callable[[Any], Any]]:
    """The functions that quantize the "output" and "input" of a compressed layer; mutable."""
    found: dict[str, Callable[[Any], Any]] = layer.__dict__.setdefault(_ACTIVATIONS, {})
    return found


@contextlib.contextmanager
def replacing(
    weights: Mapping[KernelVariables, Any],
    activations: Callable[[Any], Mapping[str, Callable[[Any], Any]]],
) -> Iterator[None]:
    """Inside, this thread's forward passes use other tensors as weights, and other functions on
    outputs and inputs: `activations` returns those of a layer, as `activations_of`.
    """
    _forward.replacements = (weights, activations)
    try:
        yield
    finally:
        _forward.replacements = None


def plain_layer_class(layer: Any) -> type:
    """The class that the layer has when it is not compressed."""
    cls = type(layer)
    plain: type = cls.__dict__.get("_nni_compression_plain", cls)
    return plain


def dense_weight(layer: Any, attribute: str) -> Any:
    """The variable itself, or None: not built, or no variable."""
    return _reader(plain_layer_class(layer), attribute)(layer)


def _set_class(layer: Any, cls: type) -> None:
    object.__setattr__(layer, "__class__", cls)  # bypasses the tracking of Keras


@functools.cache
def _compressed_layer_class(plain: type, attributes: tuple[str, ...]) -> type:
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
        # Copies made from a configuration are plain layers, as in files.
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
