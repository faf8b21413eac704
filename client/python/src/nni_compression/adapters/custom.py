"""Custom algorithms, which compute in the trainer, for any framework.

The session on the server is one of `custom_pruner` or `custom_quantizer`; its plan has the name and
the options of the algorithm, for reports.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Generic, Optional

import numpy as np

from ..errors import InvalidArgumentError
from ..values.masks import Mask
from .backend import W

if TYPE_CHECKING:
    from .compressor import Compressor

_PACKAGE = __name__.partition(".")[0] + "."
_RULE_KEYS = ("op_types", "op_names", "op_names_re", "exclude")
_PLAIN = (str, bool, int, float, type(None))


def read_rules(
    rules: Sequence[Mapping[str, Any]],
    options: Optional[Mapping[str, Any]],
    default_op_types: Optional[Sequence[str]],
) -> list[dict[str, Any]]:
    """The config_list with the class's defaults filled in.

    Raises InvalidArgumentError for keys and values that the class's `options`, if any, disallow.

    >>> read_rules([{"sparsity": 0.5}], {"sparsity": float, "seed": 0}, ["Linear"])
    [{'sparsity': 0.5, 'op_types': ['Linear'], 'seed': 0}]
    """
    read = []
    for i, rule in enumerate(rules):
        if not isinstance(rule, Mapping):
            raise InvalidArgumentError(f"config_list[{i}] is {rule!r}; it must be a dict")
        config = dict(rule)
        if default_op_types is not None:
            is_named = "op_names" in config or "op_names_re" in config
            types = config.get("op_types", () if is_named else ("default",))
            types = [types] if isinstance(types, str) else list(types)
            if "default" in types:
                types = [t for t in types if t != "default"] + list(default_op_types)
            if types:
                config["op_types"] = types
        if options is not None and not config.get("exclude"):
            _check_options(config, options, f"config_list[{i}]")
        read.append(config)
    return read


def _check_options(config: dict[str, Any], options: Mapping[str, Any], path: str) -> None:
    for key, value in config.items():
        if key in _RULE_KEYS:
            continue
        if key not in options:
            known = [*_RULE_KEYS, *options]
            close = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise InvalidArgumentError(
                f"{path} has the unknown key {key!r}; it must be one of {', '.join(known)}{hint}"
            )
        wanted = options[key] if isinstance(options[key], type) else type(options[key])
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise InvalidArgumentError(f"{path}.{key} is {value!r}; it must be a {wanted.__name__}")
    for key, default in options.items():
        if key not in config:
            if isinstance(default, type):
                raise InvalidArgumentError(
                    f"{path}.{key} is missing; it must be a {default.__name__}"
                )
            config[key] = default


def wire_rules(rules: Sequence[Mapping[str, Any]], implementation: str) -> list[dict[str, Any]]:
    """The rules as sent to the server; values that JSON cannot represent become text.

    >>> wire_rules([{"op_types": ["Linear"], "sparsity": 0.5}], "Mine")[0]["options"]
    {'sparsity': 0.5}
    """
    told = []
    for rule in rules:
        wire = {key: rule[key] for key in _RULE_KEYS if key in rule}
        if not rule.get("exclude"):
            own = {key: _plain(value) for key, value in rule.items() if key not in _RULE_KEYS}
            wire.update(implementation=implementation, options=own)
        told.append(wire)
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else repr(value)


def to_mask(value: Any, shape: Sequence[int], where: str) -> Mask:
    """The mask that a `calc_mask` returned, as an array; `where` begins error messages.

    Raises TypeError if it is not an array, ValueError for another shape or other numbers than 0, 1.
    """
    array = to_array(value, shape, where)
    if array.dtype != np.bool_:
        if not np.issubdtype(array.dtype, np.number):
            raise TypeError(f"{where} returned dtype {array.dtype}; it must be bool, or 0 and 1")
        bad = array[(array != 0) & (array != 1)]
        if bad.size:
            raise ValueError(
                f"{where} returned a mask with {bad[0].item()!r}; it must have 0 and 1 only"
            )
    return Mask.from_numpy(array.astype(np.bool_))


def to_values(value: Any, shape: Sequence[int], dtype: Any, where: str) -> np.ndarray[Any, Any]:
    """The quantized values that a `quantize_weight` returned; raises as `to_mask` does."""
    array = to_array(value, shape, where)
    if array.dtype != dtype:
        raise TypeError(f"{where} returned dtype {array.dtype}; it must be {np.dtype(dtype)}")
    return array


def to_array(value: Any, shape: Sequence[int], where: str) -> np.ndarray[Any, Any]:
    """The returned value as an array of that shape."""
    if value is None or not hasattr(value, "__array__"):
        raise TypeError(f"{where} returned {value!r:.80}; it must be a tensor of shape {shape}")
    array: np.ndarray[Any, Any] = np.asarray(value)
    if array.shape != tuple(shape):
        raise ValueError(f"{where} returned shape {array.shape}; it must be {tuple(shape)}")
    return array


class OwnAlgorithm(Generic[W]):
    """The methods of a subclass that compute in the trainer, for the weights of one binding.

    Args:
        owner: the compressor.
        method: the name of its method that computes.
        output_method: the method that quantizes outputs; None: they are not quantized.
    """

    def __init__(self, owner: Compressor, method: str, output_method: Optional[str] = None) -> None:
        self.name = type(owner).__name__
        self.quantizes_outputs = output_method is not None
        self._owner = owner
        self._method = method
        self._output_method = output_method
        self._thread: Optional[int] = None  # the one that computes

    def compute(self, weight: W) -> Any:
        """The method's result for a weight."""
        return self._call(self._method, weight, weight.tensor)

    def quantize_output(self, weight: W, output: Any) -> Any:
        """The output method's result for an output of a weight's layer."""
        assert self._output_method is not None
        return self._call(self._output_method, weight, output)

    def where(self, weight: W) -> str:
        """The beginning of messages about the result for a weight."""
        return f"{self.name}.{self._method} of layer {weight.name!r}"

    def where_output(self, weight: W) -> str:
        """The same for the output of its layer."""
        return f"{self.name}.{self._output_method} of layer {weight.name!r}"

    @property
    def is_running(self) -> bool:
        """Whether this thread computes."""
        return self._thread == threading.get_ident()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, this thread computes."""
        before, self._thread = self._thread, threading.get_ident()
        try:
            yield
        finally:
            self._thread = before

    def _call(self, method: str, weight: W, tensor: Any) -> Any:
        layer = weight.layer()
        rule = self._owner.plan.layers[weight.name].rule
        assert rule is not None
        config = self._owner.config_list[rule]
        compute = getattr(self._owner, method)
        return compute(tensor, config, op=weight.op, op_type=layer.op_type, op_name=layer.name)


def is_of_package(cls: type) -> bool:
    """Whether a class belongs to this package and not to a user."""
    return cls.__module__.startswith(_PACKAGE)


def followed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a subclass's `update_epoch` or `step` so that the base's is called, too."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._base_calls
        binding = self._lifecycle.binding
        if binding is None:  # the method may bind
            result = method(self, *args, **kwargs)
        else:
            result = binding.backend.call_own(method, self, args, kwargs)
        self._bound().tracker.forget()
        if self._base_calls == before:
            base = next(b for b in type(self).__mro__ if is_of_package(b))
            getattr(base, name)(self, *args, **kwargs)
        return result

    return call
