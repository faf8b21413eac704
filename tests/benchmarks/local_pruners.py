"""What a trainer does without the service: NNI's pruners, which compute their masks themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

import formulas


@dataclass
class Layer:
    """A layer that is pruned; a zero of the mask is a weight that is gone."""

    module: torch.nn.Module
    rule: Mapping[str, Any]
    mask: torch.Tensor

    def prune(self, sparsity: float) -> None:
        """Renews the mask; what was pruned stays so."""
        weight = self.module.weight.detach()
        if int(weight.numel() * sparsity) > 0:
            self.mask = formulas.nni_mask(weight * self.mask, sparsity).to(weight.dtype)

    def apply(self) -> None:
        """Makes the product the weight's data, as NNI 1.x does before each forward pass."""
        self.module.weight.data = self.module.weight.data.mul(self.mask)


class LevelPruner:
    """Prunes once, when it is put on the model. Has what the search's trial calls."""

    def __init__(self, config_list: Sequence[Mapping[str, Any]]) -> None:
        self.rules = {name: rule for rule in config_list for name in rule["op_names"]}
        self.layers: list[Layer] = []

    def __call__(self, model: torch.nn.Module) -> None:
        modules = dict(model.named_modules())
        for name, rule in self.rules.items():
            module = modules[name]
            layer = Layer(module, rule, torch.ones_like(module.weight))
            module.register_forward_pre_hook(lambda module, inputs, layer=layer: layer.apply())
            self.layers.append(layer)
        self._begin()

    def _begin(self) -> None:
        for layer in self.layers:
            layer.prune(layer.rule["sparsity"])

    def update_epoch(self, epoch: int) -> None:
        """Nothing: the masks stay."""

    def step(self) -> None:
        """Nothing: masks do not depend on steps."""

    def refresh(self) -> None:
        """Applies the masks."""
        for layer in self.layers:
            layer.apply()

    def unwrap(self) -> None:
        """Leaves the zeros in the weights."""
        self.refresh()

    @property
    def session(self) -> Any:
        """Reports layers as a session does."""
        return SimpleNamespace(info=lambda: SimpleNamespace(layers=list(map(report, self.layers))))


class AGPPruner(LevelPruner):
    """Prunes more in each epoch."""

    def _begin(self) -> None:
        self.update_epoch(0)

    def update_epoch(self, epoch: int) -> None:
        """Renews the masks where the epoch is in the schedule."""
        for layer in self.layers:
            start, end = layer.rule.get("start_epoch", 0), layer.rule["end_epoch"]
            if start <= epoch < end:
                left = 1 - (epoch - start) / (end - start - 1)
                layer.prune(layer.rule["final_sparsity"] * (1 - left**3))


def report(layer: Layer) -> Any:
    """What a session's report says of the layer."""
    elements = layer.mask.numel()
    achieved = 1 - float(layer.mask.sum()) / elements
    return SimpleNamespace(
        compressed=True, elements=elements, bits=None, achieved_sparsity=achieved
    )
