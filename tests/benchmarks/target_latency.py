"""`shrink` with `target_latency`: whether the target is reached, and what is left of accuracy."""

from __future__ import annotations

import statistics

import nni_compression as nc
from harness import Benchmark, Goal, Line, figures_of, lines, quotients

TARGET = 0.5


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    found = figures_of("latency_models.py", "RUNTIMES_PYTHON")
    benchmarks = []
    for name, figures in found["reached"].items():
        times, (first, again) = figures["times"], figures["shrink"]
        ratios = quotients(times["smaller"], times["dense"])
        benchmarks.append(
            Benchmark(
                f"{name}: target_latency={TARGET}, 1 x 3 x 224 x 224, one thread",
                lines(times, "dense"),
                note=f"shrink took {first:.0f} s, and {again:.0f} s with the latencies of layers "
                f"known; gap of the solver {figures['gap']:.1e}.",
                goals=[
                    Goal(
                        "L1",
                        f"{name}: distance of the median latency from the target",
                        5,
                        [100 * abs(statistics.median(ratios) / TARGET - 1)],
                        at_least=False,
                        unit="%",
                    )
                ],
            )
        )
    for target, figures in found["accuracy"].items():
        accuracy, ratio = figures["accuracy"], figures["ratio"]
        means = {name: statistics.mean(own) for name, own in accuracy.items()}
        benchmarks.append(
            Benchmark(
                f"Accuracy on 450 handwritten digits at {target} of the latency in ONNX Runtime",
                [Line(name, "%", own) for name, own in accuracy.items()],
                note="Latencies of the smaller networks by the dense one's: "
                + "; ".join(
                    f"{name} {min(own):.3f} to {max(own):.3f}" for name, own in ratio.items()
                )
                + f". Each of {len(next(iter(accuracy.values())))} seeds: another split, network "
                "and order of batches.",
                facts={"ratio": ratio},
                goals=[
                    Goal(
                        "L2",
                        f"mean accuracy at {target} of the latency: that of target_latency minus "
                        "that of uniform widths",
                        0,
                        [means["target_latency"] - means["uniform widths"]],
                        unit="points",
                    )
                ],
            )
        )
    return benchmarks
