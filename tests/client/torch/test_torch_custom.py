"""Algorithms of one's own, computed in the trainer."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import Pruner, Quantizer
from torch_helpers import Net, dense, images, train_step

RULES = [{"keep": 0.25, "op_types": ["default"]}]


class LargestPruner(Pruner):
    """NNI's skeleton, filled in: keeps the share `keep` of the largest weights."""

    def __init__(self, config_list, **kwargs):
        super().__init__(config_list, **kwargs)
        self.computed = []
        self.model = None

    def bind_model(self, model):
        self.model = model

    def calc_mask(self, weight, config, **kwargs):
        self.computed.append((kwargs["op_name"], kwargs["op_type"], type(kwargs["op"])))
        kept = max(1, int(weight.numel() * config["keep"]))
        threshold = weight.abs().flatten().topk(kept).values[-1]
        return (weight.abs() >= threshold).to(weight.dtype)

    def update_epoch(self, epoch_num):
        pass

    def step(self):
        pass


class GridQuantizer(Quantizer):
    """Rounds weights and outputs to multiples of `grid`."""

    def __init__(self, config_list, **kwargs):
        super().__init__(config_list, **kwargs)
        self.computed = 0

    def quantize_weight(self, weight, config, **kwargs):
        self.computed += 1
        return torch.round(weight / config["grid"]) * config["grid"]

    def quantize_layer_output(self, output, config, **kwargs):
        return torch.round(output)


def wanted(weight, keep=0.25):
    threshold = weight.abs().flatten().topk(int(weight.numel() * keep)).values[-1]
    return weight.abs() >= threshold


def test_the_skeleton_of_a_pruner_prunes(client):
    model = Net()
    pruner = LargestPruner(RULES, client=client)
    pruner(model)
    model(images())
    assert pruner.model is model
    assert pruner.computed[0] == ("conv1", "Conv2d", type(model.conv1))
    for name, mask in pruner.masks.items():
        weight = dense(getattr(model, name)).detach()
        assert torch.equal(mask, wanted(weight))
        assert torch.equal(getattr(model, name).weight, weight * mask)


def test_calc_mask_runs_when_weight_epoch_or_step_changed_and_not_on_every_forward(client):
    model = Net()
    pruner = LargestPruner(RULES, client=client)
    pruner(model)
    counts = []
    for change in (
        lambda: None,
        lambda: None,
        lambda: pruner.update_epoch(1),
        lambda: pruner.step(),
        lambda: dense(model.fc1).data.mul_(2),
    ):
        before = len(pruner.computed)
        change()
        model(images())
        counts.append(len(pruner.computed) - before)
    assert counts == [4, 0, 4, 4, 1]
    assert (pruner.epoch, pruner.steps) == (1, 1)


def test_an_algorithm_may_read_the_compressed_weight_of_its_op(client):
    class Shrinking(Pruner):
        def calc_mask(self, weight, config, **kwargs):
            alive = kwargs["op"].weight.detach() != 0
            alive.view(-1)[int(alive.view(-1).nonzero()[0])] = False
            return alive

    model = nn.Linear(4, 2)
    pruner = Shrinking([{}], client=client)
    pruner(model)
    for epoch in range(3):
        pruner.update_epoch(epoch)
        assert int((model.weight == 0).sum()) == epoch + 1


def test_a_subclass_may_call_the_bases_update_epoch_and_step_or_not(client):
    class Polite(LargestPruner):
        def update_epoch(self, epoch_num):
            Pruner.update_epoch(self, epoch_num)

        def step(self):
            Pruner.step(self)

    for kind in (LargestPruner, Polite):
        pruner = kind(RULES, client=client)
        pruner(Net())
        pruner.update_epoch(2)
        pruner.step()
        pruner.step()
        assert (pruner.epoch, pruner.steps) == (2, 2)
        assert pruner.session.info().epoch == 2


def test_a_subclass_may_bind_in_update_epoch(client):
    class Lazy(Pruner):
        def calc_mask(self, weight, config, **kwargs):
            return weight.abs() > 0.01

        def update_epoch(self, epoch_num):
            self.compress()
            super().update_epoch(epoch_num)

    pruner = Lazy(Net(), RULES, client=client)
    pruner.update_epoch(1)
    assert pruner.epoch == 1


