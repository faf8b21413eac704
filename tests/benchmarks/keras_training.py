"""What quantized outputs and inputs add to a training step in Keras."""

from __future__ import annotations

import json

import nni_compression as nc
from harness import Benchmark, lines, run_program

STEPS = 20
ROUNDS = 5


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    printed = run_program("keras_steps.py", "TENSORFLOW_PYTHON", STEPS, ROUNDS)
    times = json.loads(printed.splitlines()[-1])
    title = (
        "A step of training in Keras with QAT of outputs and inputs, 5 layers, transfer='ranges'"
    )
    return [Benchmark(title, lines(times, "not quantized"))]
