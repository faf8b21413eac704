"""Many sessions and many trainers at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess

import nni_compression as nc
import peers
from harness import Benchmark, Goal, Line

SESSIONS = 1000
MASK_BYTES = (430_500 + 7) // 8  # of one session


def server_memory(field: str = "RssAnon") -> int:
    """Bytes that /proc says the server holds."""
    with open(f"/proc/{os.environ['SERVER_PID']}/status", encoding="utf-8") as file:
        found = next(line for line in file if line.startswith(field + ":"))
    return int(found.split()[1]) * 1024


def run(client: nc.Client) -> list[Benchmark]:
    del client
    process = subprocess.Popen(
        [peers.PROGRAM, "load", peers.SERVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def until(phase: str) -> None:
        assert json.loads(process.stdout.readline()) == {"phase": phase}

    until("begin")
    before = server_memory()
    process.stdin.write("\n")
    process.stdin.flush()
    until("idle")
    idle = (server_memory() - before) / SESSIONS - MASK_BYTES
    times = json.loads(process.communicate("\n")[0])
    assert process.returncode == 0

    alone = statistics.median(times["alone"])
    p99 = {name: percentile(times[name], 0.99) for name in times}
    shown = {
        "one trainer": times["alone"],
        "64 that train 200 ms between calls": times["training"],
        "64 that do nothing else": times["saturated"],
    }
    return [
        Benchmark(
            f"All masks of LeNet beside {SESSIONS:,} idle sessions",
            [Line(name, "ms", [t * 1e3 for t in values]) for name, values in shown.items()],
            facts={"p99_ms": {n: t * 1e3 for n, t in p99.items()}, "bytes_per_idle_session": idle},
            note="99th percentiles: "
            + ", ".join(f"{p99[key] * 1e3:.3g} ms" for key in ("alone", "training", "saturated"))
            + ". Calls that queue for two cores all the time wait for one another.",
            goals=[
                Goal(
                    "P7",
                    "p99 with 64 trainers, of one's median",
                    20,
                    [p99["training"] / alone],
                    at_least=False,
                ),
                Goal(
                    "P7",
                    "the same, trainers that do nothing else",
                    20,
                    [p99["saturated"] / alone],
                    at_least=False,
                ),
                Goal(
                    "P7",
                    "an idle session beyond its masks",
                    64,
                    [idle / 1024],
                    at_least=False,
                    unit="KiB",
                ),
            ],
        )
    ]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below this share of them."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
