"""What pruning costs in accuracy: one shot or gradually, by layer or globally."""

from __future__ import annotations

import nni_compression as nc
from harness import Benchmark, Line, figures_of


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    found = figures_of("pruned_models.py", "RUNTIMES_PYTHON")
    dense = found.pop("dense")["0"]
    return [
        Benchmark(
            f"Accuracy on 1,000 handwritten digits at {float(sparsity):.0%} sparsity",
            [
                Line("dense", "%", dense),
                *(Line(name, "%", values[sparsity]) for name, values in found.items()),
            ],
            note=f"Each of {len(dense)} seeds: another split, network and order of batches.",
        )
        for sparsity in next(iter(found.values()))
    ]
