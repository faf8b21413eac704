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

from .adapter import split_results
from .binding import Binding, PrunerBinding, QuantizerBinding, W
from .errors import InvalidArgumentError
from .masks import Mask

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


def to_mask(value: Any, shape: Sequence[int], where: str) -> Mask:
    """The mask that a `calc_mask` returned, as an array; `where` begins error messages.

    TypeError for no array, ValueError for another shape or for numbers other than 0 and 1.
    """
    array = to_array(value, shape, where)
    if array.dtype != np.bool_:
        if not np.issubdtype(array.dtype, np.number):
            raise TypeError(f"{where} returned dtype {array.dtype}; it must be bool, or 0 and 1")
        bad = (array != 0) & (array != 1)
        if bad.any():
            raise ValueError(
                f"{where} returned a mask with {array[bad].flat[0]!r}; it must have 0 and 1 only"
            )
    return Mask.from_numpy(array.astype(np.bool_))


def to_array(value: Any, shape: Sequence[int], where: str) -> np.ndarray[Any, Any]:
    """What was returned, as an array of that shape."""
    if value is None or not hasattr(value, "__array__"):
        raise TypeError(f"{where} returned {value!r:.80}; it must be a tensor of shape {shape}")
    array: np.ndarray[Any, Any] = np.asarray(value)
    if array.shape != tuple(shape):
        raise ValueError(f"{where} returned shape {array.shape}; it must be {tuple(shape)}")
    return array


class _Computing(Binding[W]):
    """Computes here what others ask the service for."""

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


class CustomPruning(_Computing[W], PrunerBinding[W]):
    """Masks that are computed here, when a weight, the epoch or the step changed.

    The session gets those that are others than before.

    Attributes:
        compute: weight -> its mask.
    """

    compute: Callable[[W], Mask]

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = {w.name: w.token() for w in weights}
        masks = {w.name: self.compute(w) for w in weights}
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


class CustomQuantizing(_Computing[W], QuantizerBinding[W]):
    """Quantized weights that are computed here, when a weight, the epoch or the step changed.

    Attributes:
        compute: puts the quantized values of a weight in force.
    """

    compute: Callable[[W], None]

    def _ask(self, weights: Sequence[W]) -> None:
        tokens = {w.name: w.token() for w in weights}
        for weight in weights:
            self.compute(weight)
        stale = [w for w in weights if not self.tracker.status[w.name].answered]
        ranges = self._ranges(stale)
        _, error = split_results(lambda: self.tracker.session.quantize_range(ranges))
        for name, token in tokens.items():
            if error is None or name not in error.errors:
                self.tracker.answered(name, token)
        self._raise(error)
