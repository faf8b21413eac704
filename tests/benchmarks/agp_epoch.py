"""An epoch of AGP on a network of ResNet-50's size, from `update_epoch` to masked weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable

import numpy as np
import torch

import local_pruners
import nni_compression as nc
import peers
from harness import Benchmark, Goal, Line, lines, quotients
from nni_compression.torch import AGPPruner

EPOCHS = 10
RULE = {"final_sparsity": 0.8, "start_epoch": 0, "end_epoch": EPOCHS + 1}
NNI = "NNI's formula (topk)"
LINK = 125_000_000  # bytes a second: 1 Gbit/s


def shapes() -> Iterator[tuple[int, ...]]:
    """The weights of ResNet-50's 53 convolutions and its last layer: 25.5 million."""
    yield 64, 3, 7, 7
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield width, inputs, 1, 1
            yield width, width, 3, 3
            yield 4 * width, width, 1, 1
            if block == 0:
                yield 4 * width, inputs, 1, 1
            inputs = 4 * width
    yield 1000, inputs


def network() -> torch.nn.Module:
    """Layers with these weights; none is run."""
    torch.manual_seed(0)
    return torch.nn.ModuleList(
        torch.nn.Linear(shape[1], shape[0], bias=False)
        if len(shape) == 2
        else torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
        for shape in shapes()
    )


class Trainer:
    """A network under one pruner, whose weights are others in every epoch.

    Args:
        pruner: not bound yet.
        make_array: of a shape, makes the memory that a weight is moved to; None: it stays.
        device: of the weights.
    """

    def __init__(
        self,
        pruner: AGPPruner | local_pruners.AGPPruner,
        make_array: Callable[[torch.Size], np.ndarray] | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = network().to(device)
        self.weights = [layer.weight for layer in self.model]
        if make_array is not None:
            for weight in self.weights:
                weight.data = torch.from_numpy(make_array(weight.shape)).copy_(weight.data)
        self.pruner = pruner
        pruner(self.model)

    def epoch(self, number: int) -> float:
        """Seconds from `update_epoch` until each layer has its masked weight."""
        with torch.no_grad():
            for weight in self.weights:
                weight.mul_(1.001)
            self._synchronize()
            begin = time.perf_counter()
            self.pruner.update_epoch(number)
            if isinstance(self.pruner, AGPPruner):
                for layer in self.model:
                    layer.weight  # noqa: B018 the first read asks for the masks
            else:
                self.pruner.refresh()
            self._synchronize()
            return time.perf_counter() - begin

    def traffic(self) -> int:
        """Bytes sent and received so far."""
        return self.pruner.stats.bytes_sent + self.pruner.stats.bytes_received

    def _synchronize(self) -> None:
        if self.weights[0].is_cuda:
            torch.cuda.synchronize()


def run(client: nc.Client) -> list[Benchmark]:
    names = [str(number) for number in range(len(network()))]
    rules = [{"op_names": names, **RULE}]

    def sending(what: str, to: nc.Client) -> AGPPruner:
        return AGPPruner(rules, client=to, transfer=what)

    with (
        peers.running("relay", peers.SERVICE, str(LINK)) as port,
        nc.Client(f"127.0.0.1:{port}") as far,
        peers.shared_memory_client() as near,
    ):
        trainers = {
            NNI: Trainer(local_pruners.AGPPruner(rules)),
            "weights, TCP": Trainer(sending("weights", client)),
            "weights, shared memory": Trainer(sending("weights", near)),
            "weights, in shared_array": Trainer(sending("weights", near), near.shared_array),
            "weights, 1 Gbit/s": Trainer(sending("weights", far)),
            "histograms, TCP": Trainer(sending("histogram", client)),
            "histograms, 1 Gbit/s": Trainer(sending("histogram", far)),
        }
        times: dict[str, list[float]] = {name: [] for name in trainers}
        traffic: dict[str, list[float]] = {"weights, TCP": [], "histograms, TCP": []}
        for number in range(EPOCHS + 1):
            for name, trainer in trainers.items():
                before = trainer.traffic() if name in traffic else 0
                taken = trainer.epoch(number)
                if number > 0:  # epoch 0 prunes nothing
                    times[name].append(taken)
                    if name in traffic:
                        traffic[name].append((trainer.traffic() - before) / 1e6)
        for trainer in list(trainers.values())[1:]:
            trainer.pruner.close()
    size = sum(weight.numel() for weight in trainers[NNI].weights)
    goals = [
        Goal("I2", f"an AGP epoch of ResNet-50, {name}", 20, quotients(times[NNI], times[name]))
        for name in ("weights, TCP", "weights, shared memory", "weights, in shared_array")
    ]
    goals.append(
        Goal(
            "H1",
            "what an AGP epoch of ResNet-50 sends and receives by histograms",
            2,
            traffic["histograms, TCP"],
            at_least=False,
            unit="MB",
        )
    )
    title = f"An epoch of AGP, {len(names)} layers of ResNet-50, {size / 1e6:.1f} million weights"
    return [
        Benchmark(title, lines(times, NNI), goals=goals),
        Benchmark(
            title + ": what travels in both directions",
            [Line(name, "MB", values) for name, values in traffic.items()],
        ),
    ]
