"""Several processes of one training that go on from a checkpoint together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nni_compression as nc
from nni_compression.torch import AGPPruner, GlobalMagnitudePruner
from servers import ServerProcess
from torch_helpers import AGP, COMPRESSED, Net, calls, dense, images, run_ranks, train_step

RANKS = 2
GLOBAL = [{"schedule": "linear", "op_types": ["default"], "final_sparsity": 0.8, "end_epoch": 10}]

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
    if kind == "qat":
        return QATQuantizer(OUTPUTS, server=address)
    return AGPPruner(AGP, server=address, transfer=kind)

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


@pytest.mark.parametrize("kind", ["weights", "histogram", "qat"])
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


def in_turn(ranks: Any, models: Any, epoch: int) -> None:
    """Each rank sets the epoch only after the one before has its masks."""
    for pruner, model in zip(ranks, models):
        pruner.update_epoch(epoch)
        model.eval()(images())


@pytest.mark.parametrize("transfer", ["weights", "histogram"])
@pytest.mark.parametrize(("make", "rule"), [(AGPPruner, AGP), (GlobalMagnitudePruner, GLOBAL)])
def test_a_rank_gets_the_masks_that_another_one_got_before_it_set_the_epoch(
    client: nc.Client, tmp_path: Path, make: Any, rule: Any, transfer: str
) -> None:
    models = [Net(seed=5) for _ in range(RANKS)]
    first = make(rule, client=client, transfer=transfer)
    first(models[0])
    ranks = [first, make(rule, client=client, transfer=transfer, session=first.session.id)]
    ranks[1](models[1])
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    sparsity = -1.0
    for epoch in range(5):
        in_turn(ranks, models, epoch)
        masks = [rank.masks for rank in ranks]
        for name in COMPRESSED:
            assert torch.equal(masks[0][name], masks[1][name]), (epoch, name)
        assert first.metrics()["sparsity"] > sparsity
        sparsity = first.metrics()["sparsity"]
        before = [calls(rank) for rank in ranks]
        in_turn(ranks, models, epoch)
        assert [calls(rank) for rank in ranks] == [number + 1 for number in before]
        for model, optimizer in zip(models, optimizers):
            train_step(model.train(), optimizer, seed=epoch)
    first.export(tmp_path, "masks")  # from now on the session has the masks themselves
    before = [calls(rank) for rank in ranks]
    in_turn(ranks, models, epoch)
    assert [calls(rank) for rank in ranks] == [number + 1 for number in before]
    in_turn(ranks, models, 5)
    for name in COMPRESSED:
        assert torch.equal(first.masks[name], ranks[1].masks[name]), name
    assert first.metrics()["sparsity"] > sparsity


def test_a_rank_that_kept_its_masks_gets_those_of_another_one(client: nc.Client) -> None:
    models = [Net(seed=5) for _ in range(RANKS)]
    first = AGPPruner(AGP, client=client)
    first(models[0])
    second = AGPPruner(AGP, client=client, session=first.session.id, on_bad_weight="keep")
    second(models[1])
    for epoch in (2, 4):
        in_turn([second, first], [models[1], models[0]], epoch)
        with torch.no_grad():
            dense(models[1].fc1)[0, 0] = float("nan")
    assert not torch.equal(first.masks["fc1"], second.masks["fc1"])
    in_turn([second], [models[1]], 4)
    assert torch.equal(first.masks["fc1"], second.masks["fc1"])


@pytest.mark.parametrize("transfer", ["weights", "histogram"])
def test_a_rank_that_joins_with_a_checkpoint_saves_its_masks(
    client: nc.Client, transfer: Any
) -> None:
    """Before it has asked for any."""
    saved = AGPPruner(AGP, client=client, transfer=transfer)
    saved(Net())
    saved.update_epoch(2)
    saved.masks  # noqa: B018
    state = saved.state_dict()
    first = AGPPruner(AGP, client=client, transfer=transfer)
    first.load_state_dict(state)
    first(Net())
    second = AGPPruner(AGP, client=client, session=first.session.id, transfer=transfer)
    second.load_state_dict(state)
    second(Net())
    assert set(state["masks"]) == set(COMPRESSED)
    found = second.state_dict()["masks"]
    for name in COMPRESSED:
        assert torch.equal(found[name]["bits"], state["masks"][name]["bits"]), name


def test_a_rank_that_missed_masks_goes_on_once_another_one_has_exported_them(
    client: nc.Client, tmp_path: Path
) -> None:
    first = AGPPruner(AGP, client=client, transfer="histogram")
    models = [first(Net())]
    second = AGPPruner(AGP, client=client, session=first.session.id, transfer="histogram")
    models.append(second(Net()))
    for epoch in (1, 2):
        for pruner in (first, second):
            pruner.update_epoch(epoch)
        output = models[0](images())
    with pytest.raises(nc.FailedPreconditionError, match="from other counts"):
        models[1](images())
    first.export(tmp_path, "masks")
    assert torch.equal(models[1](images()), output)


def test_where_the_first_rank_finds_no_server_no_rank_waits(tmp_path: Path) -> None:
    assert run_ranks(RANKS, FAILS, str(tmp_path / "meeting")) == ["True\n"] * RANKS
