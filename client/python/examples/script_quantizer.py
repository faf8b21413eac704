"""A quantizer in TorchScript: symmetric codes, clipped at a share of the largest weight.

python script_quantizer.py clipped.pt
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from nni_compression.script import Layer, save


class Options(NamedTuple):
    quant_bits: int = 8
    reach: float = 0.9


class Clipped(torch.nn.Module):
    """Rounds weights to codes, clipped at a share of the largest magnitude."""

    @torch.jit.export
    def quantize_weight(
        self, weight: Tensor, layer: Layer, options: Options, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        reach = float(weight.abs().max()) * options.reach
        scale = max(reach, 1e-30) / (2 ** (options.quant_bits - 1) - 0.5)
        return torch.tensor([scale]), torch.zeros(1, dtype=torch.int32)


if __name__ == "__main__":
    save(
        Clipped(),
        sys.argv[1],
        options={
            "quant_bits": {"minimum": 2, "maximum": 16, "description": "Bits of a code."},
            "reach": {
                "minimum": 0.01,
                "maximum": 1,
                "description": "Share of the largest magnitude that codes reach.",
            },
        },
        signed=True,
    )
