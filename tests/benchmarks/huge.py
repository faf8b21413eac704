"""One tensor of 4 GB: what the server needs beside it."""

from __future__ import annotations

import threading

import nni_compression as nc
import peers
from harness import Benchmark, Goal, Line
from many import server_memory

SIZE = 4 << 30


def run(client: nc.Client) -> list[Benchmark]:
    del client
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
        times = peers.native("huge", peers.SERVICE)
    finally:
        over.set()
        watcher.join()
    share = (peak - before) / SIZE
    return [
        Benchmark(
            "A mask of 4 GB of float32 weights, over TCP",
            [
                Line("CalcMask", "s", times["service"]),
                Line("the server's peak of anonymous memory, of the tensor", "x", [share]),
            ],
            goals=[Goal("P8", "server's memory for 4 GB, TCP", 1.15, [share], at_least=False)],
        )
    ]
