"""One threshold over 100 million weights in 54 layers: through the service, and by the trainer."""

from __future__ import annotations

import torch
from torch.nn.utils import prune

import nni_compression as nc
from harness import Benchmark, Goal, alternate, lines, quotients, seconds
from mask_calls import seconds_of_masks

# Sizes as uneven as those of a network: 54 layers of 42 thousand to 10 million weights.
SIZES = [int(42_000 * 1.1084**i) for i in range(54)]
SPARSITY = 0.8
ROUNDS = 9
KTHVALUE = "kthvalue of the concatenation"
PRUNE = "torch.nn.utils.prune.global_unstructured"
LAYERS = "service, level"
GLOBAL = "service, global_magnitude"
LAMP = "service, lamp"


def by_kthvalue(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The masks of what is above the threshold."""
    magnitudes = torch.cat([weight.abs().view(-1) for weight in weights.values()])
    threshold = magnitudes.kthvalue(int(magnitudes.numel() * SPARSITY)).values
    return {name: weight.abs() > threshold for name, weight in weights.items()}


def by_prune(weights: dict[str, torch.Tensor]) -> float:
    """Seconds of PyTorch's global pruning."""
    modules = []
    for weight in weights.values():
        module = torch.nn.Linear(1, 1, bias=False)
        module.weight = torch.nn.Parameter(weight)
        modules.append((module, "weight"))
    return seconds(
        lambda: prune.global_unstructured(
            modules, pruning_method=prune.L1Unstructured, amount=SPARSITY
        )
    )


def run(client: nc.Client) -> list[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layer{i}": torch.randn(size, generator=generator) * (0.5 + i % 7)
        for i, size in enumerate(SIZES)
    }
    arrays = {name: weight.numpy() for name, weight in weights.items()}

    def remote(algorithm: str) -> float:
        return seconds_of_masks(client, algorithm, {"sparsity": SPARSITY}, arrays)

    contenders = {
        KTHVALUE: lambda: by_kthvalue(weights),
        PRUNE: lambda: by_prune(weights),
        LAYERS: lambda: remote("level"),
        GLOBAL: lambda: remote("global_magnitude"),
        LAMP: lambda: remote("lamp"),
    }
    times = alternate(contenders, ROUNDS)
    goals = [
        Goal(
            "J1",
            "global masks by TCP, against kthvalue",
            3,
            quotients(times[KTHVALUE], times[GLOBAL]),
        ),
        Goal("J1", "against global_unstructured", 3, quotients(times[PRUNE], times[GLOBAL])),
        Goal(
            "J2",
            "a global call by one for each layer's masks",
            1.5,
            quotients(times[GLOBAL], times[LAYERS]),
            at_least=False,
        ),
    ]
    title = f"Global masks of {sum(SIZES) / 1e6:.0f} million float32 weights in 54 layers, by TCP"
    return [Benchmark(title, lines(times, KTHVALUE), goals=goals)]
