"""What a compressed ResNet-18 adds to a training step, beside what PyTorch's own tools add."""

from __future__ import annotations

import json
import os

import nni_compression as nc
from harness import Benchmark, Goal, lines, quotients, run_program

STEPS = 3
ROUNDS = 9
# What each is compared with.
RIVALS = {
    "level, 80 %": "torch.nn.utils.prune, 80 %",
    "qat of weights": "torch.ao, weights",
    "qat of weights and outputs": "torch.ao, weights and outputs",
}
STATISTICS = "level with statistics of inputs"


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    return [_measure("eager"), _measure("compiled")]


def _measure(mode: str) -> Benchmark:
    printed = run_program(
        "resnet_steps.py",
        "RUNTIMES_PYTHON",
        STEPS,
        ROUNDS,
        mode,
        NNI_COMPRESSION_SHM_SOCKET=os.environ["SHM_SOCKET"],
    )
    times = json.loads(printed.splitlines()[-1])
    goals = [
        Goal(
            "S1",
            f"{mode}: a step with {name} by one with {rival}",
            1,
            quotients(times[name], times[rival]),
            at_least=False,
        )
        for name, rival in RIVALS.items()
    ]
    if mode == "eager":  # in a compiled model each layer that is observed breaks the graph
        ratios = quotients(times[STATISTICS], times["level, 80 %"])
        goals.append(Goal("S2", f"{STATISTICS}, of level", 1.05, ratios, at_least=False))
    title = f"A step of training of ResNet-18, 11 million weights, 8 images of 64 x 64, {mode}"
    return Benchmark(title, lines(times, "dense"), goals=goals)
