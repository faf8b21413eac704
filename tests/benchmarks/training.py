"""Quantization-aware training: what a step costs, and what travels, near and far."""

from __future__ import annotations

from typing import Callable

import torch

import nni_compression as nc
import peers
from harness import Benchmark, Line, alternate, lines
from nni_compression.torch import QATQuantizer

ROUNDS = 5
RULE = {"op_types": ["default"], "quant_bits": 8}
LINK = 125_000_000  # bytes a second: 1 Gbit/s


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


def large_network() -> torch.nn.Module:
    """Five linear layers: 25 million weights, as many as ResNet-50 has, for the same images."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(3072, 2900),
        torch.nn.ReLU(),
        torch.nn.Linear(2900, 2800),
        torch.nn.ReLU(),
        torch.nn.Linear(2800, 2800),
        torch.nn.ReLU(),
        torch.nn.Linear(2800, 10),
    )


class Trainer:
    """Trains a network of its own on random images, quantized in one way or not at all."""

    def __init__(
        self,
        make: Callable[[], torch.nn.Module],
        steps: int,
        client: nc.Client,
        transfer: str,
        types: tuple[str, ...] = ("weight",),
    ) -> None:
        self.steps = steps
        self.model = make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.quantizer = None
        if transfer:
            self.quantizer = QATQuantizer(
                [{**RULE, "quant_types": types}], client=client, transfer=transfer
            )
            self.quantizer(self.model)
        self.inputs = torch.randn(32, 3, 32, 32)
        self.targets = torch.randint(0, 10, (32,))

    def train(self) -> None:
        for _ in range(self.steps):
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
        return (after - before) / self.steps / 1e3


def compare(
    make: Callable[[], torch.nn.Module],
    steps: int,
    rounds: int,
    clients: dict[str, nc.Client],
) -> list[Benchmark]:
    """A step's time, and what it carries, without quantization and with each way and client."""
    trainers = {"not quantized": Trainer(make, steps, next(iter(clients.values())), "")}
    for place, client in clients.items():
        for transfer in ("weights", "ranges"):
            trainers[f"transfer={transfer!r}{place}"] = Trainer(make, steps, client, transfer)
    weights = sum(p.numel() for p in trainers["not quantized"].model.parameters() if p.dim() > 1)
    times = alternate({name: trainer.train for name, trainer in trainers.items()}, rounds)
    title = f"A step of training with QAT, {weights / 1e6:.1f} million weights, batches of 32"
    sent = [
        Line(name, "KB", [trainer.kilobytes()])
        for name, trainer in trainers.items()
        if trainer.quantizer is not None
    ]
    return [
        Benchmark(title, lines(times, "not quantized", scale=1e3 / steps)),
        Benchmark(title + ": what travels in both directions", sent),
    ]


def activations(client: nc.Client, steps: int) -> Benchmark:
    """What quantized outputs and inputs add to a step, with the call that carries their ranges."""
    trainers = {"not quantized": Trainer(network, steps, client, "")}
    for types in (("output",), ("output", "input"), ("weight",), ("weight", "output")):
        trainers[" and ".join(types)] = Trainer(network, steps, client, "ranges", types)
    times = alternate({name: trainer.train for name, trainer in trainers.items()}, ROUNDS)
    title = "A step of training with QAT of outputs and inputs, 5 layers, transfer='ranges'"
    return Benchmark(title, lines(times, "not quantized", scale=1e3 / steps))


def run(client: nc.Client) -> list[Benchmark]:
    found = compare(network, 20, ROUNDS, {"": client})
    found.append(activations(client, 20))
    with (
        peers.running("relay", peers.SERVICE, str(LINK)) as port,
        nc.Client(f"127.0.0.1:{port}") as far,
        peers.shared_memory_client() as near,
    ):
        places = {"": client, ", shared memory": near, ", 1 Gbit/s": far}
        found += compare(large_network, 1, ROUNDS, places)
    return found
