"""Algorithms of one's own that compute in the trainer, whatever the framework.

The session on the server is one of `custom_pruner` or `custom_quantizer`; what the algorithm is
called, and its options, go into the plan for reports.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np

from ..errors import InvalidArgumentError
from ..values.masks import Mask
from .binding import Binding, PrunerBinding, QuantizerBinding, W, Weight
from .tracker import split_results

_RULE_KEYS = ("op_types", "op_names", "exclude")
_PLAIN = (str, bool, int, float, type(None))


def read_rules(
    rules: Sequence[Mapping[str, Any]],
    options: Optional[Mapping[str, Any]],
    default_op_types: Optional[Sequence[str]],
) -> list[dict[str, Any]]:
    """The config_list with the class's defaults filled in.

    InvalidArgumentError for what `options`, if a class declares them, does not allow.

    >>> read_rules([{"sparsity": 0.5}], {"sparsity": float, "seed": 0}, ["Linear"])
    [{'sparsity': 0.5, 'op_types': ['Linear'], 'seed': 0}]
    """
    read = []
    for i, rule in enumerate(rules):
        if not isinstance(rule, Mapping):
            raise InvalidArgumentError(f"config_list[{i}] is {rule!r}; it must be a dict")
        config = dict(rule)
        if default_op_types is not None:
            types = config.get("op_types", () if "op_names" in config else ("default",))
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
    """What the server is told of the rules; values that are no JSON go as text.

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


def arguments(weight: Weight) -> Mapping[str, Any]:
    """The keywords that NNI gives an algorithm's methods."""
    layer = weight.layer()
    return {"op": weight.op, "op_type": layer.op_type, "op_name": layer.name}


def to_mask(value: Any, shape: Sequence[int], where: str) -> Mask:
    """The mask that a `calc_mask` returned, as an array; `where` begins error messages.

    TypeError for no array, ValueError for another shape or for numbers other than 0 and 1.
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
    """What was returned, as an array of that shape."""
    if value is None or not hasattr(value, "__array__"):
        raise TypeError(f"{where} returned {value!r:.80}; it must be a tensor of shape {shape}")
    array: np.ndarray[Any, Any] = np.asarray(value)
    if array.shape != tuple(shape):
        raise ValueError(f"{where} returned shape {array.shape}; it must be {tuple(shape)}")
    return array


class Computing(Binding[W]):
    """Computes here what others ask the service for.

    Attributes:
        compute: weight -> what the algorithm's method returned for it.
        where: weight -> how messages about that begin.
    """

    compute: Callable[[W], Any]
    where: Callable[[W], str]

    _thread: Optional[int] = None  # the one that computes

    def ensure_fresh(self, weight: W) -> None:
        """Not while computing: an algorithm may read the compressed weight of its `op`."""
        if self._thread != threading.get_ident():
            super().ensure_fresh(weight)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        before, self._thread = self._thread, threading.get_ident()
        try:
            with super()._computing():
                yield
        finally:
            self._thread = before

    def _results(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """Layer name -> what the algorithm returned, once nothing of it is symbolic."""
        return {w.name: self.compute(w) for w in weights}


class CustomPruning(Computing[W], PrunerBinding[W]):
    """Masks that are computed here, when a weight, the epoch or the step changed.

    The session gets those that are others than before.
    """

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = self._asking(weights)
        results = self._results(weights)
        masks = {w.name: self._mask_of(w, results[w.name]) for w in weights}
        before = self.packed_masks()
        changed = {
            name: mask
            for name, mask in masks.items()
            if name not in before or not np.array_equal(before[name].bits, mask.bits)
        }
        answers, error = split_results(lambda: self.tracker.session.calc_mask(changed))
        self.set_masks(answers)
        for name, token in tokens.items():
            if name in answers or name not in changed:
                self.tracker.answered(name, token)
        self._raise(error)

    def _mask_of(self, weight: W, result: Any) -> Mask:
        return to_mask(self._to_numpy(result), weight.layer().shape, self.where(weight))

    def _to_numpy(self, result: Any) -> Any:
        """A tensor of the framework's as an array with a dtype of numpy's; all else unchanged."""
        return result


class CustomQuantizing(Computing[W], QuantizerBinding[W]):
    """Quantized weights that are computed here, when a weight, the epoch or the step changed."""

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = self._asking(weights)
        self._set_values(self._results(weights))
        stale = [w for w in weights if not self.tracker.status[w.name].answered]
        ranges = self._ranges(stale)
        _, error = split_results(lambda: self.tracker.session.quantize_range(ranges))
        for name, token in tokens.items():
            if error is None or name not in error.errors:
                self.tracker.answered(name, token)
        self._raise(error)

    def _set_values(self, results: Mapping[str, Any]) -> None:
        """Puts in force, by layer name, what the algorithm returned.

        TypeError and ValueError, before anything is changed, for what are no values of a weight.
        """
        raise NotImplementedError
