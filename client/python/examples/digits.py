"""Prunes and quantizes a small network that is really trained, on scikit-learn's digits.

    python3 digits.py --server 127.0.0.1:50051

Needs PyTorch, scikit-learn and a running compression server. A convolutional network learns to read
1,797 images of handwritten digits; then it is fine-tuned, each time from the same weights:

* pruned with AGP, gradually to 80 % over the epochs,
* pruned with the level pruner, 80 % at once,
* quantized to 8 bits (QAT),
* quantized to 8 bits (QAT), with the layers' outputs quantized to 8 bits as well,
* quantized to 4 bits (DoReFa).

A table shows the accuracy on test images and the cost of the service. The exit status is 0 only if
AGP and both kinds of QAT lose at most 2 points and pruned weights are zero in the forward pass.
"""

import argparse
import copy
import dataclasses
import random
import sys
import time
from typing import Any, Callable, Optional

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F  # noqa: N812

import nni_compression as nc
from nni_compression.torch import AGPPruner, DoReFaQuantizer, LevelPruner, Pruner, QATQuantizer

SEED = 7
SPARSITY = 0.8
LARGEST_LOSS = 2.0  # points of accuracy

Data = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Reads an 8x8 image: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(images))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


@dataclasses.dataclass
class Row:
    """A line of the table."""

    name: str
    before: float  # accuracy in percent
    after: float
    training: float  # seconds
    bits: str = "32"
    wire: int = 0  # bytes, both ways
    calls: int = 0
    waiting: float = 0.0  # seconds
    sparsity: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)


def use_one_thread() -> None:
    """Limits PyTorch and its BLAS to one thread.

    The network is small and the machine shared: BLAS threads busy-wait between products.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)


def load_data() -> tuple[Data, Data]:
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]: to train on, and to test with."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=SEED, stratify=digits.target
    )
    return (images[train], labels[train]), (images[test], labels[test])


def train(
    model: nn.Module,
    data: Data,
    epochs: int,
    compressor: Optional[Any] = None,
    rate: float = 2e-3,
    after_epoch: Optional[Callable[[int], None]] = None,
) -> float:
    """Trains the model; returns the seconds it took."""
    images, labels = data
    order = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    begin = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        if compressor is not None:
            compressor.update_epoch(epoch)
        for batch in torch.randperm(len(labels), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            if compressor is not None:
                compressor.step()
        if after_epoch is not None:
            after_epoch(epoch)
    return time.perf_counter() - begin


def accuracy(model: nn.Module, data: Data) -> float:
    """Percentage of images that are read correctly."""
    images, labels = data
    model.eval()
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def describe(name: str, before: float, after: float, seconds: float, compressor: Any) -> Row:
    """The table's line for a training run."""
    row = Row(name, before, after, seconds)
    stats = compressor.stats
    row.wire = stats.bytes_sent + stats.bytes_received
    row.calls = stats.calls
    row.waiting = stats.seconds_waiting
    for layer in compressor.session.info().layers:
        if layer.bits is not None:
            row.bits = str(layer.bits)
        elif layer.compressed:
            row.sparsity.append(
                (layer.name, layer.target_sparsity or 0, layer.achieved_sparsity or 0)
            )
    return row


def pruned_weights_are_zero(model: nn.Module, pruner: Pruner, data: Data) -> bool:
    """Whether the forward pass is bit for bit that of a plain network with zeros."""
    state = pruner.compressed_state_dict()
    zeros = all(
        bool((state[f"{name}.weight"][~mask] == 0).all()) for name, mask in pruner.masks.items()
    )
    plain = Net()
    plain.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        return zeros and torch.equal(model(data[0]), plain.eval()(data[0]))


def run_agp(model: nn.Module, data: Data, test: Data, epochs: int, client: nc.Client) -> Any:
    """Prunes more in each epoch; the last two train what is left."""
    config_list = [
        {
            "initial_sparsity": 0.0,
            "final_sparsity": SPARSITY,
            "start_epoch": 0,
            "end_epoch": epochs - 2,
            "frequency": 1,
            "op_types": ["default"],
        }
    ]
    pruner = AGPPruner(config_list, client=client)
    pruner(model)
    return pruner, train(model, data, epochs, pruner)


def run_level(model: nn.Module, data: Data, test: Data, epochs: int, client: nc.Client) -> Any:
    """Prunes at once and trains what is left."""
    config_list = [{"sparsity": SPARSITY, "op_types": ["default"]}]
    pruner = LevelPruner(config_list, client=client)
    pruner(model)
    print(f"    accuracy right after pruning {accuracy(model, test):.1f} %")
    return pruner, train(model, data, epochs, pruner)


