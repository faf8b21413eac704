"""Pruners of filters as scripts for NNI use them: other imports, the same arguments."""

from __future__ import annotations

import copy

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nni_compression.torch import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
    shrink,
)
from test_torch_filters import needs_torch_2
from test_torch_shrink import assert_equal, one_thread, trained  # noqa: F401

RULE = {"sparsity": 0.5, "op_types": ["Conv2d"]}


class Model(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def batch(seed):
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model, optimizer, seed):
    optimizer.zero_grad()
    F.cross_entropy(model(batch(seed)), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()


@pytest.fixture
def make(client, server, monkeypatch):
    """Makes a pruner that finds its server as a script's does."""
    monkeypatch.setenv("NNI_COMPRESSION_SERVER", server.address)
    made = []

    def create(cls, *args, **kwargs):
        made.append(cls(*args, **kwargs))
        return made[-1]

    yield create
    for pruner in made:
        pruner.close()


def removed(pruner):
    return {
        name: (~mask.reshape(len(mask), -1).any(1)).nonzero().flatten().tolist()
        for name, mask in pruner.masks.items()
    }


def smallest(scores, count=4):
    return sorted(scores.argsort()[:count].tolist())


@pytest.mark.parametrize("cls", [L1FilterPruner, L2FilterPruner, FPGMPruner])
def test_of_nni_1(make, cls, tmp_path):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = make(cls, model, [RULE], optimizer)
    model = pruner.compress()
    train(model, optimizer, 0)
    pruner.export_model(model_path=str(tmp_path / "m.pth"), mask_path=str(tmp_path / "k.pth"))
    masks = torch.load(tmp_path / "k.pth")
    assert masks.keys() == {"conv1", "conv2"}
    assert all(int(mask["weight"].flatten(1).any(1).sum()) == 4 for mask in masks.values())


@needs_torch_2
def test_dependency_aware_of_nni_2(make):
    model = trained(Model())
    weights = {
        name: model.get_submodule(name).weight.detach().clone() for name in ("conv1", "conv2")
    }
    pruner = make(L1FilterPruner, model, [RULE], None, True, batch(0))
    pruner.compress()
    assert pruner.filter_groups == (nc.FilterGroup(["conv1", "conv2"]),)
    scores = sum(weight.abs().flatten(1).sum(1) for weight in weights.values())
    assert removed(pruner) == dict.fromkeys(("conv1", "conv2"), smallest(scores))
    small = shrink(model, batch(0))
    assert not small.shrink_report.kept
    assert_equal(small, model, batch(0))
    other = make(FPGMPruner, Model(), [RULE], dependency_aware=True, dummy_input=batch(0))
    other.compress()
    assert other.filter_groups == pruner.filter_groups


@pytest.mark.parametrize("op_type", ["BatchNorm2d"])
def test_slim_of_nni_1(make, op_type, tmp_path):
    model = trained(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scales = torch.cat([model.bn1.weight, model.bn2.weight]).detach().abs()
    pruner = make(SlimPruner, model, [{"sparsity": 0.5, "op_types": [op_type]}], optimizer)
    pruner.compress()
    pruner.export_model(str(tmp_path / "model.pth"), str(tmp_path / "mask.pth"))
    found = removed(pruner)
    assert sorted(found["bn1"] + [8 + i for i in found["bn2"]]) == smallest(scales, 8)
    masks = torch.load(tmp_path / "mask.pth")
    assert [mask["weight"].shape for mask in masks.values()] == [(8,)] * 2


def test_taylor_of_nni_1(make):
    model = Model()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = make(TaylorFOWeightFilterPruner, model, [RULE], optimizer, 2)
    pruner.compress()
    other = torch.optim.SGD(reference.parameters(), lr=0.1)
    scores = dict.fromkeys(("conv1", "conv2"), 0)
    for seed in range(2):
        train(model, optimizer, seed)
        other.zero_grad()
        F.cross_entropy(reference(batch(seed)), torch.tensor([0, 1, 0, 1])).backward()
        for name in scores:
            weight = reference.get_submodule(name).weight
            scores[name] += (weight.detach() * weight.grad).square().flatten(1).sum(1)
        other.step()
        assert all(bool(mask.all()) for mask in pruner._masks().masks().values())
    calls = pruner.stats.calls
    model(batch(2))  # the masks of two batches
    assert pruner.stats.calls > calls
    found = {name: smallest(score) for name, score in scores.items()}
    assert removed(pruner) == found
    assert (model.conv1.weight[found["conv1"]] == 0).all()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("cls", [ActivationAPoZRankFilterPruner, ActivationMeanRankFilterPruner])
def test_activations_of_nni_1(make, cls, activation):
    model = trained(Model()).eval()
    outputs = {"conv1": [], "conv2": []}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: outputs[name].append(result.detach().clone())
        )
        for name in outputs
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = make(cls, model, [RULE], optimizer, activation, 2)
    pruner.compress()
    assert pruner.plan.layers["conv1"].options["activation"] == activation
    assert pruner.plan.layers["conv1"].activation == activation
    for seed in range(2):
        model(10 * batch(seed))
    for handle in handles:
        handle.remove()
    model(batch(2))
    found = {}
    for name, values in outputs.items():
        after = torch.cat(values).clamp(0, 6 if activation == "relu6" else None).double()
        zeros = (after == 0).double()
        score = -zeros if cls is ActivationAPoZRankFilterPruner else after
        found[name] = smallest(score.mean((0, 2, 3)))
    assert removed(pruner) == found
    assert pruner.metrics()["sparsity"] == 0.5


def test_a_rule_has_the_last_word_about_the_activation(make):
    rules = [RULE, {**RULE, "activation": "none", "op_names": ["conv2"]}]
    pruner = make(ActivationAPoZRankFilterPruner, Model(), rules, None, "relu6")
    pruner.compress()
    assert [pruner.plan.layers[f"conv{i}"].activation for i in (1, 2)] == ["relu6", ""]


def test_without_a_number_of_batches_masks_wait_for_a_step(make):
    model = Model()
    pruner = make(ActivationMeanRankFilterPruner, model, [RULE])
    pruner.compress()
    for seed in range(3):
        model(batch(seed))
    assert pruner.metrics()["sparsity"] == 0
    pruner.step()
    model(batch(3))
    assert pruner.metrics()["sparsity"] == 0.5


def test_masks_that_are_asked_for_after_some_batches_survive_rebinding(make):
    model = Model()
    pruner = make(ActivationMeanRankFilterPruner, model, [RULE], statistics_batch_num=2)
    pruner.compress()
    for seed in range(3):
        model(batch(seed))
    before = removed(pruner)
    pruner.rebind()
    for seed in range(3):
        model(batch(seed))
    assert removed(pruner) == before


@pytest.mark.parametrize(
    ("cls", "args", "told"),
    [
        (TaylorFOWeightFilterPruner, (0,), "statistics_batch_num is 0; it must be at least 1"),
        (TaylorFOWeightFilterPruner, (train,), "statistics_batch_num is <function .*an integer"),
        (SlimPruner, (train,), "dependency_aware is <function .*; it must be a bool"),
        (ActivationAPoZRankFilterPruner, ("relu", -1), "statistics_batch_num is -1"),
    ],
)
def test_wrong_arguments_are_refused(make, cls, args, told):
    with pytest.raises(nc.InvalidArgumentError, match=told):
        make(cls, Model(), [RULE], None, *args)


def test_an_activation_that_there_is_not_is_refused_by_the_server(make):
    pruner = make(ActivationAPoZRankFilterPruner, Model(), [RULE], None, "gelu")
    with pytest.raises(nc.InvalidArgumentError, match=r"config_list\[0\].activation is .*gelu"):
        pruner.compress()
