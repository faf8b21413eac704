"""A pruner in TorchScript: keeps the weights that move away from 0 (Sanh et al., 2020).

    python script_pruner.py moving.pt

writes the file that an operator puts into the server's --script_dir. From then on every trainer
can bind "moving". The trainer sends each weight's gradient with `Step`; a weight's score is the
sum of -gradient * weight, updated with each mask, and the weights with the smallest scores are
removed.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from nni_compression.script import Layer, save


class Options(NamedTuple):
    sparsity: float = 0.5


class Movement(torch.nn.Module):
    """Removes the weights that gradients move towards 0; selects them again in every epoch."""

    def __init__(self) -> None:
        super().__init__()
        # State: each layer of a session has its own, and the session saves it.
        self.register_buffer("moved", torch.zeros(0))
        self.register_buffer("gradient", torch.zeros(0))

    @torch.jit.export
    def on_gradient(
        self, gradient: Tensor, layer: Layer, options: Options, epoch: int, step: int
    ) -> None:
        flat = gradient.flatten().float()
        self.gradient = self.gradient + flat if self.gradient.numel() == flat.numel() else flat

    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: Options, epoch: int, step: int
    ) -> Tensor:
        flat = weight.flatten().float()
        if self.moved.numel() != flat.numel():
            self.moved = torch.zeros_like(flat)
        if self.gradient.numel() == flat.numel():
            self.moved = self.moved - self.gradient * flat
            self.gradient = torch.zeros(0)
        remove = int(flat.numel() * options.sparsity)
        order = torch.argsort(self.moved, stable=True)
        mask = torch.ones_like(flat)
        mask[order[:remove]] = 0
        return mask.reshape(weight.shape)


if __name__ == "__main__":
    save(
        Movement(),
        sys.argv[1],
        options={
            "sparsity": {
                "minimum": 0,
                "maximum": 1,
                "description": "Share of each layer's weights to remove.",
            }
        },
        reference="Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020",
        renewed="epoch",
    )
