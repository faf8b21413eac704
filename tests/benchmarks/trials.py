"""A hundred trials of one model, each with a sparsity of its own."""

from __future__ import annotations

import statistics

import torch

import formulas
import nni_compression as nc
import peers
from harness import Benchmark, Goal, Line, seconds

TRIALS = 100
LAYERS = 4
SHAPE = (5000, 5000)  # 100 million weights in all


def run(client: nc.Client) -> list[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"fc{i}": torch.randn(SHAPE, generator=generator) for i in range(LAYERS)}
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    layers = [nc.Layer(name=name, op_type="Linear", shape=SHAPE) for name in arrays]
    size = sum(array.nbytes for array in arrays.values())

    def local(sparsity: float) -> None:
        for weight in weights.values():
            formulas.nni_mask(weight, sparsity)

    def trial(client: nc.Client, number: int) -> None:
        rule = {"sparsity": (number + 0.5) / TRIALS}
        with client.bind_model("level", [rule], layers=layers, framework="pytorch") as session:
            for mask in session.calc_mask(arrays).values():
                mask.to_numpy()

    # What the formula takes depends on the sparsity; these stand for all.
    alone = [seconds(lambda s=s: local(s)) for s in (0.2, 0.5, 0.8)]
    before = client.stats.bytes_sent
    times = [seconds(lambda n=n: trial(client, n)) for n in range(TRIALS)]
    sent = (client.stats.bytes_sent - before) / size
    with peers.shared_memory_client() as near:
        shared = [seconds(lambda n=n: trial(near, n)) for n in range(TRIALS)]

    def share(times: list[float]) -> float:
        return 100 * sum(times) / (statistics.mean(alone) * TRIALS)

    def goal(name: str, measured: float) -> Goal:
        return Goal("P6", name, 2, [measured], at_least=False, unit="%")

    return [
        Benchmark(
            f"{TRIALS} trials of a model with 100 million weights, one after another",
            [
                Line("NNI's formula (topk), one run", "ms", [t * 1e3 for t in alone]),
                Line("service, one trial", "ms", [t * 1e3 for t in times]),
                Line("service, all trials", "s", [sum(times)]),
                Line("shared memory, one trial", "ms", [t * 1e3 for t in shared]),
                Line("shared memory, all trials", "s", [sum(shared)]),
            ],
            note=f"{TRIALS} local runs are taken as {TRIALS} times the mean of {len(alone)}.",
            goals=[
                Goal("P6", "sent by 100 trials, of the model", 1.05, [sent], at_least=False),
                goal("time of 100 trials, of local runs, TCP", share(times)),
                goal("time of 100 trials, of local runs, shared", share(shared)),
            ],
        )
    ]
