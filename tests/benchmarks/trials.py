"""A hundred trials of one model, each with a sparsity of its own."""

from __future__ import annotations

import statistics

import torch

import formulas
import nni_compression as nc
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

    def trial(number: int) -> None:
        rule = {"sparsity": (number + 0.5) / TRIALS}
        with client.bind_model("level", [rule], layers=layers, framework="pytorch") as session:
            for mask in session.calc_mask(arrays).values():
                mask.to_numpy()

    # What the formula takes depends on the sparsity; these stand for all.
    alone = [seconds(lambda s=s: local(s)) for s in (0.2, 0.5, 0.8)]
    before = client.stats.bytes_sent
    times = [seconds(lambda n=n: trial(n)) for n in range(TRIALS)]
    sent = (client.stats.bytes_sent - before) / size
    share = sum(times) / (statistics.mean(alone) * TRIALS)
    lines = [
        Line("NNI's formula (topk), one run", "ms", [t * 1e3 for t in alone]),
        Line("service, one trial", "ms", [t * 1e3 for t in times]),
        Line("service, all trials", "s", [sum(times)]),
    ]
    return [
        Benchmark(
            f"{TRIALS} trials of a model with 100 million weights, one after another",
            lines,
            note=f"{TRIALS} local runs are taken as {TRIALS} times the mean of {len(alone)}.",
            goals=[
                Goal("P6", "sent by 100 trials, of the model", 1.05, [sent], at_least=False),
                Goal(
                    "P6",
                    "time of 100 trials, of local runs",
                    2,
                    [100 * share],
                    at_least=False,
                    unit="%",
                ),
            ],
        )
    ]
