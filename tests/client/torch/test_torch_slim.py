"""Network slimming: filters ranked by the scales of the norms behind them, and masks of scales."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nni_compression.torch import SlimPruner, shrink
from test_torch_filters import IS_TORCH_2, needs_torch_2, picture, separable
from test_torch_shrink import assert_equal, one_thread, trained  # noqa: F401
from torch_helpers import run_ranks

CONVOLUTIONS = {"sparsity": 0.5, "op_types": ["Conv2d"]}
NORMS = {"sparsity": 0.5, "op_types": ["BatchNorm2d"]}


class Plain(nn.Module):
    """Convolutions, norms and a layer, one behind the other."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 2)
        trained(self)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """Norms whose outputs are added."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)
        trained(self)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Activated(nn.Module):
    """Norms in front of convolutions, as in a DenseNet: none belongs to a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 2)
        trained(self)

    def forward(self, x):
        x = self.conv1(x)
        x = torch.cat([x, self.conv2(F.relu(self.bn1(x)))], 1)
        return self.fc(F.relu(self.bn2(x)).mean((2, 3)))


def compressed(model, client, rule, *, given=True, **kwargs):
    inputs = picture(8) if given else None
    pruner = SlimPruner(model, [rule], example_inputs=inputs, client=client, **kwargs)
    pruner.compress()
    pruner.refresh()
    return pruner


def scales(model, name):
    return model.get_submodule(name)._parameters["weight"].detach().abs()


def kept_by(mask):
    return mask.reshape(len(mask), -1).all(1)


BY_HAND = {"conv1": "bn1.weight", "conv2": "bn2.weight"}


@pytest.mark.parametrize("given", [pytest.param(True, marks=needs_torch_2), False])
def test_filters_are_ranked_together_by_the_scales_of_the_norms_behind_them(client, given):
    model = Plain()
    names = {} if given else {"statistic_parameters": BY_HAND}
    pruner = compressed(model, client, CONVOLUTIONS, given=given, **names)
    # As few filters as have half of the weights.
    filters = [(float(scale), 27) for scale in scales(model, "bn1")]
    filters += [(float(scale), 72) for scale in scales(model, "bn2")]
    half = (8 * 27 + 12 * 72) // 2
    largest = next(
        score
        for score, _ in sorted(filters)
        if sum(size for other, size in filters if other <= score) >= half
    )
    for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
        assert torch.equal(kept_by(pruner.masks[conv]), scales(model, bn) > largest)
    assert pruner.statistic_parameters == names.get("statistic_parameters", {})
    pruner.close()


@needs_torch_2
def test_scales_of_layers_that_go_together_are_added(client):
    model = Residual()
    pruner = compressed(model, client, CONVOLUTIONS)
    total = scales(model, "bn1") + scales(model, "bn2")
    wanted = total >= total.sort().values[4]
    for name in ("conv1", "conv2"):
        assert torch.equal(kept_by(pruner.masks[name]), wanted)
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert_equal(small, model, picture(8))
    pruner.close()


@needs_torch_2
def test_a_layer_without_a_norm_behind_it_is_named(client):
    told = (
        "the parameter of layer 'conv2', and there is no norm right behind it with a number for "
        "each of its filters: exclude the layer in config_list, or name a parameter"
    )
    labels = {"job": "no norm"}
    with pytest.raises(nc.InvalidArgumentError, match=told):
        compressed(Activated(), client, CONVOLUTIONS, labels=labels)
    assert client.sessions(labels) == []
    pruner = compressed(
        Activated(), client, CONVOLUTIONS, statistic_parameters={"conv2": "conv2.bias"}
    )
    assert 0 < int(kept_by(pruner.masks["conv2"]).sum()) < 4
    pruner.close()


# Masks of the scales, as in scripts for NNI.


