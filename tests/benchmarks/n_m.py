"""2:4 masks of large Linear weights: through the service, and by the trainer."""

from __future__ import annotations

import numpy as np
import torch

import nni_compression as nc
import peers
from harness import Benchmark, alternate, one_thread, rates
from mask_calls import seconds_of_masks

SHAPE = (8192, 8192)
ROUNDS = 7
TORCH = "topk of four, PyTorch on one thread"
NEAR = "service on one thread, shared memory"
IN_PLACE = "service on one thread, in a shared_array"


def local(weight: torch.Tensor) -> torch.Tensor:
    """A bool mask that keeps the two largest of four consecutive weights of a row."""
    fours = weight.view(-1, 4)
    kept = fours.abs().topk(2, dim=1).indices
    mask = torch.zeros_like(fours, dtype=torch.bool)
    return mask.scatter_(1, kept, True).view_as(weight)


def remote(client: nc.Client, array: np.ndarray) -> float:
    """Seconds of the service."""
    return seconds_of_masks(client, "n_m", {}, {"fc": array})


def run(client: nc.Client) -> list[Benchmark]:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    array = weight.numpy()
    with (
        one_thread(),
        peers.server("--compute_threads=1") as (address, side),
        nc.Client(address) as far,
        nc.Client(address, shm_socket=side) as near,
    ):
        placed = near.shared_array(SHAPE)
        placed[:] = array
        times = alternate(
            {
                TORCH: lambda: local(weight),
                "service on one thread, TCP": lambda: remote(far, array),
                NEAR: lambda: remote(near, array),
                IN_PLACE: lambda: remote(near, placed),
                "service, TCP": lambda: remote(client, array),
            },
            ROUNDS,
            repeat=3,
        )
    return [
        Benchmark(
            f"2:4 masks of a Linear of {SHAPE[0]} x {SHAPE[1]} float32 weights",
            rates(times, TORCH, array.nbytes),
            note="From the weight in the trainer's memory to a bool array in it. For the server's "
            "part alone see --filter kernels.",
        )
    ]
