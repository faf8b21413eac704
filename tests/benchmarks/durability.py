"""What it costs to store sessions: a large mask and a small call with --data_dir and without."""

from __future__ import annotations

import contextlib
import tempfile

import numpy

import nni_compression as nc
import peers
from calc_mask import ELEMENTS, FILLING, remote_array
from harness import Benchmark, Goal, alternate, lines, quotients, seconds

ROUNDS = 9
EPOCHS = 100
AGP = [{"final_sparsity": 0.9, "end_epoch": 1_000_000}]
MEMORY = "in memory"
PROCESS = "--data_dir"
POWER = "--data_dir --durability=power"


def run(_: nc.Client) -> list[Benchmark]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        flags = {
            MEMORY: (),
            PROCESS: (f"--data_dir={folder}/process",),
            POWER: (f"--data_dir={folder}/power", "--durability=power"),
        }
        servers = {name: stack.enter_context(peers.server(*flags[name])) for name in flags}
        clients = {
            name: stack.enter_context(nc.Client(address)) for name, (address, _) in servers.items()
        }
        near = {
            name: stack.enter_context(nc.Client(servers[name][0], shm_socket=servers[name][1]))
            for name in (MEMORY, PROCESS)
        }
        far = {name: clients[name] for name in near}
        return [masks(far, "TCP"), masks(near, "shared memory"), epochs(clients)]


def masks(clients: dict[str, nc.Client], way: str) -> Benchmark:
    """Masks of ever new weights."""
    random = numpy.random.default_rng(0)
    array = random.standard_normal((ELEMENTS // 9000, 9000), numpy.float32)
    for client in clients.values():
        for _ in range(FILLING):
            remote_array(client, array)
    times = alternate(
        {name: lambda c=client: remote_array(c, array) for name, client in clients.items()},
        ROUNDS,
        repeat=3,
    )
    ratio = quotients(times[PROCESS], times[MEMORY])
    what = f"a mask with --data_dir, of one in memory, {way}"
    return Benchmark(
        f"A mask of 45 million float32 weights, {way}, with its state stored",
        lines(times, MEMORY),
        goals=[Goal("D1", what, 1.1, ratio, at_least=False)],
    )


def epochs(clients: dict[str, nc.Client]) -> Benchmark:
    """Calls that change one number."""
    with contextlib.ExitStack() as stack:
        layers = [nc.Layer("w", "Linear", (1000,))]
        sessions = {
            name: stack.enter_context(client.bind_model("agp", AGP, layers=layers))
            for name, client in clients.items()
        }
        counters = dict.fromkeys(clients, 0)

        def update(name: str) -> float:
            counters[name] += 1
            return seconds(lambda: sessions[name].update_epoch(counters[name]))

        times = alternate({name: lambda n=name: update(n) for name in sessions}, EPOCHS)
    stored = [value * 1e3 for value in times[PROCESS]]
    goal = Goal("D2", "UpdateEpoch with --data_dir", 1, stored, at_least=False, unit="ms")
    return Benchmark("UpdateEpoch, with its state stored", lines(times, MEMORY), goals=[goal])
