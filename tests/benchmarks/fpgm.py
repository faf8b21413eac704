"""Masks of FPGM for the convolutions of ResNet-50: through the service, and by `torch.cdist`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import nni_compression as nc
import peers
from agp_epoch import shapes
from harness import Benchmark, Goal, alternate, lines, one_thread, quotients
from mask_calls import seconds_of_masks

ROUNDS = 9
SLOW_ROUNDS = 2  # of the exact mode
RULE = {"sparsity": 0.5}
DEFAULT = "torch.cdist, default mode"
EXACT = "torch.cdist, exact mode"
DEFAULT_MODE = "use_mm_for_euclid_dist_if_necessary"
EXACT_MODE = "donot_use_mm_for_euclid_dist"


def scores(weight: torch.Tensor, mode: str) -> torch.Tensor:
    """For each filter the sum of its distances to the others."""
    rows = weight.flatten(1)
    return torch.cdist(rows, rows, compute_mode=mode).sum(1)


def local(weights: Sequence[torch.Tensor], mode: str) -> list[torch.Tensor]:
    """A bool mask for each weight, True = kept."""
    masks = []
    for weight in weights:
        removed = scores(weight, mode).argsort(stable=True)[: len(weight) // 2]
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[removed] = False
        masks.append(mask)
    return masks


def kept(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each filter of all layers is kept."""
    return np.concatenate([mask.reshape(len(mask), -1)[:, 0] for mask in masks])


def run(client: nc.Client) -> list[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in shapes() if len(shape) == 4]
    arrays = {str(number): weight.numpy() for number, weight in enumerate(weights)}
    size = sum(weight.numel() for weight in weights)
    masks: dict[str, np.ndarray] = {}

    def remote(other: nc.Client) -> float:
        return seconds_of_masks(other, "fpgm", RULE, arrays, "Conv2d", masks)

    with (
        one_thread(),
        peers.shared_memory_client() as near,
        peers.server("--compute_threads=1") as (address, _),
        nc.Client(address) as single,
    ):
        times = alternate(
            {
                DEFAULT: lambda: local(weights, DEFAULT_MODE),
                "service, TCP": lambda: remote(client),
                "service, shared memory": lambda: remote(near),
                "service on one thread, TCP": lambda: remote(single),
            },
            ROUNDS,
        )
        times |= alternate({EXACT: lambda: local(weights, EXACT_MODE)}, SLOW_ROUNDS)
        ours_kept = kept([masks[name] for name in arrays])
        theirs_kept = kept([mask.numpy() for mask in local(weights, DEFAULT_MODE)])
        doubles = [weight.double() for weight in weights]
        right = kept([mask.numpy() for mask in local(doubles, DEFAULT_MODE)])
    ours = "service, TCP"
    goals = [
        Goal(
            "F1",
            "FPGM of ResNet-50's convolutions, TCP, by torch.cdist's default mode",
            1.2,
            quotients(times[ours], times[DEFAULT]),
            at_least=False,
        ),
        Goal(
            "F2",
            "torch.cdist's exact mode, by FPGM of ResNet-50's convolutions, TCP",
            3,
            quotients(times[EXACT], times[ours]),
        ),
    ]
    return [
        Benchmark(
            f"Masks of FPGM for {len(weights)} convolutions of ResNet-50, {size / 1e6:.1f} million "
            "weights; torch.cdist on one thread",
            lines(times, DEFAULT),
            note=f"Kept or removed otherwise than in float64, of {right.size:,} filters: "
            f"{(ours_kept != right).sum()} by the service, "
            f"{(theirs_kept != right).sum()} by torch.cdist's default mode.",
            goals=goals,
        )
    ]
