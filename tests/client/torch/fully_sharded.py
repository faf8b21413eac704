"""Jobs of ranks that train models under `fully_shard`, next to the same models unsharded.

`run` starts the ranks as forks of a process that has imported PyTorch, so that a job takes seconds.
Each job is a function of its `Rank`; an assertion that fails on any rank fails the test.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from torch_helpers import RANKS_TIMEOUT, process_group

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "nni_compression.torch"])

ALL = {"op_types": ["default"]}


@dataclass
class Rank:
    """One rank of a job.

    Attributes:
        address: of the server.
        folder: of all ranks.
    """

    number: int
    ranks: int
    address: str
    folder: Path

    @property
    def mesh(self) -> Any:
        return init_device_mesh("cpu", (self.ranks,))

    def shard(self, model: nn.Module) -> nn.Module:
        """Shards a model, with a group of parameters for its first part."""
        mesh = self.mesh
        fully_shard(next(model.children()), mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model


def run(ranks: int, job: Callable[..., None], address: str, folder: Path, *arguments: Any) -> None:
    """Runs a job; an AssertionError has what the ranks have raised."""
    processes = [
        _context.Process(
            target=_job, args=(Rank(number, ranks, address, folder), job, *arguments), daemon=True
        )
        for number in range(ranks)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + RANKS_TIMEOUT
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        time.sleep(0.02)
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + 5)  # others may fail for another reason
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    errors = [file.read_text() for file in sorted(folder.glob("error-*"))]
    assert codes == [0] * ranks, "\n".join([f"exit codes {codes}", *errors])


def _job(rank: Rank, job: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        with process_group(rank.number, rank.ranks, str(rank.folder / "meeting")):
            job(rank, *arguments)
            dist.barrier()
    except BaseException:
        (rank.folder / f"error-{rank.number}").write_text(traceback.format_exc())
        sys.exit(1)


class Uneven(nn.Module):
    """Weights of 10, 7, 3 and 2 rows: with 4 ranks one shard is smaller than the others, and others
    are empty.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv1d(2, 10, 3, padding=1)
        self.fc1 = nn.Linear(40, 7)
        self.fc2 = nn.Linear(7, 3)
        self.fc3 = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.conv(x)).flatten(1)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


LAYERS = ("conv", "fc1", "fc2", "fc3")


def batch(seed: int) -> torch.Tensor:
    """[8, 2, 4]."""
    return torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, optimizer: Any, seed: int) -> torch.Tensor:
    """A step with momentum and clipping; returns the norm of the gradients."""
    optimizer.zero_grad()
    model(batch(seed)).square().mean().backward()
    norm: Any = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return whole(norm).detach()


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_masks(pruner: Any) -> dict[str, torch.Tensor]:
    return {name: whole(mask) for name, mask in pruner.masks.items()}


def assert_same_masks(one: Any, other: Any, when: Any = None) -> None:
    masks, others = whole_masks(one), whole_masks(other)
    assert masks.keys() == others.keys() == set(LAYERS)
    for name, mask in masks.items():
        assert torch.equal(mask, others[name]), (when, name)


def weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole dense weights of the layers."""
    for name in LAYERS:
        yield name, whole(_parameter(model, name)).detach()


def set_weights(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Sets the weights of the layers to these whole ones."""
    with torch.no_grad():
        for name, value in values.items():
            weight = _parameter(model, name)
            if hasattr(weight, "full_tensor"):
                first = min(dist.get_rank() * -(-len(value) // dist.get_world_size()), len(value))
                local = weight.to_local()
                local.copy_(value[first : first + len(local)])
            else:
                weight.copy_(value)


def assert_zero(model: nn.Module, pruner: Any) -> None:
    """Asserts that the weights are zero where the masks have zeros, and nowhere else."""
    for name, mask in pruner.masks.items():
        weight = _parameter(model, name).to_local()
        assert torch.equal(weight != 0, mask.to_local()), name


def _parameter(model: nn.Module, name: str) -> Any:
    """The dense weight of a layer; the shard, after a forward pass that has left it gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return getattr(model, name)._parameters["weight"]