def test_its_session_holds_the_masks_for_report_and_export(client, tmp_path):
    model = Net()
    pruner = LargestPruner(RULES, client=client)
    pruner(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        train_step(model, optimizer)
    masks = pruner.masks
    info = pruner.session.info()
    assert info.algorithm == "custom_pruner"
    assert info.achieved_sparsity == pytest.approx(0.75, abs=0.01)
    assert pruner.plan.layers["fc1"].options == {
        "implementation": "LargestPruner",
        "options": {"keep": 0.25},
    }
    files = {path.name: path for path in pruner.session.export(tmp_path, format="masks")}
    content = files["masks.safetensors"].read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, mask in masks.items():
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        assert content[begin:end] == mask.numpy().tobytes()


def test_it_resumes_with_its_masks(client):
    model = Net()
    pruner = LargestPruner(RULES, client=client)
    pruner(model)
    pruner.update_epoch(3)
    masks = pruner.masks
    state = pruner.state_dict()
    pruner.close()
    resumed = LargestPruner(RULES, client=client)
    resumed.load_state_dict(state)
    resumed(Net())
    assert resumed.epoch == 3
    assert all(torch.equal(mask, masks[name]) for name, mask in resumed.masks.items())


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "calc_mask of layer '.' returned None; it must be a tensor of shape"),
        (torch.ones(3), ValueError, r"returned shape \(3,\); it must be \(2, 4\)"),
        (torch.full((2, 4), 0.5), ValueError, "a mask with 0.5; it must have 0 and 1 only"),
        ("mask", TypeError, "returned 'mask'"),
    ],
)
def test_a_wrong_mask_is_an_error_that_says_what_is_wrong(client, result, error, message):
    class Wrong(Pruner):
        def calc_mask(self, weight, config, **kwargs):
            return result

    model = nn.Linear(4, 2)
    Wrong([{}], client=client)(model)
    with pytest.raises(error, match=message):
        model(torch.ones(1, 4))


def test_a_class_that_declares_options_has_them_checked_and_filled_in(client):
    class Declared(Pruner):
        options = {"keep": float, "seed": 7}  # noqa: RUF012
        default_op_types = ("Conv2d",)

        def calc_mask(self, weight, config, **kwargs):
            assert config["seed"] == 7
            return torch.ones_like(weight)

    model = Net()
    pruner = Declared([{"keep": 1}], client=client)
    pruner(model)
    model(images())
    assert pruner.plan.compressed == ("conv1", "conv2")
    for rule, message in (
        ({"keeps": 1.0}, r"config_list\[0\] has the unknown key 'keeps'.*did you mean `keep`"),
        ({}, r"config_list\[0\].keep is missing; it must be a float"),
        ({"keep": "much"}, r"config_list\[0\].keep is 'much'; it must be a float"),
    ):
        with pytest.raises(nc.InvalidArgumentError, match=message):
            Declared([rule], client=client)


def test_the_skeleton_of_a_quantizer_quantizes_weights_and_outputs(client):
    model = nn.Linear(3, 2)
    quantizer = GridQuantizer([{"grid": 0.5}], client=client)
    quantizer(model)
    weight = dense(model)
    x = torch.randn(4, 3, requires_grad=True)
    y = model(x)
    rounded = torch.round(weight.detach() / 0.5) * 0.5
    assert torch.equal(model.weight, rounded)
    assert torch.equal(y, torch.round(nn.functional.linear(x, rounded, model.bias)))
    y.sum().backward()
    assert torch.equal(weight.grad, x.detach().sum(0).expand(2, 3))
    assert quantizer.computed == 1, "not on every read"
    with torch.no_grad():
        weight.add_(1)
    model(x)
    assert quantizer.computed == 2
    assert quantizer.session.info().algorithm == "custom_quantizer"
    copied = copy.deepcopy(model)
    assert torch.equal(copied.weight, model.weight)
    values = model.weight.detach().clone()
    assert torch.equal(quantizer.unwrap().weight, values)


def test_its_values_are_exported(client, tmp_path):
    model = Net()
    quantizer = GridQuantizer([{"grid": 0.5, "op_types": ["default"]}], client=client)
    quantizer(model)
    (path,) = quantizer.export(tmp_path, "pth")
    loaded, expected = torch.load(path), quantizer.compressed_state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not torch.equal(loaded["fc1.weight"], dense(model.fc1))


def test_values_that_are_the_weights_own_do_not_follow_it(client):
    class Same(Quantizer):
        def quantize_weight(self, weight, config, **kwargs):
            return weight

    model = nn.Linear(3, 2)
    quantizer = Same([{}], client=client)
    quantizer(model)
    before = model.weight.detach().clone()
    quantizer.close()
    with torch.no_grad():
        dense(model).add_(1)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("result", "error"),
    [(None, TypeError), (torch.ones(1), ValueError), (torch.ones(2, 3).double(), TypeError)],
)
def test_a_wrong_quantized_weight_is_an_error(client, result, error):
    class Wrong(Quantizer):
        def quantize_weight(self, weight, config, **kwargs):
            return result

    model = nn.Linear(3, 2)
    Wrong([{}], client=client)(model)
    with pytest.raises(error, match="Wrong.quantize_weight of layer '.' returned"):
        model(torch.ones(1, 3))


def test_a_class_that_overrides_nothing_is_told_what_to_do(client):
    with pytest.raises(TypeError, match="class attribute `algorithm`, or override calc_mask"):
        type("Empty", (Pruner,), {})([{}], client=client)
