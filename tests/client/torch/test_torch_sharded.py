"""Models whose parameters are sharded over ranks are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers import ServerProcess

pytest.importorskip("torch", "2.6", reason="FSDP2 is of PyTorch 2.6 and later")

from torch_helpers import run_ranks

RANK = """
import sys
import torch
import nni_compression as nc
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from nni_compression.torch import LevelPruner, unwrap
from torch_helpers import LEVEL, Net, images, process_group

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]

def refused(call):
    try:
        call()
    except nc.UnimplementedError as error:
        assert isinstance(error, NotImplementedError)
        assert "are sharded over the ranks (fully_shard" in error.message, error
        assert "use DistributedDataParallel" in error.message, error
        return
    raise AssertionError("was not refused")

def main():
    mesh = init_device_mesh("cpu", (2,))
    whole, part = Net(), Net()
    fully_shard(whole, mesh=mesh)
    fully_shard(part.fc1, mesh=mesh)
    for model in (whole, part):
        pruner = LevelPruner(LEVEL, server=address)
        refused(lambda: pruner(model))
        assert not pruner.is_bound
        assert pruner._lifecycle.settings.client.sessions() == []

    torch.distributed.barrier()  # else the other rank may see the session that comes now

    # The other order.
    model = Net()
    pruner = LevelPruner(LEVEL, server=address)
    pruner(model)(images())
    fully_shard(model, mesh=mesh)
    for call in (lambda: pruner.update_epoch(1), pruner.step, pruner.refresh,
                 lambda: pruner.export("nowhere")):
        refused(call)
    pruner.close()

    model = Net()
    pruner = LevelPruner(LEVEL, server=address)
    pruner(model)
    plain = pruner.unwrap()
    expected = plain.eval()(images())
    fully_shard(plain, mesh=mesh)
    assert torch.allclose(plain(images()), expected)
    print("refused")

with process_group(rank, 2, meeting):
    main()
"""


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    with ServerProcess() as server:
        outputs = run_ranks(2, RANK, str(tmp_path / "meeting"), server.address)
    assert [output.split()[-1] for output in outputs] == ["refused"] * 2
