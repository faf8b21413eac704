"""Latencies of ResNet-18, and of what `shrink` leaves of it; a program.

    shrunk_resnet.py FILE

writes the figures, as JSON, into FILE and the models beside it. The server is that of
$NNI_COMPRESSION_SERVER. It needs torchvision, torch-pruning, onnxscript and onnxruntime.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from pathlib import Path
from typing import Callable

import onnxruntime
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nni_compression as nc
from harness import alternate
from nni_compression.torch import L1FilterPruner, shrink

ROUNDS = 15
REPEAT = 5  # runs in a row, of which the median counts
IMAGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def dense_model() -> nn.Module:
    """ResNet-18 with random weights and the statistics of random images."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model(torch.randn(8, 3, 224, 224))
    return model.eval()


def halved(model: nn.Module, client: nc.Client, **options: bool) -> nn.Module:
    """The model without half of the filters of each group, and of each layer that is in none."""
    model = copy.deepcopy(model)
    rule = {"sparsity": 0.5, "op_types": ["Conv2d"]}
    with L1FilterPruner(model, [rule], client=client, example_inputs=IMAGE) as pruner:
        pruner.compress()
        pruner.refresh()
        return shrink(model, IMAGE, **options).eval()


def costs(model: nn.Module) -> tuple[int, int]:
    """The number of parameters, and the multiplications with an addition for an image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IMAGE)
    return sum(each.numel() for each in model.parameters()), counter.get_total_flops() // 2


def in_onnxruntime(
    model: nn.Module, path: Path, image: torch.Tensor = IMAGE
) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    torch.onnx.export(model, (image,), str(path), verbose=False)
    session = onnxruntime.InferenceSession(str(path), options)
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)


def in_torch(model: nn.Module, image: torch.Tensor = IMAGE) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(image)

    return call


def main() -> None:
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    dense = dense_model()
    with nc.Client() as client:
        models = {
            "dense": dense,
            "shrunk": halved(dense, client, zero_constants=True),
            "shrunk, constants kept": halved(dense, client),
        }
    contenders = {
        "ONNX Runtime": {
            name: in_onnxruntime(model, file.parent / f"{number}.onnx")
            for number, (name, model) in enumerate(models.items())
        },
        "PyTorch": {name: in_torch(model) for name, model in models.items()},
    }
    gc.freeze()  # the exporter leaves much that each measurement would go through
    found = {runtime: alternate(calls, ROUNDS, REPEAT) for runtime, calls in contenders.items()}
    numbers = [costs(models[name]) for name in ("dense", "shrunk")]
    by_name = dict(zip(("parameters", "MACs"), zip(*numbers)))
    file.write_text(json.dumps({**found, "costs": by_name}), encoding="utf-8")


if __name__ == "__main__":
    main()
