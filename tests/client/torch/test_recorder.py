"""The recorder, its sinks, and what Optuna draws."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch

from nni_compression.integrations.recorder import Recorder
from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer, layers
from torch_helpers import AGP, COMPRESSED, Net, images, train_step


def recorded(client: nc.Client, *sinks: Any, **arguments: Any) -> Recorder:
    """Of a pruner and a quantizer, over three epochs."""
    recorder = Recorder(*sinks, **arguments)
    pruner, quantizer = AGPPruner(AGP, client=client), QATQuantizer([{}], client=client)
    model = quantizer(pruner(Net()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        for compressor in (pruner, quantizer):
            compressor.update_epoch(epoch)
        train_step(model, optimizer, epoch)
        for compressor in (pruner, quantizer):
            compressor.step()
        model(images())
        recorder.record(pruner, quantizer)
    return recorder


def test_records_have_the_numbers_of_all_compressors_and_what_was_added(client: nc.Client) -> None:
    given: list[tuple[int, Any]] = []
    rows = recorded(client, lambda epoch, row: given.append((epoch, row))).rows
    assert given == list(enumerate(rows))
    assert [row["agp/epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["agp/sparsity"] == 0 < rows[2]["agp/sparsity"]
    for name in COMPRESSED:
        assert rows[2][f"agp/sparsity/{name}"] > rows[1][f"agp/sparsity/{name}"]
        assert 20 < rows[2][f"qat/sqnr/{name}"] < 60
    for key in ("calls", "bytes_sent", "seconds_waiting"):
        for algorithm in ("agp", "qat"):
            added = sum(row[f"{algorithm}/epoch_{key}"] for row in rows)
            assert added == pytest.approx(rows[2][f"{algorithm}/{key}"])
    totals = recorded(client, per_layer=False).rows[2]
    assert not [key for key in totals if key.count("/") > 1]
    assert totals["agp/sparsity"] == rows[2]["agp/sparsity"]


def test_a_new_session_begins_to_count_again(client: nc.Client) -> None:
    pruner = LevelPruner([{"sparsity": 0.5}], client=client)
    recorder = Recorder()
    pruner(Net())(images())
    recorder.record(pruner)
    pruner.rebind()
    pruner.session.info()
    row = recorder.record(pruner)
    assert row["level/epoch_calls"] == row["level/calls"] > 0


def test_compressors_of_one_algorithm_are_told_apart(client: nc.Client) -> None:
    pruners = [
        LevelPruner([{"sparsity": sparsity, "op_names": [name]}], client=client)
        for name, sparsity in (("conv2", 0.5), ("fc1", 0.25))
    ]
    model = Net()
    for pruner in pruners:
        pruner(model)
    model(images())
    pruners[1].step()
    recorder = Recorder()
    row = [recorder.record(*pruners) for _ in range(2)][-1]
    assert (row["level/sparsity"], row["level-2/sparsity"]) == (0.5, 0.25)
    assert (row["level/step"], row["level-2/step"]) == (0, 1)
    assert (row["level/epoch_calls"], row["level-2/epoch_calls"]) == (0, 0)


def test_tensorboard_has_the_numbers(client: nc.Client, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nni_compression.integrations.tensorboard import TensorBoardSink

    rows = recorded(client, TensorBoardSink(str(tmp_path))).rows
    read = EventAccumulator(str(tmp_path)).Reload()
    found = read.Scalars("compression/agp/sparsity/fc1")
    assert [event.step for event in found] == [0, 1, 2]
    expected = [row["agp/sparsity/fc1"] for row in rows]
    assert [event.value for event in found] == pytest.approx(expected)


def test_mlflow_has_the_numbers(
    client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    from nni_compression.integrations import mlflow as integration

    monkeypatch.setattr(integration, "_AT_ONCE", 3)
    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("some")
    with mlflow.start_run() as run:
        rows = recorded(client, integration.MLflowSink()).rows
    history = mlflow.MlflowClient().get_metric_history
    found = history(run.info.run_id, "compression/agp.sparsity.fc1")
    assert [(metric.step, metric.value) for metric in found] == [
        (epoch, row["agp/sparsity/fc1"]) for epoch, row in enumerate(rows)
    ]
    # Modules may have names that MLflow does not take.
    with mlflow.start_run() as run:
        integration.MLflowSink()(0, {"agp/sparsity/heads.a(b)*": 0.5})
    assert history(run.info.run_id, "compression/agp.sparsity.heads.a_b__")[0].value == 0.5


def test_optuna_draws_what_a_session_takes(client: nc.Client) -> None:
    optuna = pytest.importorskip("optuna")
    from nni_compression.integrations import optuna as integration

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    model = Net()
    pruners = {"agp": AGPPruner, "level": LevelPruner}
    choices = []

    def objective(trial: Any) -> float:
        options = {"agp": {"end_epoch": 2}}
        bounds = {"fc2": (0.1, 0.2)}
        choice = integration.suggest_pruning(trial, layers(model), options=options, bounds=bounds)
        choices.append(choice)
        labels = integration.trial_labels(trial)
        made = pruners[choice.algorithm](choice.config_list, client=client, labels=labels)
        with made as pruner:
            pruner(copy.deepcopy(model))
            pruner.update_epoch(2)
            assert pruner.plan.compressed == COMPRESSED
            info = pruner.session.info()
            assert info.labels == {"optuna_trial": str(trial.number), "optuna_study": "s"}
            pruner.refresh()
            return pruner.metrics()["sparsity"]

    study = optuna.create_study(study_name="s", sampler=optuna.samplers.RandomSampler(seed=1))
    integration.enqueue_pruning(study, layers(model), sparsities=(0.15, 0.2))
    study.optimize(objective, n_trials=8)
    first = [
        (c.algorithm, {r.get("sparsity", r.get("final_sparsity")) for r in c.config_list})
        for c in choices[:4]
    ]
    assert first == [("agp", {0.15}), ("agp", {0.2}), ("level", {0.15}), ("level", {0.2})]
    assert [trial.value for trial in study.trials[:4]] == pytest.approx(
        [0.15, 0.2, 0.15, 0.2], abs=0.01
    )
    drawn = [rule["sparsity"] for c in choices[4:] for rule in c.config_list if "sparsity" in rule]
    assert len(set(drawn)) == len(drawn)
    assert {choice.algorithm for choice in choices} == {"agp", "level"}


def test_optuna_gets_what_is_kept_with_the_session(client: nc.Client) -> None:
    optuna = pytest.importorskip("optuna")
    from nni_compression.integrations import optuna as integration

    def objective(trial: Any) -> Any:
        labels = integration.trial_labels(trial)
        with LevelPruner([{"sparsity": 0.5}], client=client, labels=labels) as pruner:
            pruner(Net())
            if trial.number == 0:
                assert integration.report_final_result(pruner, accuracy=0.5) == 0.5
            return integration.report_final_result(pruner, accuracy=trial.number, size=2.5)

    study = optuna.create_study(study_name="kept", directions=["maximize", "minimize"])
    study.optimize(objective, n_trials=2)
    assert [trial.values for trial in study.trials] == [[0.0, 2.5], [1.0, 2.5]]
    found = client.sessions({"optuna_study": "kept"}, include_ended=True)
    assert [session.results for session in found] == [
        {"accuracy": float(number), "size": 2.5} for number in range(2)
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_optuna_judges_a_trial_that_diverged(client: nc.Client, value: float) -> None:
    optuna = pytest.importorskip("optuna")
    from nni_compression.integrations import optuna as integration

    def objective(trial: Any) -> Any:
        with LevelPruner([{"sparsity": 0.5}], client=client) as pruner:
            pruner(Net())
            result = integration.report_final_result(pruner, loss=torch.tensor(value))
            assert pruner.session.info().results == {}
            return result

    study = optuna.create_study()
    study.optimize(objective, n_trials=1)
    expected = "FAIL" if value != value else "COMPLETE"
    assert [trial.state.name for trial in study.trials] == [expected]


def test_optuna_draws_bits(client: nc.Client) -> None:
    optuna = pytest.importorskip("optuna")
    from nni_compression.integrations import optuna as integration

    study = optuna.create_study()
    integration.enqueue_quantization(
        study, layers(Net()), algorithms=["dorefa"], bits=(4,), choices={"fc1": [8]}
    )
    choices = [
        integration.suggest_quantization(study.ask(), layers(Net()), choices={"fc1": [8]})
        for _ in range(3)
    ]
    # What is not among the choices is drawn.
    expected = [(name, 8 if name == "fc1" else 4) for name in COMPRESSED]
    assert choices[0].algorithm == "dorefa"
    assert [(r["op_names"][0], r["quant_bits"]) for r in choices[0].config_list] == expected
    for choice in choices:
        assert {rule["quant_bits"] for rule in choice.config_list} <= {2, 4, 8}
