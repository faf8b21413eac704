"""Search spaces for NNI's tuners, and configurations from what they draw.

`pruning_space` and `quantization_space` write a search space for a model's layers, which
`nni_compression.torch.layers` finds; `pruning_choice` and `quantization_choice` turn a parameter
set into an algorithm and its config_list. They work on plain dictionaries and need no NNI, so any
tuner can be used.

Inside a trial, sessions carry the labels of `trial_labels`, and `report_final_result` keeps the
trial's result with its session, for `compressionctl experiment`. A trial that calls
`end_with_parent` closes its sessions and ends when NNI has killed its shell.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Protocol, Union

from ._lifetime.trial import end_with_parent, trial_labels
from .errors import InvalidArgumentError, UnimplementedError
from .values.plan import Layer

__all__ = [
    "Choice",
    "end_with_parent",
    "pruning_choice",
    "pruning_space",
    "quantization_choice",
    "quantization_space",
    "report_final_result",
    "trial_labels",
]

PRUNE_METHOD = "prune_method"
QUANTIZE_METHOD = "quantize_method"

# The option that a pruner's share goes to, where it is not "sparsity".
_SPARSITY_OPTION = {"agp": "final_sparsity"}
_BITS = (1, 16)


class Choice(NamedTuple):
    """What a tuner has drawn: an algorithm and its config_list, one rule for each layer."""

    algorithm: str
    config_list: list[dict[str, Any]]


class Reporter(Protocol):
    """A compressor or a session."""

    def report(self, results: Mapping[str, float], /) -> None: ...


def report_final_result(reporter: Reporter, result: Union[float, Mapping[str, float]]) -> None:
    """Reports a trial's result to NNI, and keeps it with the trial's session.

    Args:
        reporter: a compressor, or a session, that has not been closed.
        result: as `nni.report_final_result` takes it: a number, or a dict with the one that the
            tuner uses as "default".
    """
    keep_results(reporter, result if isinstance(result, Mapping) else {"default": result})
    importlib.import_module("nni").report_final_result(result)


def keep_results(reporter: Reporter, results: Mapping[str, float]) -> None:
    """Keeps results with a session, if its server is not too old for that.

    Those that are not finite, of a trial that diverged, are the tuner's to judge; none has a place
    in a comparison.
    """
    kept = {name: value for name, value in results.items() if not _is_nan_or_infinite(value)}
    with contextlib.suppress(UnimplementedError):
        reporter.report(kept)


def pruning_space(
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("agp", "level"),
    sparsity: tuple[float, float] = (0.1, 0.9),
    bounds: Optional[Mapping[str, tuple[float, float]]] = None,
) -> dict[str, Any]:
    """NNI's search space of an algorithm and a sparsity for each layer.

    Args:
        layers: of the model. Those whose weight has two or more dimensions are searched.
        algorithms: pruners to choose from.
        sparsity: least and largest share of a layer's weights to remove, in [0, 1].
        bounds: layer name -> `sparsity` of that layer, where it is another.

    Returns ``{"prune_method": ...}``, a nested choice; it may be merged with other spaces.

    >>> pruning_space([Layer("fc", "Linear", (10, 5))], algorithms=["agp"])
    {'prune_method': {'_type': 'choice', '_value': [{'_name': 'agp', 'fc': {'_type': 'uniform', \
'_value': [0.1, 0.9]}}]}}
    """
    names = _searched(layers, bounds)
    drawn = {name: _uniform(name, (bounds or {}).get(name, sparsity)) for name in names}
    return _nested(PRUNE_METHOD, algorithms, drawn)


def quantization_space(
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("qat", "dorefa"),
    bits: Sequence[int] = (2, 4, 8),
    choices: Optional[Mapping[str, Sequence[int]]] = None,
) -> dict[str, Any]:
    """NNI's search space of an algorithm and a number of bits for each layer.

    Args:
        layers: of the model. Those whose weight has two or more dimensions are searched.
        algorithms: quantizers to choose from.
        bits: what to choose from for every layer.
        choices: layer name -> `bits` of that layer, where they are others.

    Returns ``{"quantize_method": ...}``, a nested choice; it may be merged with other spaces.
    """
    names = _searched(layers, choices)
    drawn = {}
    for name in names:
        values = [_bits(name, value) for value in (choices or {}).get(name, bits)]
        if not values:
            raise InvalidArgumentError(f"there are no bits for layer {name!r} to choose from")
        drawn[name] = {"_type": "choice", "_value": values}
    return _nested(QUANTIZE_METHOD, algorithms, drawn)


def pruning_choice(
    parameters: Mapping[str, Any],
    *,
    options: Optional[Mapping[str, Mapping[str, Any]]] = None,
    layers: Optional[Iterable[Layer]] = None,
) -> Choice:
    """The pruner and its config_list that a tuner has drawn from a `pruning_space`.

    Args:
        parameters: as `nni.get_next_parameter()` gives them; other keys are left alone.
        options: algorithm -> further options of its rules, such as AGP's `end_epoch`.
        layers: of the model, against which the names are checked when given.

    Raises InvalidArgumentError that names what is wrong. The server checks the whole configuration
    when the model is bound.

    >>> pruning_choice({"prune_method": {"_name": "agp", "fc": 0.7}},
    ...                options={"agp": {"start_epoch": 0, "end_epoch": 10}})
    Choice(algorithm='agp', config_list=[{'op_names': ['fc'], 'final_sparsity': 0.7, \
'start_epoch': 0, 'end_epoch': 10}])
    """
    algorithm, drawn = _drawn(parameters, PRUNE_METHOD, layers)
    option = _SPARSITY_OPTION.get(algorithm, "sparsity")
    return _choice(algorithm, option, {n: _share(n, v) for n, v in drawn.items()}, options)


def quantization_choice(
    parameters: Mapping[str, Any],
    *,
    options: Optional[Mapping[str, Mapping[str, Any]]] = None,
    layers: Optional[Iterable[Layer]] = None,
) -> Choice:
    """The quantizer and its config_list that a tuner has drawn from a `quantization_space`.

    Arguments and errors are those of `pruning_choice`.

    >>> quantization_choice({"quantize_method": {"_name": "qat", "fc": 4}})
    Choice(algorithm='qat', config_list=[{'op_names': ['fc'], 'quant_bits': 4}])
    """
    algorithm, drawn = _drawn(parameters, QUANTIZE_METHOD, layers)
    return _choice(algorithm, "quant_bits", {n: _bits(n, v) for n, v in drawn.items()}, options)


def _searched(layers: Iterable[Layer], named: Optional[Mapping[str, Any]]) -> list[str]:
    names = [layer.name for layer in layers if len(layer.shape) > 1]
    if not names:
        raise InvalidArgumentError("no layer has a weight with two or more dimensions")
    _check_names(named or {}, names)
    return names


def _check_names(given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidArgumentError(
            f"layers {unknown} are not among those of the model: {known[:20]}"
        )


def _nested(key: str, algorithms: Sequence[str], drawn: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(algorithms, str) or not algorithms:
        raise InvalidArgumentError(f"algorithms is {algorithms!r}; it must be a list of names")
    return {key: {"_type": "choice", "_value": [{"_name": name, **drawn} for name in algorithms]}}


def _uniform(name: str, bounds: tuple[float, float]) -> dict[str, Any]:
    low, high = (_share(name, bound) for bound in bounds)
    if low > high:
        raise InvalidArgumentError(f"the bounds of layer {name!r} are {low} > {high}")
    return {"_type": "uniform", "_value": [low, high]}


def _share(name: str, value: Any) -> float:
    if _is_number(value) and 0 <= value <= 1:
        return float(value)
    raise InvalidArgumentError(f"the sparsity of layer {name!r} is {value!r}; it must be in [0, 1]")


def _is_nan_or_infinite(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        return not math.isfinite(value)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _bits(name: str, value: Any) -> int:
    low, high = _BITS
    if _is_number(value) and low <= value <= high and value == int(value):
        return int(value)
    raise InvalidArgumentError(
        f"the bits of layer {name!r} are {value!r}; they must be a whole number in [{low}, {high}]"
    )


def _drawn(
    parameters: Mapping[str, Any], key: str, layers: Optional[Iterable[Layer]]
) -> tuple[str, dict[str, Any]]:
    method = parameters.get(key) if isinstance(parameters, Mapping) else None
    if not isinstance(method, Mapping) or not isinstance(method.get("_name"), str):
        raise InvalidArgumentError(
            f"parameters is {parameters!r}; it must have {key!r} with an algorithm's '_name'"
        )
    drawn = {name: value for name, value in method.items() if name != "_name"}
    if not drawn:
        raise InvalidArgumentError(f"{key!r} is {method!r}; it must have a value for each layer")
    if layers is not None:
        _check_names(drawn, [layer.name for layer in layers])
    return method["_name"], drawn


def _choice(
    algorithm: str,
    option: str,
    drawn: Mapping[str, Any],
    options: Optional[Mapping[str, Mapping[str, Any]]],
) -> Choice:
    further = dict((options or {}).get(algorithm, {}))
    rules = [{"op_names": [name], option: value, **further} for name, value in drawn.items()]
    return Choice(algorithm, rules)
