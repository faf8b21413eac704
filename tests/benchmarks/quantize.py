"""8 bit codes of 16 million weights, by every quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy
import torch

import formulas
import nni_compression as nc
import peers
from harness import Benchmark, Goal, alternate, lines, quotients

ELEMENTS = 16_000_000
BITS = 8
ROUNDS = 7
NNI = "NNI's formula"


def run(client: nc.Client) -> list[Benchmark]:
    weight = torch.randn(4000, ELEMENTS // 4000, generator=torch.Generator().manual_seed(0))
    with peers.shared_memory_client() as near:
        return list(benchmarks(client, near, weight))


def benchmarks(client: nc.Client, near: nc.Client, weight: torch.Tensor) -> Iterator[Benchmark]:
    array = weight.numpy()
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    for algorithm, formula in (
        ("qat", formulas.nni_fake_quantize),
        ("naive", formulas.nni_naive),
        ("dorefa", formulas.nni_dorefa),
    ):
        with ExitStack() as stack:
            far, local = (
                stack.enter_context(each.bind_model(algorithm, [{"quant_bits": BITS}], [layer]))
                for each in (client, near)
            )
            if algorithm == "qat":
                values = far.quantize_weight({"w": array})["w"].dequantize()
                expected = formulas.torch_fake_quantize(weight, BITS).numpy()
                assert numpy.array_equal(values, expected)
            contenders = {
                NNI: lambda formula=formula: formula(weight, BITS),
                "service, codes": lambda far=far: codes(far, array),
                "service, values": lambda far=far: far.quantize_weight({"w": array})[
                    "w"
                ].dequantize(),
                "shared memory, codes": lambda local=local: codes(local, array),
            }
            if algorithm == "qat":
                contenders["torch.fake_quantize"] = lambda: formulas.torch_fake_quantize(
                    weight, BITS
                )
            times = alternate(contenders, ROUNDS, repeat=3)
        near_by, over_tcp = (
            quotients(times[NNI], times[name])
            for name in ("shared memory, codes", "service, codes")
        )
        yield Benchmark(
            f"{algorithm}, {BITS} bits, of 16 million float32 weights",
            lines(times, NNI),
            goals=[
                Goal("P2", f"{algorithm}, against NNI's formula, TCP", 1.5, over_tcp),
                Goal("P2", f"{algorithm}, against NNI's formula, shared", 4, near_by),
            ],
        )


def codes(session: nc.Session, array: numpy.ndarray) -> object:
    """The codes of an array."""
    return session.quantize_weight({"w": array})["w"].codes
