"""Pruners that decide about all layers together, and by step; rewinding to where training began."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc
from servers import ServerProcess

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from nni_compression.torch import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LotteryTicketPruner,
    RandomPruner,
    prune,
)
from torch_helpers import COMPRESSED, Net, calls, dense, images, run_ranks, train_step

ALL = {"op_types": ["default"]}
GLOBAL_AGP = {"final_sparsity": 0.8, "end_epoch": 4, "scope": "global", **ALL}


def pruned(pruner: Any) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in pruner.masks.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.99, 1.0])
def test_the_layers_lose_what_global_unstructured_takes(client: nc.Client, sparsity: float) -> None:
    model = prune(Net(), "global_magnitude", sparsity=sparsity, client=client)
    assert type(model.compressor) is GlobalMagnitudePruner
    expected = Net()
    total = sum(getattr(expected, name).weight.numel() for name in COMPRESSED)
    torch_prune.global_unstructured(
        [(getattr(expected, name), "weight") for name in COMPRESSED],
        pruning_method=torch_prune.L1Unstructured,
        amount=int(total * sparsity),
    )
    masks = model.compressor.masks
    assert sum(pruned(model.compressor).values()) == int(total * sparsity)
    for name in COMPRESSED:
        assert torch.equal(masks[name], getattr(expected, name).weight_mask.bool())
    torch.testing.assert_close(model.eval()(images()), expected.eval()(images()))


def lamp_scores(weight: torch.Tensor) -> torch.Tensor:
    """w_i^2 / sum of w_j^2 over the j that are not smaller, as the paper has it."""
    squares, order = weight.double().flatten().square().sort()
    remaining = squares.flip(0).cumsum(0).flip(0)
    return (squares / remaining)[order.argsort()].reshape(weight.shape)


def test_lamp_is_the_papers(client: nc.Client) -> None:
    pruner = LAMPPruner([{"sparsity": 0.9, **ALL}], client=client)
    model = pruner(Net())
    scores = {name: lamp_scores(getattr(Net(), name).weight.detach()) for name in COMPRESSED}
    everything = torch.cat([score.flatten() for score in scores.values()])
    threshold = everything.sort().values[int(everything.numel() * 0.9)]
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, scores[name] >= threshold)
    model(images())


def test_one_call_asks_for_all_layers_of_a_rule_though_one_never_runs(client: nc.Client) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.used = nn.Linear(8, 8)
            self.idle = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    pruner = GlobalMagnitudePruner([{"sparsity": 0.5, **ALL}], client=client)
    model = pruner(Branches())
    before = calls(pruner)
    model(torch.ones(1, 8))
    assert calls(pruner) == before + 1
    assert sum(pruned(pruner).values()) == 64
    model(torch.ones(1, 8))
    assert calls(pruner) == before + 1


def test_a_bad_weight_is_named_and_no_layer_changes(client: nc.Client) -> None:
    pruner = AGPPruner([GLOBAL_AGP], client=client)
    model = pruner(Net())
    pruner.update_epoch(1)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    pruner.update_epoch(2)
    with torch.no_grad():
        dense(model.fc1)[0, 3] = float("nan")
    with pytest.raises(nc.InvalidArgumentError, match='layer "fc1": element 3 is nan') as raised:
        model(images())
    assert "epoch 2" in str(raised.value)
    with torch.no_grad():
        dense(model.fc1)[0, 3] = 1.0
    for name, mask in pruner.masks.items():
        assert not (mask & ~before[name]).any()
        assert mask.sum() < before[name].sum()


def test_a_bad_weight_may_keep_what_all_layers_of_its_rule_have(
    client: nc.Client, caplog: pytest.LogCaptureFixture
) -> None:
    pruner = AGPPruner([GLOBAL_AGP], client=client, on_bad_weight="keep")
    model = pruner(Net())
    pruner.update_epoch(1)
    before = pruned(pruner)
    pruner.update_epoch(2)
    with torch.no_grad():
        dense(model.fc2)[0, 0] = float("inf")
    model(images())
    assert pruned(pruner) == before
    kept = {f"layer '{name}' keeps" for name in COMPRESSED}
    assert all(any(text in r.getMessage() for r in caplog.records) for text in kept)


def test_training_goes_on_from_a_checkpoint_with_its_masks(client: nc.Client) -> None:
    def begun(state: Any = None) -> tuple[Any, nn.Module, Any]:
        model = Net(seed=3)
        pruner = AGPPruner([GLOBAL_AGP], client=client)
        if state is not None:
            model.load_state_dict(state["model"])
            pruner.load_state_dict(state["pruner"])
        pruner(model)
        return pruner, model, torch.optim.SGD(model.parameters(), lr=0.1)

    def train(pruner: Any, model: nn.Module, optimizer: Any, epochs: range) -> torch.Tensor:
        for epoch in epochs:
            pruner.update_epoch(epoch)
            train_step(model, optimizer, seed=epoch)
        return model.eval()(images()).detach()

    first = begun()
    train(*first, range(2))
    state = copy.deepcopy({"model": first[1].state_dict(), "pruner": first[0].state_dict()})
    first[1].train()
    expected = train(*first, range(2, 6))
    second = begun(state)
    assert pruned(second[0]) != pruned(first[0])
    assert torch.equal(train(*second, range(2, 6)), expected)
    assert pruned(second[0]) == pruned(first[0])


def test_a_checkpoint_that_lacks_a_layers_mask_has_its_rule_decided_about_again(
    client: nc.Client,
) -> None:
    pruner = GlobalMagnitudePruner([{"sparsity": 0.5, **ALL}], client=client)
    pruner(Net())
    expected = pruned(pruner)
    state = pruner.state_dict()
    del state["masks"]["fc1"]
    other = GlobalMagnitudePruner([{"sparsity": 0.5, **ALL}], client=client)
    model = other(Net())
    with pytest.warns(UserWarning, match=r"no masks of layers \['fc1'\]"):
        other.load_state_dict(state)
    model(images())
    assert pruned(other) == expected


def test_unwrap_writes_the_zeros_of_every_layer(client: nc.Client) -> None:
    pruner = RandomPruner([{"sparsity": 0.5, "scope": "global", "seed": 7, **ALL}], client=client)
    pruner(Net())
    plain = pruner.unwrap()
    zeros = sum(int((getattr(plain, name).weight == 0).sum()) for name in COMPRESSED)
    assert zeros == sum(getattr(plain, name).weight.numel() for name in COMPRESSED) // 2


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_schedule_by_step_prunes_as_step_is_called(client: nc.Client, scope: str) -> None:
    rule = {
        "initial_sparsity": 0.0,
        "final_sparsity": 0.8,
        "schedule_unit": "step",
        "start_step": 2,
        "end_step": 10,
        "frequency": 2,
        "scope": scope,
        **ALL,
    }
    pruner = AGPPruner([rule], client=client)
    model = pruner(Net())
    assert pruner.plan.needs_step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity, asked = [], []
    for _ in range(12):
        train_step(model, optimizer)
        sparsity.append(round(pruner.metrics()["sparsity"], 3))
        before = calls(pruner)
        pruner.step()
        stale = bool(pruner.session.stale)
        model(images())
        asked.append(calls(pruner) - before - 1)  # but for Step
        assert asked[-1] == int(stale)
    assert sparsity[:3] == [0.0, 0.0, 0.0]
    assert sparsity == sorted(sparsity)
    assert sparsity[-1] == pytest.approx(0.8, abs=0.002)
    assert 3 <= sum(asked) < 8  # at the second step from start_step on, and no more after the end


def test_a_lottery_ticket_is_drawn_in_rounds(client: nc.Client) -> None:
    start = Net(seed=4).state_dict()
    rule = {"sparsity": 0.8, "rounds": 2, "frequency": 2, **ALL}
    pruner = LotteryTicketPruner([rule], client=client)
    model = pruner(Net(seed=4))
    before = {name: torch.ones_like(mask) for name, mask in pruner.masks.items()}
    shares = []
    for epoch in range(6):
        pruner.update_epoch(epoch)
        if epoch % 2 == 0:
            trained = {name: dense(getattr(model, name)).detach().abs() for name in COMPRESSED}
            pruner.rewind()
            assert pruner.epoch == epoch
            for name, value in model.state_dict().items():
                assert torch.equal(value, start[name]), name
            for name, mask in pruner.masks.items():
                removed = before[name] & ~mask  # in this round: the smallest as they were trained
                assert removed.any() == (epoch > 0)
                assert not (mask & ~before[name]).any()
                if epoch > 0:
                    assert trained[name][removed].max() <= trained[name][mask].min()
                assert torch.equal(getattr(model, name).weight != 0, mask)
                before[name] = mask.clone()
            shares.append(pruner.metrics()["sparsity"])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_step(model, optimizer, seed=epoch)
    assert shares == pytest.approx([0.0, 1 - 0.2**0.5, 0.8], abs=0.003)


def test_a_resumed_trainer_rewinds_to_where_the_first_one_began(client: nc.Client) -> None:
    start = Net(seed=4).state_dict()
    rule = {"sparsity": 0.8, "rounds": 2, **ALL}
    pruner = LotteryTicketPruner([rule], client=client)
    model = pruner(Net(seed=4))
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    for before_the_model in (True, False):
        resumed = LotteryTicketPruner([rule], client=client)
        other = Net(seed=9)
        other.load_state_dict(saved["model"])
        if before_the_model:
            resumed.load_state_dict(saved["pruner"])
            resumed(other)
        else:
            resumed(other)
            resumed.load_state_dict(saved["pruner"])
        assert not torch.equal(other.state_dict()["fc1.weight"], start["fc1.weight"])
        resumed.rewind()
        assert all(torch.equal(value, start[name]) for name, value in other.state_dict().items())


def test_there_is_nothing_to_rewind_without_a_model(client: nc.Client) -> None:
    pruner = LotteryTicketPruner([{"sparsity": 0.8, "rounds": 2, **ALL}], client=client)
    with pytest.raises(RuntimeError, match="no model is bound"):
        pruner.rewind()
    pruner(Net())
    pruner.unwrap()
    with pytest.raises(RuntimeError, match="unwrap"):
        pruner.rewind()


RANKS_PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]
from nni_compression.torch import AGPPruner
from torch_helpers import Net, dense, process_group, train_step

RULE = {"final_sparsity": 0.8, "end_epoch": 3, "scope": "global", "op_types": ["default"]}

def main():
    model = Net(seed=5)
    pruner = AGPPruner([RULE], server=address)
    pruner.on_every_rank(model)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    for epoch in range(4):
        pruner.update_epoch(epoch)
        dist.barrier()
        if rank == 1 and epoch == 2:  # weights that differ: the first call decides for both
            with torch.no_grad():
                dense(model.fc1).mul_(5)
        train_step(wrapped, optimizer, seed=10 * epoch + rank)
        pruner.step()
        masks = {name: mask.flatten().tolist() for name, mask in pruner.masks.items()}
        both = [None, None]
        dist.all_gather_object(both, masks)
        assert both[0] == both[1], epoch
        told.append(sum(map(len, masks.values())) - sum(map(sum, masks.values())))
    dist.barrier()
    print(told)

with process_group(rank, 2, meeting):
    main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_ranks_have_the_same_masks_whichever_is_first(
    server: ServerProcess, tmp_path: Path
) -> None:
    outputs = run_ranks(2, RANKS_PROGRAM, str(tmp_path / "meeting"), server.address)
    assert outputs[0] == outputs[1]
