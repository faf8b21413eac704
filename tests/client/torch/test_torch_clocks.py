"""Schedules that stand still because the training never sets what they count."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch

from nni_compression.torch import AGPPruner, LevelPruner, MovementPruner, Pruner
from torch_helpers import AGP, LEVEL, Net, train_step

BY_STEP = [
    {
        "final_sparsity": 0.8,
        "schedule_unit": "step",
        "end_step": 9,
        "frequency": 9,
        "op_types": ["default"],
    }
]
NO_STEP = r"the schedule counts steps, and step\(\) has not been called"
NO_EPOCH = r"the schedule counts epochs, and update_epoch\(\) has not been called"


def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.001)


def repeat(times: int, call: Callable[[], Any]) -> None:
    for _ in range(times):
        call()


def warned(found: Any) -> list[str]:
    return [str(warning.message) for warning in found if "schedule counts" in str(warning.message)]


@pytest.mark.parametrize("pruner_type", [AGPPruner, MovementPruner])
def test_a_step_that_is_forgotten_is_told_once_and_in_results(
    client: nc.Client, tmp_path: Path, pruner_type: type[Pruner]
) -> None:
    model = Net()
    optimizer = sgd(model)
    pruner = pruner_type(model, BY_STEP, optimizer, client=client)
    pruner.compress()
    train_step(model, optimizer)
    repeat(98, optimizer.step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgd(Net()).step()  # of another model
    with pytest.warns(UserWarning, match=NO_STEP + ", while 100 steps of an optimizer") as found:
        repeat(120, optimizer.step)
    assert len(warned(found)) == 1
    for use in (
        lambda: pruner.export(tmp_path / "files"),
        lambda: pruner.export_model(str(tmp_path / "model.pth")),
        pruner.unwrap,
    ):
        with pytest.warns(UserWarning, match=NO_STEP + ": the masks"):
            use()


def test_where_optimizers_cannot_be_observed_forward_passes_are(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nni_compression.torch import optimizers

    monkeypatch.setattr(optimizers, "_hooks", lambda name: None)  # as in PyTorch 1.13
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    pruner = AGPPruner(model, BY_STEP, client=client)
    pruner.compress()
    value = torch.ones(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()
        for _ in range(2):
            model(value)
        model.train()
        for _ in range(999):
            model(value)
    with pytest.warns(UserWarning, match="1000 forward passes in training mode"):
        model(value)
    pruner.close()
    model(value)


def test_the_other_clock_does_not_help(client: nc.Client) -> None:
    pruner = AGPPruner(Net(), BY_STEP, client=client)
    pruner.compress()
    pruner.update_epoch(0)
    with pytest.warns(UserWarning, match=NO_STEP + r", while update_epoch\(\) was called 2 times"):
        pruner.update_epoch(1)
    pruner.close()

    pruner = AGPPruner(Net(), AGP, client=client)
    pruner.compress()
    with pytest.warns(UserWarning, match=NO_EPOCH + r", while step\(\) was called 1001 times"):
        repeat(1001, pruner.step)
    with pytest.warns(UserWarning, match=NO_EPOCH + ": the masks"):
        pruner.unwrap()


def test_nothing_is_told_where_the_clock_is_set_or_does_not_matter(
    client: nc.Client, recwarn: pytest.WarningsRecorder
) -> None:
    for pruner_type, rules, method in (
        (AGPPruner, BY_STEP, "step"),
        (AGPPruner, AGP, "update_epoch"),
        (LevelPruner, LEVEL, "step"),
    ):
        model = Net()
        optimizer = sgd(model)
        pruner = pruner_type(model, rules, optimizer, client=client)
        pruner.compress()
        if method == "step":
            pruner.step()
        else:
            pruner.update_epoch(0)
        train_step(model, optimizer)
        for epoch in range(110):
            optimizer.step()
            pruner.update_epoch(epoch)
        state = pruner.state_dict()
        pruner.rebind()
        pruner.unwrap()
        other = pruner_type(Net(), rules, client=client)
        other.load_state_dict(state)
        other.compress()
        other.unwrap()
    untrained = AGPPruner(Net(), BY_STEP, client=client)
    untrained.compress()
    untrained.unwrap()
    assert not warned(recwarn)
