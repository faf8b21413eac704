"""What filters cost in accuracy: ranked by this service, by torch-pruning, and at random."""

from __future__ import annotations

import statistics

import nni_compression as nc
from harness import Benchmark, Goal, Line, figures_of

THEIRS = "torch-pruning"


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    found = figures_of("filter_models.py", "RUNTIMES_PYTHON")
    accuracies, macs = found["accuracy"], found["macs"]
    dense = accuracies.pop("dense")["0"]
    benchmarks = []
    for sparsity in next(iter(accuracies.values())):
        values = {name: each[sparsity] for name, each in accuracies.items()}
        shares = [share for each in macs.values() for share in each[sparsity]]
        best = {
            side: max(
                statistics.mean(own)
                for name, own in values.items()
                if name != "random" and name.startswith(THEIRS) == (side == THEIRS)
            )
            for side in ("ours", THEIRS)
        }
        benchmarks.append(
            Benchmark(
                f"Accuracy on 450 handwritten digits with {statistics.median(shares):.1f} % of the "
                "MACs",
                [
                    Line("dense", "%", dense),
                    *(Line(name, "%", own) for name, own in values.items()),
                ],
                note=f"Each of {len(dense)} seeds: another split, network and order of batches. "
                f"MACs: {min(shares):.2f} to {max(shares):.2f} %.",
                facts={"macs": {name: each[sparsity] for name, each in macs.items()}},
                goals=[
                    Goal(
                        "F3",
                        f"mean accuracy at sparsity {sparsity}: our best minus torch-pruning's",
                        0,
                        [best["ours"] - best[THEIRS]],
                        unit="points",
                    )
                ],
            )
        )
    return benchmarks
