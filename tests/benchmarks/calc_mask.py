"""A mask of 45 million weights: through the service, and computed by the trainer."""

from __future__ import annotations

import numpy
import torch

import formulas
import nni_compression as nc
from harness import Benchmark, alternate, lines, seconds
from nni_compression.torch import LevelPruner

ELEMENTS = 45_000_000
SPARSITY = 0.8
ROUNDS = 3
RULE = {"sparsity": SPARSITY}


def remote_array(client: nc.Client, array: numpy.ndarray) -> float:
    """Seconds from an array to a bool array, in a session of its own: its first mask."""
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with client.bind_model("level", [RULE], layers=[layer], framework="pytorch") as session:
        return seconds(lambda: touch(session.calc_mask({"w": array})["w"].to_numpy()))


def remote_torch(client: nc.Client, module: torch.nn.Module) -> float:
    """Seconds from a PyTorch weight to a bool tensor."""
    pruner = LevelPruner([RULE], client=client)
    model = torch.nn.Sequential(module)
    pruner(model)
    try:
        return seconds(lambda: touch(pruner.masks["0"].numpy()))
    finally:
        pruner.unwrap()


def touch(mask: numpy.ndarray) -> None:
    """Sees that the mask is there."""
    assert mask.dtype == bool
    assert mask.size == ELEMENTS


def run(client: nc.Client) -> list[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(9000, ELEMENTS // 9000, bias=False)
    with torch.no_grad():
        module.weight.normal_(generator=generator)
    weight = module.weight.detach()
    array = weight.numpy()

    kept = formulas.kthvalue_mask(weight, SPARSITY).numpy()
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with client.bind_model("level", [RULE], layers=[layer], framework="pytorch") as session:
        ours = session.calc_mask({"w": array})["w"].to_numpy()
    # Elements that tie with the threshold: the formula removes all of them.
    differing = int((ours != kept).sum())
    assert differing < 1000
    del ours, kept

    times = alternate(
        {
            "NNI's formula (topk)": lambda: formulas.nni_mask(weight, SPARSITY),
            "kthvalue": lambda: formulas.kthvalue_mask(weight, SPARSITY),
            "service, numpy array": lambda: remote_array(client, array),
            "service, PyTorch": lambda: remote_torch(client, module),
        },
        ROUNDS,
    )
    title = "A mask of 45 million float32 weights, sparsity 0.8"
    against_kthvalue = {name: times[name] for name in list(times)[1:]}
    facts = {"elements_that_differ_by_ties": differing}
    return [
        Benchmark(title, lines(times, "NNI's formula (topk)"), facts=facts),
        Benchmark(title + ", against kthvalue", lines(against_kthvalue, "kthvalue")),
    ]
