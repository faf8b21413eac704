"""Several processes of one training that go on from a checkpoint together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from servers import ServerProcess
from torch_helpers import run_ranks

RANKS = 2

# Trains three epochs, saves, goes on; then goes on from what was saved, and has to get what it got.
RANK_PROGRAM = """
import copy
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, meeting, address, kind = int(sys.argv[1]), *sys.argv[2:]
from nni_compression.torch import AGPPruner, QATQuantizer
from torch_helpers import AGP, Net, images, process_group, train_step

torch.set_num_threads(1)
OUTPUTS = [{"quant_types": ["weight", "output"], "op_types": ["default"]}]

def compressor():
    make, rules = (AGPPruner, AGP) if kind == "agp" else (QATQuantizer, OUTPUTS)
    return make(rules, server=address)

def begin(checkpoint):
    model = Net(seed=5)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
    made = compressor()
    made.on_every_rank(model, None if checkpoint is None else checkpoint["compressor"])
    return made, model, DistributedDataParallel(model), torch.optim.SGD(model.parameters(), lr=0.1)

def train(made, model, wrapped, optimizer, epochs):
    outputs = []
    for epoch in epochs:
        made.update_epoch(epoch)
        train_step(wrapped, optimizer, seed=10 * epoch + rank)
        made.step()
        outputs.append(model.eval()(images()).detach())
        model.train()
    return outputs

def main():
    first = begin(None)
    train(*first, range(3))
    saved = [{"model": first[1].state_dict(), "compressor": first[0].state_dict()}]
    dist.broadcast_object_list(saved, src=0)  # rank 0 saves for all
    saved = copy.deepcopy(saved[0])
    expected = train(*first, range(3, 6))
    second = begin(saved)
    assert second[0].session.id != first[0].session.id
    assert (second[0].epoch, second[0].steps) == (2, 3)
    for found, output in zip(train(*second, range(3, 6)), expected):
        assert torch.equal(found, output)
    dist.barrier()
    print(second[0].session.id)

with process_group(rank, 2, meeting):
    main()
"""

# Each rank saves for itself, between a forward pass and its step, with other images than the other.
SEEN_PROGRAM = """
import copy
import sys
import torch
import torch.distributed as dist

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]
from nni_compression.torch import QATQuantizer
from torch_helpers import Net, images, process_group

OUTPUTS = [{"quant_types": ["weight", "output"], "op_types": ["default"]}]
WIDTHS = (1.0, 3.0)  # what rank 1 sees is wider

def begin(state):
    model = Net(seed=5)
    made = QATQuantizer(OUTPUTS, server=address)
    made.on_every_rank(model, state)
    return made, model

def run(model, seed):
    model(images(4, seed) * WIDTHS[rank])

def ranges(made):
    return {name: found["output_range"] for name, found in made.calibration.items()}

def main():
    made, model = begin(None)
    run(model, 0)
    made.step()
    run(model, 1)
    saved = copy.deepcopy(made.state_dict())
    made.step()
    expected = ranges(made)
    second, resumed = begin(saved)
    second.step()
    assert ranges(second) == expected, (ranges(second), expected)
    dist.barrier()
    print(expected)

with process_group(rank, 2, meeting):
    main()
"""

FAILS = """
import sys
import nni_compression as nc
from nni_compression.torch import LevelPruner
from torch_helpers import LEVEL, Net, process_group

rank, meeting = int(sys.argv[1]), sys.argv[2]
with process_group(rank, 2, meeting):
    pruner = LevelPruner(LEVEL, client=nc.Client("127.0.0.1:1", connect_timeout=0.2))
    try:
        pruner.on_every_rank(Net())
    except (RuntimeError, nc.UnavailableError) as error:
        print("127.0.0.1:1" in str(error))
"""


pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch has no distributed"
)


@pytest.mark.parametrize("kind", ["agp", "qat"])
def test_ranks_go_on_from_a_checkpoint_in_one_new_session(
    server: ServerProcess, tmp_path: Path, kind: str
) -> None:
    printed = run_ranks(RANKS, RANK_PROGRAM, str(tmp_path / "meeting"), server.address, kind)
    assert len(set(printed)) == 1


def test_what_each_rank_had_seen_since_its_last_step_counts_after_an_interruption(
    server: ServerProcess, tmp_path: Path
) -> None:
    printed = run_ranks(RANKS, SEEN_PROGRAM, str(tmp_path / "meeting"), server.address)
    assert len(set(printed)) == 1


def test_where_the_first_rank_finds_no_server_no_rank_waits(tmp_path: Path) -> None:
    assert run_ranks(RANKS, FAILS, str(tmp_path / "meeting")) == ["True\n"] * RANKS
