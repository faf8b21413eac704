"""Selection and mask by the library itself, on one thread, for each instruction set."""

from __future__ import annotations

import json
import os
import subprocess

import nni_compression as nc
from harness import Benchmark, Goal, Line

BOUNDS = {"AVX-512": 6.0, "AVX2": 4.0}  # GB/s of weights


def run(client: nc.Client) -> list[Benchmark]:
    del client
    command = [os.environ["KERNELS_BENCHMARK"], "--benchmark_format=json"]
    command += ["--benchmark_repetitions=5", "--benchmark_min_time=0.1"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    rates: dict[str, list[float]] = {}
    for entry in json.loads(done.stdout)["benchmarks"]:
        if entry["run_type"] == "iteration":
            rates.setdefault(entry["run_name"], []).append(entry["bytes_per_second"] / 1e9)
    goals = [
        Goal(
            "P4",
            f"selection and mask, one thread, {isa}",
            bound,
            rates[f"select/{isa}"],
            unit="GB/s",
        )
        for isa, bound in BOUNDS.items()
        if f"select/{isa}" in rates
    ]
    goals += [
        Goal("F4", f"2:4 masks, one thread, {name}", 4.0, rates[f"n_m_{name}"], unit="GB/s")
        for name in ("linear", "convolution")
    ]
    title = "The kernels on 45 million float32 weights, one thread"
    lines = [Line(name, "GB/s", values) for name, values in rates.items()]
    return [Benchmark(title, lines, goals=goals)]
