"""A pruner in TorchScript that decides about all layers together, by a statistic of gradients.

    python script_global_pruner.py first_order.pt

writes the file that an operator puts into the server's --script_dir. A weight's score is the first
order of what its removal changes in the loss, |weight * gradient|, summed by the trainer: the
statistic `weight_gradient`. In every epoch the weights with the smallest scores in all layers of a
rule are removed, more of them up to `end_epoch`. What was removed stays so.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from nni_compression.script import Statistic, save


class Layer(NamedTuple):
    # A field with the name of a statistic declares it: trainers are told to send it.
    weight_gradient: Statistic


class Options(NamedTuple):
    sparsity: float = 0.5
    end_epoch: int = 1


class FirstOrder(torch.nn.Module):
    """Removes the weights of all layers together that change the loss least."""

    def __init__(self) -> None:
        super().__init__()
        # State of the rule: the weights that are removed, of one layer after the other.
        self.register_buffer("removed", torch.zeros(0, dtype=torch.bool))

    @torch.jit.export
    def calc_masks(
        self, weights: list[Tensor], layers: list[Layer], options: Options, epoch: int, step: int
    ) -> list[Tensor]:
        scores: list[Tensor] = []
        for layer in layers:
            scores.append(layer.weight_gradient.values.abs().flatten())
        score = torch.cat(scores)
        if self.removed.numel() == score.numel():
            score[self.removed] = -1.0
        progress = min(1.0, (epoch + 1) / max(1, options.end_epoch + 1))
        remove = int(score.numel() * options.sparsity * progress)
        self.removed = torch.zeros(score.numel(), dtype=torch.bool)
        self.removed[torch.argsort(score, stable=True)[:remove]] = True
        masks: list[Tensor] = []
        first = 0
        for weight in weights:
            last = first + weight.numel()
            masks.append(self.removed[first:last].logical_not().view(weight.shape))
            first = last
        return masks


if __name__ == "__main__":
    share = "Share of all weights of the rule to remove."
    save(
        FirstOrder(),
        sys.argv[1],
        options={
            "sparsity": {"minimum": 0, "maximum": 1, "description": share},
            "end_epoch": {"minimum": 0, "description": "Epoch from which on it is reached."},
        },
        reference="Importance Estimation for Neural Network Pruning, 2019",
        renewed="epoch",
    )
