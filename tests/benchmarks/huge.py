"""One tensor of 4 GB: what the server needs beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy

import nni_compression as nc
import peers
from harness import Benchmark, Goal, Line, seconds
from many import server_memory

SIZE = 4 << 30


def run(client: nc.Client) -> list[Benchmark]:
    del client
    over_tcp, tcp_peak = watched(lambda: peers.native("huge", peers.SERVICE)["service"])
    shared, shared_peak = watched(lambda: [mask_in_shared_memory()])
    peak = "the server's peak of anonymous memory, of the tensor"
    return [
        Benchmark(
            "A mask of 4 GB of float32 weights, over TCP",
            [Line("CalcMask", "s", over_tcp), Line(peak, "x", [tcp_peak])],
            goals=[Goal("P8", "server's memory for 4 GB, TCP", 1.15, [tcp_peak], at_least=False)],
        ),
        Benchmark(
            "A mask of 4 GB of float32 weights, through shared memory",
            [Line("CalcMask from Python", "s", shared), Line(peak, "x", [shared_peak])],
            note="The memory that is shared is made in this call.",
            goals=[
                Goal("P8", "server's memory for 4 GB, shared", 0.15, [shared_peak], at_least=False)
            ],
        ),
    ]


def mask_in_shared_memory() -> float:
    """Seconds."""
    weight = numpy.ones(SIZE // 4, dtype=numpy.float32)
    weight[::3] = 2
    layer = nc.Layer("w", "Linear", weight.shape)
    with (
        peers.shared_memory_client() as near,
        near.bind_model("level", [{"sparsity": 0.5}], [layer]) as session,
    ):
        return seconds(lambda: session.calc_mask({"w": weight}))


def watched(call: Callable[[], list[float]]) -> tuple[list[float], float]:
    """What a call answers, and how far the server's memory grew meanwhile, as a share of SIZE."""
    before = server_memory()
    peak = before
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, server_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = call()
    finally:
        over.set()
        watcher.join()
    return answer, (peak - before) / SIZE
