"""Quantization-aware training of a small network: what a step costs, and what travels."""

from __future__ import annotations

import torch

import nni_compression as nc
from harness import Benchmark, Line, alternate, lines
from nni_compression.torch import QATQuantizer

STEPS = 20
ROUNDS = 5
RULE = {"op_types": ["default"], "quant_bits": 8}


def network() -> torch.nn.Module:
    """Three convolutions and two linear layers: 1.5 million weights, for images of 32 x 32."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 128, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(2048, 700),
        torch.nn.ReLU(),
        torch.nn.Linear(700, 10),
    )


class Trainer:
    """Trains a network of its own on random images, quantized in one way or not at all."""

    def __init__(self, client: nc.Client, transfer: str) -> None:
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.quantizer = None
        if transfer:
            self.quantizer = QATQuantizer([RULE], client=client, transfer=transfer)
            self.quantizer(self.model)
        self.inputs = torch.randn(32, 3, 32, 32)
        self.targets = torch.randint(0, 10, (32,))

    def train(self) -> None:
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(self.inputs), self.targets)
            loss.backward()
            self.optimizer.step()
            if self.quantizer is not None:
                self.quantizer.step()

    def kilobytes(self) -> float:
        """What one step sends and receives."""
        before = self.quantizer.stats.bytes_sent + self.quantizer.stats.bytes_received
        self.train()
        after = self.quantizer.stats.bytes_sent + self.quantizer.stats.bytes_received
        return (after - before) / STEPS / 1e3


def run(client: nc.Client) -> list[Benchmark]:
    trainers = {
        "not quantized": Trainer(client, ""),
        "transfer='weights'": Trainer(client, "weights"),
        "transfer='ranges'": Trainer(client, "ranges"),
    }
    times = alternate({name: trainer.train for name, trainer in trainers.items()}, ROUNDS)
    title = "A step of training with QAT, 1.5 million weights, batches of 32"
    sent = [
        Line(name, "KB", [trainer.kilobytes()])
        for name, trainer in trainers.items()
        if trainer.quantizer is not None
    ]
    return [
        Benchmark(title, lines(times, "not quantized", scale=1e3 / STEPS)),
        Benchmark(title + ": what travels in both directions", sent),
    ]
