"""The search of search.py by Optuna: any tuner can drive the service.

python3 optuna_search.py
"""

import copy
from pathlib import Path

import optuna
import outcome
import trial

from nni_compression.integrations.optuna import trial_labels
from nni_compression.torch import layers

TRIALS = 20


def draw(tuner: optuna.Trial, names: list[str]) -> dict[str, dict[str, object]]:
    """What a tuner of NNI draws from a `pruning_space`."""
    method = tuner.suggest_categorical("prune_method", ["agp", "level"])
    shares = {name: tuner.suggest_float(f"{method}.{name}", 0.1, 0.9) for name in names}
    return {"prune_method": {"_name": method, **shares}}


def main() -> None:
    trial.digits.use_one_thread()
    network = trial.baseline(None)
    names = [layer.name for layer in layers(network) if len(layer.shape) > 1]
    trials = []

    def objective(tuner: optuna.Trial) -> float:
        parameters = draw(tuner, names)
        result = trial.run_trial(
            parameters,
            copy.deepcopy(network),
            report=lambda result: None,
            labels=trial_labels(tuner),
        )
        trials.append(outcome.Trial(str(tuner.number), parameters, result))
        return result["default"]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=7))
    study.optimize(objective, n_trials=TRIALS)
    outcome.show(trials, Path("optuna.png"))


if __name__ == "__main__":
    main()
