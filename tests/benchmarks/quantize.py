"""QAT's 8 bit codes of 16 million weights."""

from __future__ import annotations

import numpy
import torch

import formulas
import nni_compression as nc
from harness import Benchmark, alternate, lines

ELEMENTS = 16_000_000
BITS = 8
ROUNDS = 7


def run(client: nc.Client) -> list[Benchmark]:
    weight = torch.randn(4000, ELEMENTS // 4000, generator=torch.Generator().manual_seed(0))
    array = weight.numpy()
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    rule = {"quant_bits": BITS}
    with client.bind_model("qat", [rule], layers=[layer], framework="pytorch") as session:
        values = session.quantize_weight({"w": array})["w"].dequantize()
        assert numpy.array_equal(values, formulas.torch_fake_quantize(weight, BITS).numpy())
        times = alternate(
            {
                "NNI's formula": lambda: formulas.nni_fake_quantize(weight, BITS),
                "torch.fake_quantize": lambda: formulas.torch_fake_quantize(weight, BITS),
                "service, codes": lambda: session.quantize_weight({"w": array})["w"].codes,
                "service, values": lambda: session.quantize_weight({"w": array})["w"].dequantize(),
            },
            ROUNDS,
        )
    title = "QAT, 8 bits, of 16 million float32 weights"
    return [Benchmark(title, lines(times, "NNI's formula"))]
