"""Models and small conveniences of the PyTorch adapter's tests."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812

import nni_compression as nc

RANKS_TIMEOUT = 120.0  # seconds; generous, for a machine that is busy with a build

LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
AGP = [{"initial_sparsity": 0.0, "final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}]
QAT = [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"]}]
NAIVE = [{"op_types": ["default"]}]
DOREFA = [{"quant_bits": 4, "op_types": ["default"]}]


class Net(nn.Module):
    """Two convolutions and two linear layers: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(images))
        x = F.max_pool2d(F.relu(self.bn(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


COMPRESSED = ("conv1", "conv2", "fc1", "fc2")


def images(count: int = 4, seed: int = 1) -> torch.Tensor:
    """[count, 1, 8, 8]."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def dense(module: nn.Module) -> Any:
    """The parameter under a compressed module's weight."""
    return module._parameters["weight"]


def train_step(model: nn.Module, optimizer: Any, seed: int = 1) -> torch.Tensor:
    """One minibatch; returns the loss."""
    optimizer.zero_grad()
    labels = torch.arange(4) % 10
    loss = F.cross_entropy(model(images(4, seed)), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def calls(compressor: Any) -> int:
    """How many calls the session has made."""
    return int(compressor.stats.calls)


def nni_level_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """NNI's level pruner: everything up to the k-th smallest magnitude goes."""
    k = int(weight.numel() * sparsity)
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    magnitude = weight.abs().float() if weight.dtype != torch.float64 else weight.abs()
    threshold = torch.topk(magnitude.view(-1), k, largest=False)[0].max()
    return torch.gt(magnitude, threshold)


def lowest_k_mask(weight: torch.Tensor, k: int) -> torch.Tensor:
    """The k smallest magnitudes go, of equal ones those that come first."""
    magnitude = weight.detach().double().abs().reshape(-1)
    order = torch.sort(magnitude, stable=True)[1]
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[:k]] = False
    return mask.reshape(weight.shape)


@contextlib.contextmanager
def process_group(rank: int, ranks: int, meeting: str) -> Iterator[None]:
    """Makes this process a rank of so many that meet at a file, and ends that.

    Nothing may hold the group any more at the end: a thread of Gloo that gives up a tensor while
    the interpreter ends brings the process down.
    """
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    yield
    gc.collect()
    dist.destroy_process_group()


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports the tests' helpers."""
    folders = [str(Path(__file__).parent), str(Path(nc.__file__).resolve().parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1", **more}


def run_ranks(
    ranks: int, program: str, *arguments: str, timeout: float = RANKS_TIMEOUT, **more: str
) -> list[str]:
    """Runs the program in so many processes, with the rank as first argument; what each prints.

    Args:
        more: of the environment, in which RANK and LOCAL_RANK are the rank.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), *arguments],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        results = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * ranks, results
    return [output for output, _ in results]


def vit(**options):
    """A small vision transformer for images [N, 3, 32, 32]; a skip without the package timm."""
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", **{"img_size": 32, "patch_size": 8, "depth": 2, **options}
    )
