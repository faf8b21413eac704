"""ResNet-18 without half of the filters of every group, in ONNX Runtime and in PyTorch."""

from __future__ import annotations

import nni_compression as nc
from harness import Benchmark, Goal, figures_of, lines, quotients

GOALS = {"ONNX Runtime": [("S3", 2.5)]}


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    found = figures_of("shrunk_resnet.py", "RUNTIMES_PYTHON")
    costs = found.pop("costs")
    note = ", ".join(f"{name} {dense:,} -> {small:,}" for name, (dense, small) in costs.items())
    return [
        Benchmark(
            f"ResNet-18, 1 x 3 x 224 x 224, half of its filters, in {runtime}, one thread",
            lines(times, "dense"),
            note=note,
            facts=costs,
            goals=[
                Goal(
                    name,
                    f"{runtime}: latency of the dense ResNet-18, by that of the smaller one",
                    bound,
                    quotients(times["dense"], times["shrunk"]),
                )
                for name, bound in GOALS.get(runtime, [])
            ],
        )
        for runtime, times in found.items()
    ]
