"""Where sending costs more than computing: LeNet's layers, and ever larger ones."""

from __future__ import annotations

import torch

import formulas
import nni_compression as nc
from harness import Benchmark, Line, alternate, lines, seconds

SPARSITY = 0.8
ROUNDS = 9
LENET = {
    "conv1": (20, 1, 5, 5),
    "conv2": (50, 20, 5, 5),
    "fc1": (500, 800),
    "fc2": (10, 500),
}
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def compare(client: nc.Client, shapes: dict[str, tuple[int, ...]], rounds: int) -> list[Line]:
    """Lines for all masks of a model, local and remote."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    layers = [nc.Layer(name=n, op_type="Linear", shape=shape) for n, shape in shapes.items()]

    def local(formula) -> None:
        for weight in weights.values():
            formula(weight, SPARSITY)

    def remote() -> float:
        rule = {"sparsity": SPARSITY}
        with client.bind_model("level", [rule], layers=layers, framework="pytorch") as session:
            return seconds(lambda: unpack(session.calc_mask(arrays)))

    def unpack(masks) -> None:
        for mask in masks.values():
            mask.to_numpy()

    times = alternate(
        {
            "NNI's formula (topk)": lambda: local(formulas.nni_mask),
            "kthvalue": lambda: local(formulas.kthvalue_mask),
            "service": remote,
        },
        rounds,
    )
    return lines(times, "NNI's formula (topk)")


def run(client: nc.Client) -> list[Benchmark]:
    found = [Benchmark("All masks of LeNet, 431 thousand weights", compare(client, LENET, ROUNDS))]
    for size in SIZES:
        title = f"A mask of one layer of {size:,} weights"
        rounds = 3 if size > 1_000_000 else ROUNDS
        found.append(Benchmark(title, compare(client, {"w": (size,)}, rounds)))
    return found
