"""Seconds of training steps of a ResNet-18 that is compressed by this service and by PyTorch.

Run as a program by a Python that has PyTorch 2 and torchvision, `resnet_steps.py STEPS ROUNDS MODE`
prints a JSON object from each way to a list, one value a round. The mode is "eager" or "compiled".
"""

import copy
import json
import sys
from typing import Callable

import torch
import torchvision
from torch import nn
from torch.ao import quantization
from torch.nn.utils import prune

import nni_compression as nc
from harness import alternate
from nni_compression.torch import LevelPruner, QATQuantizer
from nni_compression.torch.statistics import TorchCollector
from nni_compression.torch.weights import find_weights
from nni_compression.values.plan import LayerPlan

BATCH, SIZE = 8, 64  # images, and their height and width
SPARSITY = 0.8
KINDS = ["Conv2d", "Linear"]
PER_CHANNEL = ("input_square_sum", "input_abs_max")


# Compresses a model; returns what is called after every step.
Way = Callable[[nn.Module, nc.Client], Callable[[], object]]


def dense(model: nn.Module, client: nc.Client) -> Callable[[], object]:
    return lambda: None


def pruned_here(model: nn.Module, client: nc.Client) -> Callable[[], object]:
    pruner = LevelPruner([{"sparsity": SPARSITY, "op_types": KINDS}], client=client)
    pruner(model)
    return lambda: None


def pruned_with_statistics(model: nn.Module, client: nc.Client) -> Callable[[], object]:
    """Two numbers for each input channel of every layer, as a plan may declare them."""
    done = pruned_here(model, client)
    weights = [weight for weight in find_weights(model) if weight.dense.dim() > 1]
    plan = {
        weight.name: LayerPlan(
            weight.name, True, statistics=dict.fromkeys(PER_CHANNEL, (weight.dense.shape[1],))
        )
        for weight in weights
    }
    collector = TorchCollector(weights, plan)
    collector.start(None)
    return done


def pruned_by_torch(model: nn.Module, client: nc.Client) -> Callable[[], object]:
    for module in model.modules():
        if type(module).__name__ in KINDS:
            prune.l1_unstructured(module, "weight", SPARSITY)
    return lambda: None


def quantized_here(*types: str, transfer: str = "ranges") -> Way:
    def quantize(model: nn.Module, client: nc.Client) -> Callable[[], object]:
        rule = {"op_types": KINDS, "quant_bits": 8, "quant_types": list(types)}
        quantizer = QATQuantizer([rule], client=client, transfer=transfer)
        quantizer(model)
        return quantizer.step

    return quantize


def quantized_by_torch(outputs: bool) -> Way:
    def quantize(model: nn.Module, client: nc.Client) -> Callable[[], object]:
        # Per tensor, as here.
        weight = quantization.default_weight_fake_quant
        output = quantization.default_fake_quant if outputs else nn.Identity
        chosen = quantization.QConfig(activation=output, weight=weight)
        for module in model.modules():
            if type(module).__name__ in KINDS:
                module.qconfig = chosen
        quantization.prepare_qat(model, inplace=True)
        return lambda: None

    return quantize


WAYS: dict[str, Way] = {
    "dense": dense,
    "level, 80 %": pruned_here,
    "level with statistics of inputs": pruned_with_statistics,
    "torch.nn.utils.prune, 80 %": pruned_by_torch,
    "qat of weights": quantized_here("weight"),
    "the same, transfer='weights'": quantized_here("weight", transfer="weights"),
    "torch.ao, weights": quantized_by_torch(outputs=False),
    "qat of weights and outputs": quantized_here("weight", "output"),
    "torch.ao, weights and outputs": quantized_by_torch(outputs=True),
}


class Trainer:
    """Trains a ResNet-18 of its own on random images."""

    def __init__(self, way: Way, model: nn.Module, client: nc.Client, steps: int, compiled: bool):
        self.model = copy.deepcopy(model)
        self.after = way(self.model, client)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.steps = steps
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.inputs = torch.randn(BATCH, 3, SIZE, SIZE)
        self.targets = torch.randint(0, 10, (BATCH,))

    def train(self) -> None:
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.forward(self.inputs), self.targets)
            loss.backward()
            self.optimizer.step()
            self.after()


def main() -> None:
    steps, rounds = map(int, sys.argv[1:3])
    compiled = sys.argv[3] == "compiled"
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    with nc.Client() as client:
        trainers = {
            name: Trainer(way, model, client, steps, compiled) for name, way in WAYS.items()
        }
        times = alternate({name: trainer.train for name, trainer in trainers.items()}, rounds)
    print(json.dumps({name: [t / steps for t in values] for name, values in times.items()}))


if __name__ == "__main__":
    main()
