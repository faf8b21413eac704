"""8-bit models in ONNX Runtime and OpenVINO: ours, their own quantizers', and the dense ones."""

from __future__ import annotations

from typing import Any

import nni_compression as nc
from harness import Benchmark, Goal, Line, figures_of, lines, quotients


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    found = figures_of("integer_models.py", "RUNTIMES_PYTHON")
    return [benchmark(title, figures) for title, figures in found.items()]


def benchmark(title: str, figures: dict[str, Any]) -> Benchmark:
    """The contenders are the dense model, the runtime's quantizer's, and ours."""
    times, sqnr = figures["seconds"], figures["sqnr"]
    dense, theirs, ours = times
    agreement = [Line(f"SQNR of {name}", "dB", [sqnr[name]]) for name in (theirs, ours)]
    where = title.partition(",")[0].partition(" (")[0] + title[title.rindex(" in ") :]
    return Benchmark(
        f"{title}, one thread",
        [*lines(times, dense), *agreement],
        note="SQNR: of outputs for random inputs, the dense model's being the signal.",
        goals=[
            Goal(
                "R1",
                f"{where}: latency, ours by {theirs}'s",
                1.1,
                quotients(times[ours], times[theirs]),
                at_least=False,
            ),
            Goal(
                "R2",
                f"{where}: SQNR, ours minus {theirs}'s",
                0,
                [sqnr[ours] - sqnr[theirs]],
                unit="dB",
            ),
        ],
    )