def run_qat(model: nn.Module, data: Data, test: Data, epochs: int, client: nc.Client) -> Any:
    """Trains with weights rounded to 8 bits."""
    config_list = [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"]}]
    quantizer = QATQuantizer(config_list, client=client)
    quantizer(model)
    return quantizer, train(model, data, epochs, quantizer, rate=1e-3)


def run_outputs(model: nn.Module, data: Data, test: Data, epochs: int, client: nc.Client) -> Any:
    """Trains with weights and outputs rounded to 8 bits."""
    config_list = [{"quant_types": ["weight", "output"], "quant_bits": 8, "op_types": ["default"]}]
    quantizer = QATQuantizer(config_list, client=client)
    quantizer(model)
    return quantizer, train(model, data, epochs, quantizer, rate=1e-3)


def run_dorefa(model: nn.Module, data: Data, test: Data, epochs: int, client: nc.Client) -> Any:
    """Trains with weights rounded to 4 bits in [-1, 1]."""
    config_list = [{"quant_bits": 4, "op_types": ["default"]}]
    quantizer = DoReFaQuantizer(config_list, client=client)
    quantizer(model)
    return quantizer, train(model, data, epochs, quantizer, rate=1e-3)


def show(rows: list[Row]) -> None:
    """Prints the table."""
    head = (
        f"{'algorithm':<11}{'accuracy':>19}{'bits':>6}{'calls':>7}{'on the wire':>13}"
        f"{'training':>10}{'waiting':>9}"
    )
    print(f"\n{head}\n{'-' * len(head)}")
    for row in rows:
        change = f"{row.before:.1f} % -> {row.after:.1f} %"
        share = 100 * row.waiting / row.training if row.training else 0.0
        print(
            f"{row.name:<11}{change:>19}{row.bits:>6}{row.calls:>7}{row.wire / 1e6:>10.2f} MB"
            f"{row.training:>8.1f} s{share:>7.1f} %"
        )
    print(f"\n{'sparsity':<10}{'layer':<8}{'target':>10}{'achieved':>10}")
    for row in rows:
        for layer, target, achieved in row.sparsity:
            print(f"{row.name:<10}{layer:<8}{100 * target:>8.2f} %{100 * achieved:>8.2f} %")
    print("\nwaiting: time spent in calls to the server, as a share of the training time")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--server", help="HOST:PORT; default $NNI_COMPRESSION_SERVER")
    parser.add_argument("--epochs", type=int, default=10, help="of each compressed training")
    arguments = parser.parse_args()
    if arguments.epochs < 5:
        parser.error(f"--epochs is {arguments.epochs}; it must be at least 5")

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    use_one_thread()
    data, test = load_data()
    failures = []
    with nc.Client(arguments.server) as client:
        print(f"server {client.server}: {client.health()}")
        baseline = Net()
        seconds = train(baseline, data, 10)
        before = accuracy(baseline, test)
        print(f"baseline: {before:.1f} % of {len(test[1])} test images, trained {seconds:.1f} s")
        runs: dict[str, Any] = {
            "agp": run_agp,
            "level": run_level,
            "qat": run_qat,
            "qat+output": run_outputs,
            "dorefa": run_dorefa,
        }
        rows = []
        for name, run in runs.items():
            print(f"{name} ...")
            model = copy.deepcopy(baseline)
            compressor, seconds = run(model, data, test, arguments.epochs, client)
            after = accuracy(model, test)
            rows.append(describe(name, before, after, seconds, compressor))
            if isinstance(compressor, Pruner):
                if not pruned_weights_are_zero(model, compressor, test):
                    failures.append(f"{name}: pruned weights are not zero in the forward pass")
                for layer, target, achieved in rows[-1].sparsity:
                    if achieved > target or target - achieved > 0.01:
                        failures.append(f"{name}: {layer} has sparsity {achieved}, not {target}")
            if name in ("agp", "qat", "qat+output") and before - after > LARGEST_LOSS:
                failures.append(f"{name}: lost {before - after:.1f} points of accuracy")
            plain = compressor.unwrap()
            # Outputs of the plain model are not quantized.
            if name != "qat+output" and accuracy(plain, test) != after:
                failures.append(f"{name}: the unwrapped model computes something else")
    show(rows)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except nc.UnavailableError as error:
        sys.exit(f"no compression server: {error}")
