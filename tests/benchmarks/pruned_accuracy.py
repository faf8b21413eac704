"""What pruning costs in accuracy: one shot or gradually, by layer or globally."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nni_compression as nc
from harness import Benchmark, Line, run_program


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        run_program("pruned_models.py", "RUNTIMES_PYTHON", file)
        found = json.loads(file.read_text(encoding="utf-8"))
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
