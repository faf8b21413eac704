"""Runs the benchmarks against the server in $NNI_COMPRESSION_SERVER and prints a table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re

import torch

import harness
import nni_compression as nc

MODULES = (
    "calc_mask",
    "global_magnitude",
    "upload",
    "quantize",
    "kernels",
    "latency",
    "training",
    "keras_training",
    "resnet",
    "small_models",
    "trials",
    "agp_epoch",
    "many",
    "huge",
    "proxy",
    "beside_upload",
    "durability",
    "experiments",
    "exports",
    "integer_runtimes",
    "pruned_accuracy",
    "shrink_latency",
    "fpgm",
    "n_m",
    "filter_accuracy",
    "target_latency",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests/bench.sh", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--filter", metavar="RE", default="", help=f"of {', '.join(MODULES)}: those that match"
    )
    options = parser.parse_args()
    chosen = [name for name in MODULES if re.search(options.filter, name)]
    if not chosen:
        parser.error(f"--filter={options.filter} matches none of {', '.join(MODULES)}")

    torch.set_num_threads(os.cpu_count() or 1)
    machine = harness.machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("Medians with smallest and largest value; x: ratio to the first line, round by round.\n")
    results = {}
    goals = []
    for name in chosen:
        with nc.Client() as client:
            benchmarks = importlib.import_module(name).run(client)
        for benchmark in benchmarks:
            print(harness.show(benchmark), flush=True)
            print()
            goals += benchmark.goals
        results[name] = [harness.as_json(benchmark) for benchmark in benchmarks]
    if goals:
        print(harness.show_goals(goals))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "benchmarks": results}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
