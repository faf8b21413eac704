"""A mask of 45 million weights: through the service, and computed by the trainer."""

from __future__ import annotations

import numpy
import torch

import formulas
import nni_compression as nc
import peers
from harness import Benchmark, Goal, alternate, lines, quotients, seconds
from nni_compression.torch import LevelPruner

ELEMENTS = 45_000_000
SPARSITY = 0.8
ROUNDS = 3
RULE = {"sparsity": SPARSITY}
# New weights until the server keeps as many as it may: until then each takes memory that the
# machine has to find first, which is slow on virtual ones.
FILLING = 14
TCP = "service, PyTorch"
SHARED = "shared memory, PyTorch"
IN_PLACE = "shared memory, PyTorch, in a shared_array"


def remote_array(client: nc.Client, array: numpy.ndarray, fresh: bool = True) -> float:
    """Seconds from an array to a bool array, in a session of its own: its first mask."""
    if fresh:
        renew(array)
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with client.bind_model("level", [RULE], layers=[layer], framework="pytorch") as session:
        return seconds(lambda: touch(session.calc_mask({"w": array})["w"].to_numpy()))


def remote_torch(client: nc.Client, weight: torch.Tensor) -> float:
    """Seconds from a PyTorch weight to a bool tensor."""
    renew(weight.numpy())
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)  # the same memory
    pruner = LevelPruner([RULE], client=client)
    pruner(torch.nn.Sequential(layer))
    try:
        return seconds(lambda: touch(pruner.masks["0"].numpy()))
    finally:
        pruner.close()


def renew(array: numpy.ndarray) -> None:
    """Makes it a weight that the server does not know."""
    array[0, 0] += 1


def touch(mask: numpy.ndarray) -> None:
    """Sees that the mask is there."""
    assert mask.dtype == bool
    assert mask.size == ELEMENTS


def run(client: nc.Client) -> list[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ELEMENTS // 9000, 9000, generator=generator)
    array = weight.numpy()

    kept = formulas.kthvalue_mask(weight, SPARSITY).numpy()
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with client.bind_model("level", [RULE], layers=[layer], framework="pytorch") as session:
        ours = session.calc_mask({"w": array})["w"].to_numpy()
    # Elements that tie with the threshold: the formula removes all of them.
    differing = int((ours != kept).sum())
    assert differing < 1000
    del ours, kept

    filling = [remote_array(client, array) for _ in range(FILLING)]

    with peers.shared_memory_client() as near:
        placed = torch.from_numpy(near.shared_array(array.shape))
        placed.copy_(weight)
        times = alternate(
            {
                "NNI's formula (topk)": lambda: formulas.nni_mask(weight, SPARSITY),
                "kthvalue": lambda: formulas.kthvalue_mask(weight, SPARSITY),
                "service, numpy array": lambda: remote_array(client, array),
                "service, numpy array, sent before": lambda: remote_array(client, array, False),
                TCP: lambda: remote_torch(client, weight),
                "shared memory, numpy array": lambda: remote_array(near, array),
                SHARED: lambda: remote_torch(near, weight),
                IN_PLACE: lambda: remote_torch(near, placed),
            },
            ROUNDS,
            repeat=3,
        )
        assert near.stats.bytes_sent < array.nbytes  # it did go that way
    nni = times["NNI's formula (topk)"]
    goals = [
        Goal("P1", "a mask, against NNI's formula, TCP", 40, quotients(nni, times[TCP])),
        Goal("P1", "a mask, against NNI's formula, shared", 120, quotients(nni, times[SHARED])),
        Goal("P1", "the same, weight in shared memory", 120, quotients(nni, times[IN_PLACE])),
    ]
    title = "A mask of 45 million float32 weights, sparsity 0.8"
    against_kthvalue = {name: times[name] for name in list(times)[1:]}
    facts = {
        "elements_that_differ_by_ties": differing,
        "ms_of_the_first_calls": [round(one * 1e3) for one in filling],
    }
    return [
        Benchmark(title, lines(times, "NNI's formula (topk)"), facts=facts, goals=goals),
        Benchmark(title + ", against kthvalue", lines(against_kthvalue, "kthvalue")),
    ]
