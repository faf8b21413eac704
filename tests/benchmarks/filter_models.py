"""Accuracies of networks without filters, by the pruners of this service and of torch-pruning.

    filter_models.py FILE

The network and the digits are those of the example shrink.py. Each pruner gets a copy of the same
trained network, removes filters until the network has a given share of its MACs, and all are
fine-tuned alike. The accuracies are written as JSON.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

import torch
import torch_pruning as tp
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client/python/examples"))
import shrink as example

import nni_compression as nc
from nni_compression.torch import (
    FPGMPruner,
    L1FilterPruner,
    RandomPruner,
    TaylorFOWeightFilterPruner,
    shrink,
)

SEEDS = (0, 1, 2)
DENSE_EPOCHS = 10
PRUNED_EPOCHS = 5
# The share of filters that every layer would lose; the MACs that are left then are left by all.
SPARSITIES = (0.5, 0.75, 0.875)
TOLERANCE = 0.02  # of the cost
TRIES = 14

# A model without the given share of something, of a copy of the dense one.
Way = Callable[[nn.Module, float], nn.Module]
# Pruner -> sparsity -> one number for each seed, in per cent.
Figures = dict[str, dict[str, list[float]]]


def ours(pruner: type, client: nc.Client, data: example.Data, **options: Any) -> Way:
    """A pruner of this service, with dependency groups."""

    def prune(dense: nn.Module, sparsity: float) -> nn.Module:
        model = copy.deepcopy(dense)
        rule = {"sparsity": sparsity, "op_types": ["Conv2d"], **options}
        images = data[0][:1]
        with pruner(model, [rule], client=client, example_inputs=images) as found:
            found.compress()
            if pruner is TaylorFOWeightFilterPruner:
                example.collect_gradients(model, data)
            found.refresh()
            return shrink(model, images, zero_constants=True)

    return prune


def theirs(importance: type, data: example.Data, scope: str) -> Way:
    """An importance of torch-pruning with its defaults."""

    def prune(dense: nn.Module, sparsity: float) -> nn.Module:
        model = copy.deepcopy(dense).eval()
        pruner = tp.pruner.BasePruner(
            model,
            data[0][:1],
            importance=importance(),
            global_pruning=scope == "global",
            pruning_ratio=sparsity,
            ignored_layers=[model.classes],
        )
        if importance is tp.importance.TaylorImportance:
            # Not zeroed between batches: it ranks by the gradients that the parameters have.
            images, labels = data
            for batch in torch.arange(len(labels)).split(example.BATCH):
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        pruner.step()
        model.zero_grad()
        return model

    return prune


def ways(client: nc.Client, data: example.Data, seed: int) -> dict[str, Way]:
    pruners = {
        "l1_filter": L1FilterPruner,
        "fpgm": FPGMPruner,
        "taylor": TaylorFOWeightFilterPruner,
    }
    importances = {
        "MagnitudeImportance": tp.importance.MagnitudeImportance,
        "FPGMImportance": tp.importance.FPGMImportance,
        "TaylorImportance": tp.importance.TaylorImportance,
    }
    scopes: dict[str, dict[str, Any]] = {
        "layer": {},
        "global": {"scope": "global", "normalize": "mean"},
    }
    return {
        **{
            f"{name}, {scope}": ours(pruner, client, data, **options)
            for name, pruner in pruners.items()
            for scope, options in scopes.items()
        },
        **{
            f"torch-pruning, {name}, {scope}": theirs(importance, data, scope)
            for name, importance in importances.items()
            for scope in scopes
        },
        "random": ours(RandomPruner, client, data, structure="filter", seed=seed),
    }


def nearest(
    way: Way, dense: nn.Module, first: float, wanted: float, cost: Callable[[nn.Module], float]
) -> Any:
    """The model whose cost is nearest to that wanted, and this cost.

    Args:
        first: the share of filters that is tried first.
    """
    low, high, share = 0.0, 1.0, first
    best: tuple[float, nn.Module, float] | None = None
    for _ in range(TRIES):
        model = way(dense, share)
        left = cost(model)
        off = abs(left / wanted - 1)
        if best is None or off < best[0]:
            best = off, model, left
        if off <= TOLERANCE:
            break
        low, high = (share, high) if left > wanted else (low, share)
        share = (low + high) / 2
    return best[1:]


def dense_model(seed: int) -> tuple[nn.Module, example.Data, example.Data]:
    """The trained network of a seed, with the images that it was trained with, and others."""
    torch.manual_seed(seed)
    data, test = example.load_data(seed)
    model = example.Net()
    example.train(model, data, DENSE_EPOCHS, rate=2e-3)
    return model, data, test


def tuned_accuracy(model: nn.Module, data: example.Data, test: example.Data, seed: int) -> float:
    """After fine-tuning, in per cent."""
    torch.manual_seed(seed)
    example.train(model, data, PRUNED_EPOCHS, rate=1e-3)
    return example.accuracy(model, test)


def main() -> None:
    logging.getLogger("nni_compression").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    accuracies: Figures = defaultdict(lambda: defaultdict(list))
    shares: Figures = defaultdict(lambda: defaultdict(list))
    with nc.Client() as client:
        for seed in SEEDS:
            dense, data, test = dense_model(seed)
            image = data[0][:1]
            accuracies["dense"]["0"].append(example.accuracy(dense, test))

            def macs(model: nn.Module, image: torch.Tensor = image) -> int:
                return example.macs(model, image)

            total = macs(dense)
            for sparsity in SPARSITIES:
                wanted = macs(ours(L1FilterPruner, client, data)(dense, sparsity))
                for name, way in ways(client, data, seed).items():
                    model, left = nearest(way, dense, sparsity, wanted, macs)
                    accuracy = tuned_accuracy(model, data, test, seed)
                    accuracies[name][str(sparsity)].append(accuracy)
                    shares[name][str(sparsity)].append(100 * left / total)
    found = {"accuracy": accuracies, "macs": shares}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
