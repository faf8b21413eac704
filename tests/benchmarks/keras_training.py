"""What quantized outputs and inputs add to a training step in Keras."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nni_compression as nc
from harness import Benchmark, lines

STEPS = 20
ROUNDS = 5
PROGRAM = Path(__file__).resolve().parent / "keras_steps.py"


def run(client: nc.Client) -> list[Benchmark]:
    del client  # the program has its own
    done = subprocess.run(
        [os.environ["TENSORFLOW_PYTHON"], str(PROGRAM), str(STEPS), str(ROUNDS)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{PROGRAM.name} failed:\n{done.stdout}{done.stderr}")
    times = json.loads(done.stdout.splitlines()[-1])
    title = (
        "A step of training in Keras with QAT of outputs and inputs, 5 layers, transfer='ranges'"
    )
    return [Benchmark(title, lines(times, "not quantized"))]
