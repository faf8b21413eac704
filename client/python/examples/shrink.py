"""Makes a trained network smaller and faster: half of its filters go, on scikit-learn's digits.

    python3 shrink.py --server 127.0.0.1:50051 --pruner fpgm --plot shrink.png

Needs PyTorch 2, torch-pruning, scikit-learn and a running compression server; onnxruntime, onnx and
onnxscript for latencies in ONNX Runtime, and matplotlib for --plot. A residual network learns to
read 1,797 images of handwritten digits. The server chooses half of the filters, `shrink` takes them
out, and the smaller network is fine-tuned. A table compares it with the dense one.

The exit status is 0 only if the smaller network has less than a third of the MACs and reads at most
2 points fewer of the test images than the dense one.
"""

import argparse
import copy
import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from typing import Any, Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

import nni_compression as nc
from nni_compression.torch import (
    FPGMPruner,
    L1FilterPruner,
    TaylorFOWeightFilterPruner,
    shrink,
)

PRUNERS = {"l1": L1FilterPruner, "fpgm": FPGMPruner, "taylor": TaylorFOWeightFilterPruner}
SPARSITY = 0.5
BATCH = 64
RUNTIME = ("onnx", "onnxscript", "onnxruntime")
ROUNDS = 15  # of measuring latencies
LARGEST_LOSS = 2.0  # points of accuracy

Data = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Two convolutions whose outputs are added to the block's input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Net(nn.Module):
    """Reads an 8x8 image: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2))
        self.classes = nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(images))))
        return self.classes(x.mean((2, 3)))


def load_data(seed: int) -> tuple[Data, Data]:
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]: to train on, and to test with."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=seed, stratify=digits.target
    )
    return (images[train], labels[train]), (images[test], labels[test])


def train(model: nn.Module, data: Data, epochs: int, rate: float) -> None:
    """Trains with Adam and a learning rate that falls to 0."""
    images, labels = data
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def collect_gradients(model: nn.Module, data: Data) -> None:
    """Runs all images forward and backward, and steps an optimizer that changes nothing.

    The pruner looks at the gradients when an optimizer steps.
    """
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.eval()
    for batch in torch.arange(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def prune(model: nn.Module, data: Data, pruner: str, client: nc.Client) -> Any:
    """Masks half of the filters of every convolution of the model, and returns the pruner."""
    config_list = [{"sparsity": SPARSITY, "op_types": ["Conv2d"]}]
    # With example inputs it finds the layers whose outputs are added: they lose the same filters.
    found = PRUNERS[pruner](model, config_list, client=client, example_inputs=data[0][:1])
    found.compress()
    if pruner == "taylor":
        collect_gradients(model, data)
    found.refresh()  # asks the server for the masks
    return found


def accuracy(model: nn.Module, data: Data) -> float:
    """Percentage of images that are read correctly."""
    images, labels = data
    model.eval()
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiplications, each with an addition, of convolutions and linear layers for an image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    return counter.get_total_flops() // 2


def in_torch(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A call of the model in PyTorch."""
    model.eval()

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


def in_onnxruntime(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A call of the model in ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = f"{folder}/model.onnx"
        torch.onnx.export(model.eval(), (images,), path, verbose=False)
        session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def latencies(*calls: Callable[[], object]) -> list[float]:
    """The median of each in milliseconds. They take turns, so that other load hits all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(-2, ROUNDS):  # the first two warm up
        for call, found in zip(calls, times):
            begin = time.perf_counter()
            call()
            if number >= 0:
                found.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in times]


def compare(dense: nn.Module, small: nn.Module, images: torch.Tensor) -> dict[str, list[float]]:
    """What is measured -> its values of the dense and of the smaller model."""
    models = dense, small
    rows: dict[str, list[float]] = {
        "parameters": [parameters(model) for model in models],
        "MACs": [macs(model, images) for model in models],
        "PyTorch, ms": latencies(*(in_torch(model, images) for model in models)),
    }
    missing = [name for name in RUNTIME if importlib.util.find_spec(name) is None]
    if missing:
        print(f"no latency in ONNX Runtime: {', '.join(missing)} not installed")
    else:
        rows["ONNX Runtime, ms"] = latencies(*(in_onnxruntime(model, images) for model in models))
    return rows


def show(rows: dict[str, list[float]]) -> None:
    """Prints the table."""
    print(f"\n{'':<18}{'dense':>12}{'small':>12}{'ratio':>8}")
    for name, (dense, small) in rows.items():
        digits = ".2f" if name.endswith("ms") else ",.0f"
        print(f"{name:<18}{dense:>12{digits}}{small:>12{digits}}{dense / small:>6.1f} x")
    print(f"\nlatencies: a batch of {BATCH} images on one thread, medians of {ROUNDS}")


def plot(rows: dict[str, list[float]], accuracies: dict[str, float], path: str) -> None:
    """Writes bars: what is left of the dense model, and the accuracies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    costs, reads = figure.subplots(1, 2, width_ratios=(3, 2))
    left = [100 * small / dense for dense, small in rows.values()]
    costs.bar_label(costs.bar([name.split(",")[0] for name in rows], left), fmt="%.0f %%")
    costs.set(title="cost of the smaller model", ylabel="% of the dense one", ylim=(0, 100))
    bars = reads.bar(list(accuracies), list(accuracies.values()), color="tab:green")
    reads.bar_label(bars, fmt="%.1f %%")
    reads.set(title="test images read correctly", ylabel="%", ylim=(0, 110))
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--server", help="HOST:PORT; default $NNI_COMPRESSION_SERVER")
    parser.add_argument("--pruner", choices=PRUNERS, default="l1", help="how filters are ranked")
    parser.add_argument("--epochs", type=int, default=10, help="of training, and of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="write a plot there, such as shrink.png")
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    data, test = load_data(arguments.seed)
    images = test[0][:BATCH]
    accuracies = {}
    with nc.Client(arguments.server) as client:
        print(f"server {client.server}: {client.health()}")
        dense = Net()
        train(dense, data, arguments.epochs, rate=2e-3)
        accuracies["dense"] = accuracy(dense, test)
        print(f"dense: {accuracies['dense']:.1f} % of {len(test[1])} test images")

        model = copy.deepcopy(dense)
        pruner = prune(model, data, arguments.pruner, client)
        accuracies["pruned"] = accuracy(model, test)
        print(f"pruned by {arguments.pruner}: {accuracies['pruned']:.1f} %")
        # What BatchNorm adds to removed filters goes with them; fine-tuning makes up for it.
        small = shrink(model, images[:1], zero_constants=True)
        pruner.close()

    train(small, data, arguments.epochs, rate=1e-3)
    accuracies["fine-tuned"] = accuracy(small, test)
    print(f"smaller model, fine-tuned: {accuracies['fine-tuned']:.1f} %")

    rows = compare(dense, small, images)
    show(rows)
    if arguments.plot:
        plot(rows, accuracies, arguments.plot)
        print(f"plot: {arguments.plot}")

    failures = []
    if 3 * rows["MACs"][1] > rows["MACs"][0]:
        failures.append("the smaller model has more than a third of the MACs")
    if accuracies["dense"] - accuracies["fine-tuned"] > LARGEST_LOSS:
        failures.append(f"the smaller model lost more than {LARGEST_LOSS} points of accuracy")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except nc.UnavailableError as error:
        sys.exit(f"no compression server: {error}")
