"""Small calls beside a huge upload to the same server.

Run as a program, `beside_upload.py`, it uploads, and says on its output when that begins and ends.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time

import numpy

import nni_compression as nc
from harness import Benchmark, Line, seconds
from small_models import LENET

SIZE = 4 << 30
CALLS = 200
RULE = [{"sparsity": 0.8}]


def run(client: nc.Client) -> list[Benchmark]:
    random = numpy.random.default_rng(0)
    arrays = {name: random.standard_normal(s, numpy.float32) for name, s in LENET.items()}
    layers = [nc.Layer(name=n, op_type="Linear", shape=a.shape) for n, a in arrays.items()]

    def call() -> float:
        with client.bind_model("level", RULE, layers=layers) as session:
            return seconds(lambda: session.calc_mask(arrays))

    alone = [call() for _ in range(CALLS)]
    beside, taken = during_an_upload(call)
    return [
        Benchmark(
            "All masks of LeNet, 431 thousand weights, beside an upload of 4 GB",
            [
                Line("nothing beside it", "ms", [t * 1e3 for t in alone]),
                Line("beside the upload", "ms", [t * 1e3 for t in beside]),
                Line("the upload", "s", [taken]),
            ],
            note=f"{len(beside)} calls were answered during the upload; 99th percentiles: "
            f"{percentile99(alone) * 1e3:.3g} and {percentile99(beside) * 1e3:.3g} ms.",
        )
    ]


def during_an_upload(call) -> tuple[list[float], float]:
    """What the calls made during an upload returned, and the upload's seconds."""
    over = threading.Event()
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begin\n"
    begin = time.perf_counter()
    end = begin

    def wait() -> None:
        nonlocal end
        process.stdout.readline()
        end = time.perf_counter()
        over.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    times = []
    while not over.is_set():
        times.append(call())
    waiter.join()
    process.communicate()
    assert process.returncode == 0
    return times[:-1] or times, end - begin


def percentile99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[-1] if len(values) > 1 else values[0]


def upload() -> None:
    """Sends one huge weight, and asks for its mask."""
    weight = numpy.ones(SIZE // 4, dtype=numpy.float32)
    weight[::3] = 2
    layer = nc.Layer("w", "Linear", weight.shape)
    with nc.Client() as client, client.bind_model("level", RULE, [layer]) as session:
        print("begin", flush=True)
        session.calc_mask({"w": weight})
        print("end", flush=True)


if __name__ == "__main__":
    upload()
