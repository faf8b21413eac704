"""Smaller models by latency: whether a target is reached, and how accurate they are; a program.

    latency_models.py FILE

writes the figures, as JSON, into FILE. The server is that of $NNI_COMPRESSION_SERVER. It needs
torchvision, timm, scikit-learn, torch-pruning, scipy, onnxscript and onnxruntime.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

import timm
import torch
from torch import nn

import nni_compression as nc
import shrunk_resnet
from filter_models import SEEDS, dense_model, nearest, ours, tuned_accuracy
from harness import alternate
from nni_compression.torch import L2FilterPruner, shrink

ROUNDS = 15
REPEAT = 5
TARGET = 0.5
# Of the network of the example: those where uniform filters begin to cost accuracy.
SMALL_TARGETS = (0.25, 0.15)
IMAGE = shrunk_resnet.IMAGE


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224").eval()


def runners(runtime: str, models: dict[str, nn.Module], folder: Path, image: torch.Tensor) -> Any:
    if runtime == "torch":
        return {name: shrunk_resnet.in_torch(model, image) for name, model in models.items()}
    return {
        name: shrunk_resnet.in_onnxruntime(model, folder / f"{name}.onnx", image)
        for name, model in models.items()
    }


def reached(folder: Path) -> dict[str, Any]:
    """Model and runtime -> times of both models, and how long `shrink` took."""
    found = {}
    for name, make in (("ResNet-18", shrunk_resnet.dense_model), ("ViT-Ti/16", vit)):
        for runtime in ("onnxruntime", "torch"):
            dense = make()
            taken = []
            for _ in range(2):  # the second time with the latencies of layers that are known
                start = time.perf_counter()
                small = shrink(dense, IMAGE, target_latency=TARGET, runtime=runtime).eval()
                taken.append(time.perf_counter() - start)
            models = {"dense": dense, "smaller": small}
            found[f"{name}, {runtime}"] = {
                "times": alternate(runners(runtime, models, folder, IMAGE), ROUNDS, REPEAT),
                "shrink": taken,
                "gap": small.shrink_report.latency.gap,
            }
    return found


def ratio(dense: nn.Module, small: nn.Module, folder: Path, image: torch.Tensor) -> float:
    """Of the latencies in ONNX Runtime, which are some hundred microseconds."""
    models = {name: copy.deepcopy(each).eval() for name, each in (("d", dense), ("s", small))}
    calls = runners("onnxruntime", models, folder, image)

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(100)]

    times = alternate({name: repeated(call) for name, call in calls.items()}, ROUNDS)
    return statistics.median(s / d for d, s in zip(times["d"], times["s"]))


def accuracies(client: nc.Client, folder: Path) -> dict[str, Any]:
    """Target -> way -> accuracy and ratio of latencies, one for each seed."""
    found: dict[str, Any] = defaultdict(
        lambda: {"accuracy": defaultdict(list), "ratio": defaultdict(list)}
    )
    for seed in SEEDS:
        dense, data, test = dense_model(seed)
        image = data[0][:1]

        def measured(model: nn.Module, dense: Any = dense, image: Any = image) -> float:
            return ratio(dense, model, folder, image)

        for target in SMALL_TARGETS:
            small = shrink(dense, image, target_latency=target, runtime="onnxruntime")
            wanted = measured(small)
            uniform, same = nearest(
                ours(L2FilterPruner, client, data), dense, 1 - target, wanted, measured
            )
            own = found[str(target)]
            for name, model, at in (
                ("target_latency", small, wanted),
                ("uniform widths", uniform, same),
            ):
                own["accuracy"][name].append(tuned_accuracy(model, data, test, seed))
                own["ratio"][name].append(at)
    return found


def main() -> None:
    logging.getLogger("nni_compression").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    file = Path(sys.argv[1])
    os.environ["XDG_CACHE_HOME"] = str(file.parent)
    torch.set_num_threads(1)
    with nc.Client() as client:
        found = {"reached": reached(file.parent), "accuracy": accuracies(client, file.parent)}
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
