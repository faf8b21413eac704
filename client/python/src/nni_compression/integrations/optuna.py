"""Configurations that Optuna draws.

>>> def objective(trial):
...     choice = suggest_pruning(trial, layers(model), options={"agp": {"end_epoch": 4}})
...     network = copy.deepcopy(model)
...     with pruner_of(choice)(choice.config_list, labels=trial_labels(trial)) as pruner:
...         ...
...         return report_final_result(pruner, accuracy=accuracy(network))
>>> enqueue_pruning(study, layers(model), sparsities=(0.5, 0.8))
>>> study.optimize(objective, n_trials=50)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import optuna

from ..nni import (
    PRUNE_METHOD,
    QUANTIZE_METHOD,
    Choice,
    Reporter,
    keep_results,
    pruning_choice,
    pruning_space,
    quantization_choice,
    quantization_space,
)
from ..values.plan import Layer

Options = Mapping[str, Mapping[str, Any]]


def suggest_pruning(
    trial: optuna.Trial,
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("agp", "level"),
    sparsity: tuple[float, float] = (0.1, 0.9),
    bounds: Optional[Mapping[str, tuple[float, float]]] = None,
    options: Optional[Options] = None,
) -> Choice:
    """A pruner and its config_list, with a sparsity for each layer.

    The parameters of the trial are "prune_method" and, for each layer, "ALGORITHM.LAYER".

    Args:
        layers: of the model, from `nni_compression.torch.layers`. Those whose weight has two or
            more dimensions are pruned.
        algorithms, sparsity, bounds: as of `nni_compression.nni.pruning_space`.
        options: algorithm -> further options of its rules, such as AGP's `end_epoch`.
    """
    space = pruning_space(layers, algorithms=algorithms, sparsity=sparsity, bounds=bounds)
    drawn = _drawn(trial, PRUNE_METHOD, space, trial.suggest_float)
    return pruning_choice(drawn, options=options)


def suggest_quantization(
    trial: optuna.Trial,
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("qat", "dorefa"),
    bits: Sequence[int] = (2, 4, 8),
    choices: Optional[Mapping[str, Sequence[int]]] = None,
    options: Optional[Options] = None,
) -> Choice:
    """A quantizer and its config_list, with a number of bits for each layer.

    The parameters of the trial are "quantize_method" and, for each layer, "ALGORITHM.LAYER".
    Arguments as those of `suggest_pruning` and `nni_compression.nni.quantization_space`.
    """
    space = quantization_space(layers, algorithms=algorithms, bits=bits, choices=choices)

    def suggest(name: str, *values: Any) -> Any:
        return trial.suggest_categorical(name, values)

    return quantization_choice(_drawn(trial, QUANTIZE_METHOD, space, suggest), options=options)


def enqueue_pruning(
    study: optuna.Study,
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("agp", "level"),
    sparsities: Sequence[float] = (0.3, 0.5, 0.7),
    sparsity: tuple[float, float] = (0.1, 0.9),
    bounds: Optional[Mapping[str, tuple[float, float]]] = None,
) -> None:
    """Makes the first trials of a study prune all layers alike: for each algorithm and sparsity.

    Arguments as those of `suggest_pruning`, which the objective calls. A layer whose bounds exclude
    a sparsity gets the bound.
    """
    space = pruning_space(layers, algorithms=["level"], sparsity=sparsity, bounds=bounds)
    for algorithm in algorithms:
        for share in sparsities:
            drawn: dict[str, Any] = {}
            for name, values in _layers_of(space, PRUNE_METHOD).items():
                low, high = values["_value"]
                drawn[f"{algorithm}.{name}"] = min(max(share, low), high)
            study.enqueue_trial({PRUNE_METHOD: algorithm, **drawn}, skip_if_exists=True)


def enqueue_quantization(
    study: optuna.Study,
    layers: Iterable[Layer],
    *,
    algorithms: Sequence[str] = ("qat", "dorefa"),
    bits: Sequence[int] = (8, 4),
    choices: Optional[Mapping[str, Sequence[int]]] = None,
) -> None:
    """Makes the first trials of a study quantize all layers alike: for each algorithm and number
    of bits. Arguments as those of `suggest_quantization`, which the objective calls. For layers
    whose choices lack a number, it is drawn.
    """
    space = quantization_space(layers, algorithms=["qat"], bits=bits, choices=choices)
    for algorithm in algorithms:
        for number in bits:
            drawn: dict[str, Any] = {
                f"{algorithm}.{name}": number
                for name, values in _layers_of(space, QUANTIZE_METHOD).items()
                if number in values["_value"]
            }
            study.enqueue_trial({QUANTIZE_METHOD: algorithm, **drawn}, skip_if_exists=True)


def trial_labels(trial: Union[optuna.Trial, optuna.trial.FrozenTrial]) -> dict[str, str]:
    """The labels of a trial's sessions: `optuna_trial`, and `optuna_study` if it is known."""
    labels = {"optuna_trial": str(trial.number)}
    study = getattr(trial, "study", None)
    if study is not None:
        labels["optuna_study"] = study.study_name
    return labels


def report_final_result(reporter: Reporter, **values: float) -> Union[float, tuple[float, ...]]:
    """What the objective returns: the values, in their order; they are also kept with the session.

    `compressionctl experiment --label=optuna_study=NAME` compares the trials by them.

    Args:
        reporter: a compressor, or a session, that has not been closed.
    """
    keep_results(reporter, values)
    numbers = tuple(float(value) for value in values.values())
    return numbers[0] if len(numbers) == 1 else numbers


def _drawn(trial: optuna.Trial, key: str, space: Mapping[str, Any], suggest: Any) -> dict[str, Any]:
    """What a tuner of NNI would draw from a space of `nni_compression.nni`."""
    methods = {each["_name"]: each for each in space[key]["_value"]}
    algorithm = trial.suggest_categorical(key, list(methods))
    drawn = {
        name: suggest(f"{algorithm}.{name}", *values["_value"])
        for name, values in methods[algorithm].items()
        if name != "_name"
    }
    return {key: {"_name": algorithm, **drawn}}


def _layers_of(space: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Layer name -> its values, in a space of one algorithm."""
    (method,) = space[key]["_value"]
    return {name: values for name, values in method.items() if name != "_name"}