@pytest.mark.parametrize("given", [pytest.param(True, marks=needs_torch_2), False])
def test_scales_themselves_are_pruned_together(client, given):
    model = Plain()
    pruner = compressed(model, client, NORMS, given=given)
    assert pruner.plan.compressed == ("bn1", "bn2")
    both = torch.cat([scales(model, "bn1"), scales(model, "bn2")])
    threshold = both.sort().values[len(both) // 2]
    for name in ("bn1", "bn2"):
        assert torch.equal(pruner.masks[name], scales(model, name) >= threshold)
        assert torch.equal(model.get_submodule(name).weight != 0, pruner.masks[name])
    if IS_TORCH_2:
        small = shrink(model, picture(8))
        assert_equal(small, model, picture(8))
        assert not small.shrink_report.kept
        assert small.bn1.num_features == small.conv1.out_channels == small.conv2.in_channels
        assert small.bn1.num_features == int(pruner.masks["bn1"].sum())
        masks = pruner.masks
        plain = pruner.unwrap()
        for other in (shrink(plain, picture(8)), shrink(Plain(), picture(8), masks=masks)):
            assert other.shrink_report == small.shrink_report
    pruner.close()


@needs_torch_2
def test_scales_that_are_added_go_together(client):
    model = Residual()
    pruner = compressed(model, client, NORMS)
    assert pruner.filter_groups == (nc.FilterGroup(["bn1", "bn2"]),)
    assert not any("filter_groups" in warning for warning in pruner.plan.warnings)
    assert torch.equal(pruner.masks["bn1"], pruner.masks["bn2"])
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert small.conv1.out_channels == small.conv2.out_channels == small.fc.in_features == 4
    assert_equal(small, model, picture(8))
    pruner.close()


@needs_torch_2
def test_scales_of_a_concatenation_go_with_those_of_its_parts(client):
    model = Activated()
    pruner = compressed(model, client, NORMS)
    (group,) = pruner.filter_groups
    assert group.members == {"bn1": tuple(range(6)), "bn2": ()} or (
        group.members["bn2"][:6] == group.members["bn1"]
    )
    assert torch.equal(pruner.masks["bn1"], pruner.masks["bn2"][:6])
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert_equal(small, model, picture(8))
    assert small.bn2.num_features == small.fc.in_features
    assert small.bn2.num_features == int(pruner.masks["bn2"].sum()) < 10
    pruner.close()


@needs_torch_2
def test_a_depthwise_convolution_in_front_of_a_norm_follows_it(client):
    model = separable()
    pruner = compressed(model, client, NORMS)
    assert pruner.filter_groups == (nc.FilterGroup(["1", "4"]),)
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert small[3].groups == small[0].out_channels == 4
    assert_equal(small, model, picture(8))
    pruner.close()


@needs_torch_2
def test_a_norm_of_the_models_input_is_left_out(client):
    class Normed(Plain):
        def __init__(self):
            super().__init__()
            self.bn0 = nn.BatchNorm2d(3)

        def forward(self, x):
            return super().forward(self.bn0(x))

    pruner = compressed(Normed(), client, NORMS)
    assert pruner.plan.compressed == ("bn1", "bn2")
    assert pruner.kept_layers["bn0"] == "not all channels of bn0 come from filters"
    pruner.close()


@needs_torch_2
def test_a_channel_of_a_sum_stays_if_one_of_its_scales_does():
    model = Residual()
    masks = {"bn1": torch.ones(8), "bn2": torch.ones(8)}
    masks["bn1"][[0, 1]] = 0
    masks["bn2"][[1, 2]] = 0
    small = shrink(model, picture(8), masks=masks)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight *= mask
    assert_equal(small, model, picture(8))
    report = small.shrink_report
    assert report.removed == {"conv1": (1,), "conv2": (1,)}
    assert {(each.layer, each.filters) for each in report.kept} == {("bn1", (0,)), ("bn2", (2,))}


@needs_torch_2
def test_constants_of_masked_scales_can_be_set_to_zero():
    class Padded(Plain):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
            with torch.no_grad():
                self.bn1.bias.abs_()

    model = Padded()
    masks = {"bn1": torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])}
    assert shrink(model, picture(8), masks=masks).bn1.num_features == 6  # one carries constants
    small = shrink(model, picture(8), masks=masks, zero_constants=True)
    assert small.bn1.num_features == 5
    with torch.no_grad():
        model.bn1.weight[:3] = 0
        model.bn1.bias[:3] = 0
    assert_equal(small, model, picture(8))


@needs_torch_2
def test_norms_that_are_zero_everywhere_count_for_nothing():
    model = Residual()
    with torch.no_grad():
        model.bn2.weight.zero_()  # as some models begin
        model.conv1.weight[0] = 0
        model.conv2.weight[0] = 0
    report = shrink(model, picture(8)).shrink_report
    assert report.removed == {"conv1": (0,), "conv2": (0,)}
    assert not report.kept
    masks = {"bn2": torch.zeros(8)}
    with pytest.raises(nc.InvalidArgumentError, match="layer 'bn2' removes all of its 8 filters"):
        shrink(model, picture(8), masks=masks)


RANK = """
import sys
import torch
import torch.distributed as dist

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]
from nni_compression.torch import ActivationAPoZRankFilterPruner, SlimPruner
from test_torch_slim import CONVOLUTIONS, NORMS, Residual, picture
from torch_helpers import process_group

def main():
    torch.set_num_threads(1)
    for cls, rule in (
        (SlimPruner, CONVOLUTIONS),
        (SlimPruner, NORMS),
        (ActivationAPoZRankFilterPruner, CONVOLUTIONS),
    ):
        torch.manual_seed(0)
        model = Residual()
        pruner = cls([rule], example_inputs=picture(8), server=address)
        pruner.on_every_rank(model)
        model(rank + picture(8))
        pruner.step()
        model(picture(8))
        kept = [mask.reshape(8, -1).any(1).tolist() for mask in pruner.masks.values()]
        found = [None, None]
        dist.all_gather_object(found, kept)
        assert found[0] == found[1]
        assert kept[0] == kept[1]
        assert sum(kept[0]) == 4
        dist.barrier()
        pruner.close()

with process_group(rank, 2, meeting):
    main()
"""


@needs_torch_2
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_ranks_find_the_same_groups_and_share_the_masks(server, tmp_path):
    paths = [Path(__file__).parents[2] / "testing/python", Path(nc.__file__).parents[1]]
    found = [str(path) for path in (*paths, Path(__file__).parent)]
    run_ranks(2, RANK, str(tmp_path / "meeting"), server.address, PYTHONPATH=os.pathsep.join(found))
