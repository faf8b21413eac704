"""Smaller dense models without the filters that masks remove: `shrink`."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import nni_compression as nc
from nni_compression.torch import LevelPruner, NaiveQuantizer, Pruner, shrink, unwrap
from torch_helpers import NAIVE, Net, images, vit

IS_TORCH_2 = int(torch.__version__.split(".")[0]) >= 2
needs_torch_2 = pytest.mark.skipif(not IS_TORCH_2, reason="shrink needs PyTorch 2")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class FilterPruner(Pruner):
    """Removes the filters that a rule lists."""

    def calc_mask(self, weight, config, **kwargs):
        mask = torch.ones_like(weight)
        mask[config["filters"]] = 0
        return mask


def zero(model, **filters):
    """Zeros in the weights of filters, as after `unwrap()`; names have _ for dots."""
    modules = {name.replace(".", "_"): module for name, module in model.named_modules()}
    with torch.no_grad():
        for name, own in filters.items():
            modules[name].weight[own] = 0
    return model


def trained(model, seed=0):
    """Numbers as after a training in all norms and biases, so that nothing is zero by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name in ("weight", "bias", "running_mean"):
                value = getattr(module, name, None)
                if value is not None and value.dim() == 1:
                    value.copy_(torch.randn(value.shape, generator=generator))
            if getattr(module, "running_var", None) is not None:
                numbers = torch.rand(module.running_var.shape, generator=generator)
                module.running_var.copy_(numbers + 0.5)
    return model


def run(model, inputs):
    """The output in evaluation mode."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for module, flag in training.items():
        module.training = flag
    return output if isinstance(output, torch.Tensor) else output[0]


def assert_equal(small, model, inputs):
    wanted, found = run(model, inputs), run(small, inputs)
    assert wanted.shape == found.shape
    assert wanted.dtype == found.dtype
    assert float((found - wanted).abs().max()) <= TOLERANCE[wanted.dtype] * float(
        wanted.abs().max()
    )


def shapes(model):
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def reasons(small):
    return {each.layer: each.reason for each in small.shrink_report.kept}


# What it needs.


def test_without_what_it_needs_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    text = r"pip install 'nni-compression\[shrink\]'" if IS_TORCH_2 else "needs PyTorch 2"
    with pytest.raises(nc.UnimplementedError, match=text):
        shrink(nn.Linear(4, 4), torch.zeros(1, 4))


# Masks of a pruner, of a copy, of a plain model.


@needs_torch_2
def test_a_compressed_model_is_made_smaller_and_stays_as_it_was(client):
    model = trained(Net())
    rules = [
        {"filters": [0, 3], "op_names": ["conv1"]},
        {"filters": [1, 2, 7], "op_names": ["conv2"]},
        {"filters": list(range(16)), "op_names": ["fc1"]},
    ]
    pruner = FilterPruner(rules, client=client)
    pruner(model)
    model(images())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    small = shrink(model, images())

    assert_equal(small, model, images())
    assert type(small.conv1) is nn.Conv2d
    assert type(small) is Net
    assert (small.conv1.out_channels, small.conv2.in_channels) == (7, 7)  # one carries constants
    assert (small.conv2.out_channels, small.bn.num_features) == (5, 5)
    assert small.fc1.in_features == 5 * 16
    assert small.fc1.out_features == small.fc2.in_features == 16
    assert small.shrink_report.removed["conv2"] == (1, 2, 7)
    assert small.shrink_report.removed["fc1"] == tuple(range(16))
    assert not small.shrink_report.kept
    assert "removed 20 filters of 3 layers" in str(small.shrink_report)

    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pruner.is_bound
    assert model.training
    pruner.update_epoch(1)
    model(images()).sum().backward()
    pruner.close()


@needs_torch_2
def test_a_copy_an_unwrapped_model_and_masks_of_a_file_give_the_same(client, tmp_path):
    model = Net().double()
    rules = [{"filters": [0, 3], "op_names": ["conv2"]}]
    pruner = FilterPruner(rules, client=client)
    pruner(model)
    inputs = images().double()
    small = shrink(model, inputs)
    masks = pruner.masks
    pruner.export_model(str(tmp_path / "model.pth"), str(tmp_path / "masks.pth"))
    dense = Net().double()
    others = [
        shrink(copy.deepcopy(model), inputs),
        shrink(unwrap(copy.deepcopy(model)), inputs),
        shrink(pruner.unwrap(), inputs),
        shrink(dense, inputs, masks=masks),
        shrink(dense, inputs, masks=torch.load(tmp_path / "masks.pth")),
        shrink(dense, inputs, masks={"conv2": masks["conv2"].numpy()}),
    ]
    for other in others:
        assert other.shrink_report == small.shrink_report
        for name, value in small.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    assert small.conv2.out_channels == 6


@needs_torch_2
def test_zeros_in_filters_that_stay_are_in_the_weights(client):
    model = Net()
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["fc1", "conv1"]}], client=client)
    pruner(model)
    model(images())
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    masks["conv1"][2] = False
    plain = pruner.unwrap()
    small = shrink(plain, images(), masks=masks)
    assert_equal(small, zero(plain, conv1=[2]), images())
    assert int((small.fc1.weight == 0).sum()) == 32 * 128 // 2
    assert not hasattr(small, "compressor")


@needs_torch_2
def test_with_masks_other_zeros_count_as_weights(client):
    model = zero(Net(), fc1=[0, 1])
    masks = {"conv2": torch.ones(8, 8, 3, 3)}
    masks["conv2"][5] = 0
    small = shrink(model, images(), masks=masks)
    assert small.shrink_report.removed == {"conv2": (5,)}
    assert small.fc1.out_features == 32


# Constants of removed filters.


def padded(padding, bias=True):
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3, bias=bias, **padding),
        )
    ).double()


@needs_torch_2
@pytest.mark.parametrize("bias", [True, False])
def test_constants_become_biases_where_no_zeros_are_padded(bias):
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for padding in ({}, {"padding": 1, "padding_mode": "reflect"}, {"padding": "valid"}):
        model = zero(padded(padding, bias), **{"0": [1, 2, 5]})
        small = shrink(model, inputs)
        assert_equal(small, model, inputs)
        assert small[0].out_channels == 5
        assert not small.shrink_report.carriers
        assert small[3].bias is not None
        assert small[3].bias.requires_grad


@needs_torch_2
def test_a_channel_carries_the_constants_of_all_where_zeros_are_padded():
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for padding in ({"padding": 1}, {"padding": "same"}):
        model = zero(padded(padding), **{"0": [1, 2, 4, 5]})
        with torch.no_grad():
            model[1].bias[4] = 3  # the largest
        small = shrink(model, inputs)
        assert_equal(small, model, inputs)
        assert small.shrink_report.carriers == {"0": (4,)}
        assert small[0].out_channels == 5
        assert "1 filters carry the constants of others" in str(small.shrink_report)


@needs_torch_2
def test_no_channel_is_kept_for_constants_that_are_zero():
    model = zero(padded({"padding": 1}), **{"0": [1, 2]})
    with torch.no_grad():
        model[1].weight[[1, 2]] = 1
        model[1].bias[[1, 2]] = -10
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small[0].out_channels == 6
    assert not small.shrink_report.carriers


@needs_torch_2
def test_constants_can_be_set_to_zero_instead():
    model = zero(padded({"padding": 1}), **{"0": [1, 2, 5]})
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = shrink(model, inputs, zero_constants=True)
    assert small[0].out_channels == 5
    assert not small.shrink_report.carriers
    with torch.no_grad():  # the same by hand
        for value in (model[0].bias, model[1].bias, model[1].running_mean):
            value[[1, 2, 5]] = 0
    assert_equal(small, model, inputs)


@needs_torch_2
def test_constants_become_zero_through_several_norms():
    """Also those that a depthwise convolution that is not pruned makes of them."""
    model = trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 3, padding=1),
        )
    ).double()
    with torch.no_grad():
        model[1].bias.abs_()
    zero(model, **{"0": [0, 6]})
    inputs = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    assert "0" in reasons(shrink(model, inputs))  # the constant is not the same at the border
    small = shrink(model, inputs, zero_constants=True)
    assert small.shrink_report.removed == {"0": (0, 6), "3": (0, 6)}
    with torch.no_grad():
        model[5].weight[:, [0, 6]] = 0
    assert_equal(small, model, inputs)


# What depends on each other.


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(c, 6, 3, padding=1) for c in (2, 6, 6))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(F.relu(x + self.norm(self.second(x))))


@needs_torch_2
def test_a_channel_of_a_sum_goes_if_all_that_is_added_is_removed():
    inputs = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    model = trained(Residual()).double()
    with torch.no_grad():
        model.first.bias.fill_(-1)
        model.norm.bias.fill_(-1)
        model.norm.running_mean.zero_()
        model.second.bias.zero_()
    zero(model, first=[0, 1, 2], second=[1, 2, 3])
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small.shrink_report.removed == {"first": (1, 2), "second": (1, 2)}
    assert reasons(small) == {
        "first": "coupled layers keep it: second",
        "second": "coupled layers keep it: first",
    }


@needs_torch_2
def test_what_is_only_zero_for_the_example_inputs_stays():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(F.relu(self.a(x)) + F.relu(self.b(x)))

    model = zero(Dead(), a=[0, 1])
    with torch.no_grad():
        model.b.bias.fill_(-1)  # no ReLU lets anything through for zeros
    small = shrink(model, torch.zeros(1, 3))
    assert not small.shrink_report.removed
    assert reasons(small) == {"a": "coupled layers keep it: b"}
    assert_equal(small, model, torch.randn(5, 3))


@needs_torch_2
def test_the_groups_of_a_convolution_stay_of_one_size():
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)
    ).double()
    zero(model, **{"0": [0, 1, 4], "1": [0, 4, 5, 6]})
    inputs = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small.shrink_report.removed == {"0": (0, 4), "1": (0, 4)}
    assert reasons(small) == dict.fromkeys(("0", "1"), "the groups of 1 have to stay of one size")
    assert list(small[1].weight.shape) == [6, 3, 3, 3]
    assert small[1].groups == 2


@needs_torch_2
def test_a_channel_stays_of_everything():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 2, 1)
    )
    zero(model, **{"0": [0, 1], "1": [2, 3]})
    small = shrink(model, torch.randn(1, 2, 5, 5))
    assert_equal(small, model, torch.randn(1, 2, 5, 5))
    assert small.shrink_report.removed == {"0": (1, 2, 3), "1": (1, 2, 3)}
    assert reasons(small) == {"0": "0 has no other"}


class Between(nn.Module):
    """A layer that is pruned, something, and a layer that uses it."""

    def __init__(self, between, first=None, last=None):
        super().__init__()
        self.first = first or nn.Linear(4, 8, bias=False)
        self.between = between
        self.last = last or nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * self.scale


@needs_torch_2
@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.LayerNorm(8), "between normalizes over all channels"),
        (Scale(), "the parameter between.scale, of no convolution, Linear or norm, has it"),
        (Function(lambda x: x / x.abs().mean(-1, keepdim=True)), "without it the outputs would"),
        (Function(lambda x: x.reshape(-1, 8) * 2), "without it the model would raise RuntimeError"),
        (Function(lambda x: F.normalize(x.unflatten(-1, (2, 4)), dim=-2).flatten(-2)), "without"),
        (nn.Unflatten(-1, (2, 4)), "without it the model would raise RuntimeError"),
        (nn.LSTM(8, 8), "between is recurrent"),
    ],
)
def test_what_cannot_lose_channels_keeps_them(between, reason):
    if isinstance(between, nn.Unflatten):
        between = nn.Sequential(between, nn.Flatten())
    if isinstance(between, nn.LSTM):
        between = nn.Sequential(between, Function(lambda x: x[0]))
        reason = reason.replace("between", "between.0")
    model = zero(Between(between), first=[1, 4])
    small = shrink(model, torch.randn(5, 4))
    assert reasons(small)["first"].startswith(reason)
    assert not small.shrink_report.removed
    assert_equal(small, model, torch.randn(5, 4))


@needs_torch_2
@pytest.mark.parametrize(
    "between",
    [
        nn.PReLU(8),
        nn.PReLU(),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.BatchNorm1d(8),
        Function(lambda x: x.sigmoid() * 2 + 1),
    ],
)
def test_what_treats_channels_alone_loses_them(between):
    first = nn.Linear(4, 8)
    model = zero(trained(Between(between, first)).double(), first=[1, 5])
    inputs = torch.randn(5, 4, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small.shrink_report.removed == {"first": (1, 5)}
    assert small.last.in_features == 6


@needs_torch_2
@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)])
def test_norms_of_images(norm):
    layers = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 3, 1)
    model = zero(trained(Between(norm, *layers)).double(), first=[1, 5])
    inputs = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    is_alone = isinstance(norm, nn.InstanceNorm2d)
    assert small.first.out_channels == (6 if is_alone else 8)
    assert bool(reasons(small)) != is_alone


@needs_torch_2
def test_convolutions_of_other_dimensions_and_transposed_ones():
    for first, second, size in (
        (nn.Conv1d(2, 6, 3), nn.Conv1d(6, 3, 3, padding=1), (7,)),
        (nn.Conv3d(2, 6, 3), nn.Conv3d(6, 3, 3, padding=1), (5, 5, 5)),
        (nn.Conv2d(2, 6, 3), nn.ConvTranspose2d(6, 3, 3, stride=2), (5, 5)),
    ):
        model = zero(nn.Sequential(first, nn.ReLU(), second).double(), **{"0": [0, 2, 3]})
        inputs = torch.randn(2, 2, *size, dtype=torch.float64)
        small = shrink(model, inputs)
        assert_equal(small, model, inputs)
        removed = sum(map(len, small.shrink_report.removed.values()))
        assert removed + sum(map(len, small.shrink_report.carriers.values())) == 3

    model = nn.Sequential(nn.ConvTranspose1d(2, 6, 3), nn.Conv1d(6, 3, 1)).double()
    with torch.no_grad():
        model[0].weight[:, [1, 4]] = 0
    inputs = torch.randn(2, 2, 5, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small.shrink_report.removed == {"0": (1, 4)}
    assert list(small[0].weight.shape) == [2, 4, 3]


@needs_torch_2
def test_linear_layers_of_sequences():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    zero(model, **{"0": [0, 7]})
    inputs = torch.randn(2, 5, 4, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert small[0].out_features == 6


@needs_torch_2
def test_the_output_of_the_model_keeps_its_shape():
    model = zero(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), **{"2": [1]})
    small = shrink(model, torch.randn(2, 4))
    assert reasons(small) == {"2": "it is in the output of the model"}

    class Two(Between):
        def forward(self, x):
            hidden = F.relu(self.first(x))
            return self.last(hidden), hidden

    model = zero(Two(None), first=[1])
    small = shrink(model, torch.randn(2, 4))
    assert not small.shrink_report.removed
    assert reasons(small)["first"]
    assert small(torch.randn(2, 4))[1].shape == (2, 8)


@needs_torch_2
def test_tied_and_computed_weights_stay():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    zero(tied, **{"0": [1]})
    small = shrink(tied, torch.randn(2, 4))
    assert reasons(small)["0"] == "0 shares a parameter with another module"
    assert small[2].weight is small[0].weight

    computed = nn.Sequential(
        nn.Linear(4, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    )
    zero(computed, **{"0": [1]})
    small = shrink(computed, torch.randn(2, 4))
    assert reasons(small)["0"] == "1 computes its weight from other parameters"
    assert_equal(small, computed, torch.randn(2, 4))


@needs_torch_2
def test_a_module_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))))

    for filters in ({"a": [1]}, {"b": [1]}, {"a": [1, 2], "b": [1, 2]}):
        model = zero(Twice().double(), **filters)
        inputs = torch.randn(3, 4, dtype=torch.float64)
        assert_equal(shrink(model, inputs), model, inputs)


@needs_torch_2
def test_a_module_with_two_names():
    layers = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[1], layers[2])
    model.double()
    inputs = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.ones(6, 6)
    mask[2] = 0
    small = shrink(model, inputs, masks={"4": mask})
    assert_equal(small, zero(model, **{"2": [2]}), inputs)
    assert small[2] is small[4]


# Models that people use.


def halved(model, but=()):
    """The first half of the filters of all convolutions and Linear layers is zero."""
    trained(model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in but:
                module.weight[: len(module.weight) // 2] = 0
    return model


def image_model(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=5, **options)


@needs_torch_2
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resnet(dtype):
    model = halved(image_model("resnet18"), but=("fc",)).to(dtype)
    inputs = torch.randn(2, 3, 48, 48, dtype=dtype)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert not small.shrink_report.kept
    assert small.conv1.out_channels in (32, 33)
    report = shrink(model, inputs, zero_constants=True).shrink_report
    assert report.removed["layer4.1.conv2"] == tuple(range(256))
    assert not report.carriers
    assert report.parameters_after < 0.26 * report.parameters_before


@needs_torch_2
def test_a_mobilenet():
    model = halved(image_model("mobilenetv2_050"), but=("classifier",)).double()
    inputs = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    assert not small.shrink_report.kept
    assert small.shrink_report.parameters_after < 0.3 * small.shrink_report.parameters_before


@needs_torch_2
def test_a_vit_loses_channels_and_heads():
    model = zero(
        vit(embed_dim=48, num_heads=3).double(),
        blocks_0_mlp_fc1=range(100),
        blocks_1_attn_proj=range(9),
    )
    with torch.no_grad():
        qkv = model.blocks[0].attn.qkv.weight.view(3, 3, 16, 48)  # q, k and v; head; channel
        qkv[:, 1] = 0
        values = model.blocks[1].attn.qkv.weight.view(3, 3, 16, 48)[2]
        values[0] = 0
        values[2, 3:5] = 0
    inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    first, second = small.blocks[0], small.blocks[1]
    assert first.mlp.fc1.out_features == first.mlp.fc2.in_features == 92
    assert first.attn.num_heads == second.attn.num_heads == 2  # without values it gives a constant
    assert first.attn.qkv.out_features == 96
    assert first.attn.proj.in_features == 32
    assert reasons(small) == {
        "blocks.1.attn.proj": "blocks.0.norm1 normalizes over all channels",
        "blocks.1.attn.qkv": "only a part of its attention head in blocks.1.attn.qkv could go",
    } or reasons(small)["blocks.1.attn.proj"].endswith("normalizes over all channels")


@needs_torch_2
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bert_loses_channels_and_heads(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    model = transformers.BertForSequenceClassification(config).double()
    with torch.no_grad():
        for own in model.parameters():
            own.add_(0.1 * torch.randn_like(own))
    layer = "bert_encoder_layer_"
    zero(model, **{f"{layer}0_intermediate_dense": range(40), f"{layer}1_output_dense": [3]})
    for part in ("query", "key", "value"):
        zero(model, **{f"{layer}0_attention_self_{part}": range(8, 24)})
    zero(model, **{f"{layer}1_attention_self_query": range(8)})  # all places count equally
    ids = torch.randint(0, 50, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 5:] = 0
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    first = small.bert.encoder.layer[0]
    assert first.intermediate.dense.out_features == first.output.dense.in_features == 8
    assert first.attention.self.num_attention_heads == 2
    assert first.attention.output.dense.in_features == 16
    found = reasons(small)
    assert found["bert.encoder.layer.1.output.dense"].endswith("normalizes over all channels")
    assert (
        "bert.encoder.layer.1.attention.self.value"
        in found["bert.encoder.layer.1.attention.self.query"]
    )


@needs_torch_2
@pytest.mark.parametrize("groups", [2, 4])
def test_a_llama_loses_channels_and_keeps_grouped_queries(groups):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
    )
    model = transformers.LlamaForCausalLM(config).double()
    # The product is zero if one of its factors is.
    zero(model, model_layers_0_mlp_up_proj=range(10), model_layers_1_mlp_gate_proj=range(8))
    zero(model, model_layers_0_self_attn_v_proj=range(8, 16))
    inputs = {"input_ids": torch.randint(0, 40, (1, 6)), "use_cache": False}
    small = shrink(model, inputs)
    assert_equal(small, model, inputs)
    first, second = small.model.layers
    assert first.mlp.gate_proj.out_features == first.mlp.down_proj.in_features == 38
    assert second.mlp.up_proj.out_features == 40
    is_grouped = groups < 4
    assert first.self_attn.o_proj.in_features == (32 if is_grouped else 24)
    assert set(reasons(small)) == ({"model.layers.0.self_attn.v_proj"} if is_grouped else set())


@needs_torch_2
def test_the_feed_forward_channels_of_a_transformer_of_pytorch():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).double().eval()
    zero(layer, linear1=range(10))
    inputs = torch.randn(2, 5, 16, dtype=torch.float64)
    small = shrink(layer, inputs)
    assert_equal(small, layer, inputs)
    assert small.linear1.out_features == small.linear2.in_features == 14


# Random networks.


class Random(nn.Module):
    """Convolutions of all kinds between sums and concatenations."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList()
        self.sources: list[tuple[str, int, int]] = []
        widths = [3]

        def draw(count):
            return int(torch.randint(0, count, (1,), generator=generator))

        for number in range(8):
            kind = ("add", "cat", "plain", "plain", "depthwise", "grouped", "plain")[draw(7)]
            kind = kind if number else "plain"
            a, b = (draw(len(widths) - 1) + 1 if number else 0 for _ in range(2))
            if kind == "cat" and a == b:  # torch-pruning cannot follow a tensor into two places
                kind = "plain"
            same = [i for i, width in enumerate(widths) if i and width == widths[a]]
            if kind == "add":
                b = same[draw(len(same))]
                widths.append(widths[a])
                block = nn.Identity()
            elif kind == "cat":
                widths.append(widths[a] + widths[b])
                block = nn.Identity()
            else:
                a = b = len(widths) - 1 if draw(2) else a
                width = widths[a] if kind == "depthwise" else (4, 6, 8)[draw(3)]
                groups = {"depthwise": widths[a], "grouped": 1 + (widths[a] % 2 == 0)}.get(kind, 1)
                size, bias = (1, 3)[draw(2)], bool(draw(2))
                convolution = nn.Conv2d(
                    widths[a], width, size, padding=size // 2, groups=groups, bias=bias
                )
                norm = (nn.BatchNorm2d(width), nn.Identity(), nn.PReLU(width))[draw(3)]
                activation = (nn.ReLU(), nn.Identity(), nn.Hardswish(), nn.Sigmoid())[draw(4)]
                block = nn.Sequential(convolution, norm, activation)
                widths.append(width)
            self.blocks.append(block)
            self.sources.append((kind, a, b))
        used = {0} | {source for kind, a, b in self.sources for source in (a, b)}
        self.unused = [number for number in range(len(widths)) if number not in used]
        # torch-pruning cannot follow a concatenation whose places are flattened.
        cats = [number for number in self.unused if self.sources[number - 1][0] in ("cat", "add")]
        self.size = 1 if cats or len(self.unused) > 1 else 2
        self.last = nn.Linear(sum(widths[number] for number in self.unused) * self.size**2, 3)
        trained(self, seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    share = (0.0, 0.4, 0.8)[draw(3)]
                    removed = torch.rand(module.out_channels, generator=generator) < share
                    removed[draw(module.out_channels)] = False
                    # Often the same ones, so that sums can lose them.
                    if draw(2):
                        removed = torch.arange(module.out_channels) < module.out_channels // 2
                    module.weight[removed] = 0

    def forward(self, x):
        values = [x]
        for block, (kind, a, b) in zip(self.blocks, self.sources):
            if kind == "add":
                value = values[a] + values[b]
            elif kind == "cat":
                value = torch.cat([values[a], values[b]], 1)
            else:
                value = values[a]
            values.append(block(value))
        found = torch.cat([values[number] for number in self.unused], 1)
        return self.last(F.adaptive_avg_pool2d(found, self.size).flatten(1))


@needs_torch_2
@pytest.mark.parametrize("zero_constants", [False, True])
def test_random_networks_compute_the_same(zero_constants):
    removed = 0
    for seed in range(40):
        model = Random(seed).double()
        inputs = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        small = shrink(model, inputs, zero_constants=zero_constants)
        if not zero_constants:
            assert_equal(small, model, inputs)
            assert_equal(small, model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
        assert run(small, inputs).shape == (2, 3)
        assert not any("would" in reason for reason in reasons(small).values()), seed
        removed += sum(map(len, small.shrink_report.removed.values()))
    assert removed > 100


@needs_torch_2
def test_what_is_coupled_is_what_torch_pruning_finds():
    import torch_pruning

    from nni_compression.torch.shrinking.dependencies import Dependencies

    for seed in range(10):
        model = Random(seed).eval()
        inputs = torch.randn(1, 3, 5, 5)
        found = Dependencies.of(model, (inputs,), {})
        graph = torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)
        names = {module: name for name, module in model.named_modules()}
        for module in graph.module2node:
            if not isinstance(module, nn.Conv2d):
                continue
            function = graph.get_pruner_of_module(module).prune_out_channels
            for index in range(module.out_channels):
                coupled = found.coupled(names[module], [index])[index]
                wanted: dict[str, set[int]] = {}
                for dependency, own in graph.get_pruning_group(module, function, [index]):
                    if isinstance(dependency.target.module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                        wanted.setdefault(names[dependency.target.module], set()).update(own)
                mine: dict[str, set[int]] = {}
                for side in (coupled.outputs, coupled.channelwise, coupled.inputs):
                    for name, own in side.items():
                        if not isinstance(model.get_submodule(name), nn.PReLU):
                            mine.setdefault(name, set()).update(own)
                assert coupled.kept or mine == wanted


@needs_torch_2
def test_the_shapes_are_those_of_torch_pruning():
    import torch_pruning

    model = halved(image_model("resnet18"), but=("fc",))
    inputs = torch.randn(1, 3, 32, 32)
    small = shrink(model, inputs, zero_constants=True)
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)
    for group in list(graph.get_all_groups(ignored_layers=[model.fc])):
        root, function = group[0].dep.target.module, group[0].dep.handler
        half = list(range(root.out_channels // 2))
        graph.get_pruning_group(root, function, half).prune()
    assert shapes(small) == shapes(model)


# The result.


@needs_torch_2
def test_it_trains_saves_loads_and_loads_a_state_dict(tmp_path):
    model = zero(trained(Net()), conv1=[0, 1], conv2=[2], fc1=range(20))
    small = shrink(model, images())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(images()), torch.arange(4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(own.grad is not None for own in small.parameters())

    torch.save(small, tmp_path / "small.pt")
    loaded = torch.load(tmp_path / "small.pt", weights_only=False)
    assert torch.equal(run(loaded, images()), run(small, images()))
    assert loaded.shrink_report == small.shrink_report
    other = shrink(zero(trained(Net()), conv1=[0, 1], conv2=[2], fc1=range(20)), images())
    other.load_state_dict(small.state_dict())
    assert torch.equal(run(other, images()), run(small, images()))
    copied = copy.deepcopy(small)
    assert torch.equal(run(copied, images()), run(small, images()))


@needs_torch_2
def test_it_is_exported_to_onnx_and_made_smaller_or_compressed_again(client, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = zero(trained(Net()), conv2=[2, 5], fc1=range(20))
    small = shrink(model, images())
    small.eval()
    torch.onnx.export(small, (images(),), str(tmp_path / "small.onnx"), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    wanted = run(model, images())
    assert float((torch.from_numpy(found) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())

    pruner = FilterPruner([{"filters": [0], "op_names": ["conv2"]}], client=client)
    pruner(small)
    again = shrink(small, images())
    assert again.conv2.out_channels == 5
    assert_equal(again, small, images())
    assert again.shrink_report.parameters_before == small.shrink_report.parameters_after
    pruner.close()


@needs_torch_2
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_half_precision(dtype):
    model = zero(trained(Net()), conv1=[0, 1], conv2=[2, 3])
    wanted = shapes(shrink(model, images()))
    model.to(dtype)
    small = shrink(model, images().to(dtype))
    assert shapes(small) == wanted
    assert {value.dtype for value in small.state_dict().values()} == {dtype, torch.int64}
    assert {value.dtype for value in model.state_dict().values()} == {dtype, torch.int64}
    found, full = run(small.float(), images()), run(model.float(), images())
    assert float((found - full).abs().max()) < 0.05 * float(full.abs().max())


@needs_torch_2
def test_modes_and_frozen_parameters_stay():
    model = zero(trained(Net()), conv1=[0], fc1=[3])
    model.bn.eval()
    model.conv1.requires_grad_(False)
    small = shrink(model, images())
    assert small.training
    assert not small.bn.training
    assert model.training
    assert not model.bn.training
    frozen = {name for name, own in small.named_parameters() if not own.requires_grad}
    assert frozen == {"conv1.weight", "conv1.bias"}
    assert frozen == {name for name, own in model.named_parameters() if not own.requires_grad}
    with torch.inference_mode():
        small = shrink(model, images())
    assert not any(own.is_inference() for own in small.parameters())


@needs_torch_2
def test_wrapped_models(client):
    model = zero(Net(), fc1=range(4))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        small = shrink(wrapped, images())
        assert type(small) is Net
        assert small.fc1.out_features == 28


@needs_torch_2
def test_what_was_left_alone_is_in_the_log(caplog):
    with caplog.at_level("INFO", logger="nni_compression"):
        shrink(zero(Net(), fc1=range(4)), images())
        shrink(zero(Net(), fc2=[1]), images())
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "removed 4 filters of 1 layers" in caplog.records[0].message
    assert "fc2: 1 filters, as it is in the output of the model" in caplog.records[1].message


@needs_torch_2
def test_layers_of_other_types_are_reported():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    mask = torch.ones(8, 32)
    mask[:, 3] = 0
    masks = {"transformer.h.0.mlp.c_fc": mask, "transformer.h.0.mlp.c_proj": torch.ones(32, 8)}
    with pytest.raises(nc.InvalidArgumentError, match="no filter"):
        shrink(model, torch.zeros(1, 4, dtype=torch.long), masks=masks)


# Errors.


def unchanged(model, *args, match, error=nc.InvalidArgumentError, **options):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traits = [(type(m), m.training) for m in model.modules()]
    trained_before = [own.requires_grad for own in model.parameters()]
    with pytest.raises(error, match=match):
        shrink(model, *args, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [(type(m), m.training) for m in model.modules()] == traits
    assert [own.requires_grad for own in model.parameters()] == trained_before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@needs_torch_2
def test_bad_input_is_refused_and_the_model_stays_as_it_was(client):
    model = zero(Net(), conv1=[1])
    unchanged(model, torch.zeros(1, 2, 8, 8), match=r"does not run with \(float32 \[1, 2, 8, 8\]\)")
    unchanged(model, {"pictures": images()}, match="pictures")
    unchanged(model, None, match="example_inputs is None")
    unchanged(model, 3, match="example_inputs is of type int")
    unchanged(Net(), images(), match="no filter of the Net is removed")
    unchanged(model, images(), masks=[], match="masks is a list")
    unchanged(model, images(), masks={"conv9": 1}, match="'conv9'; the model has no such layer")
    unchanged(model, images(), masks={"fc2": "x"}, match="mask of 'fc2' is a str")
    unchanged(model, images(), masks={"fc2": torch.ones(3)}, match=r"shape \[3\].*\[10, 32\]")
    whole = {"fc1": torch.zeros(32, 128)}
    unchanged(model, images(), masks=whole, match="'fc1' removes all of its 32 filters")
    with pytest.raises(TypeError, match="model is a int"):
        shrink(3, images())

    pruner = FilterPruner([{"filters": [0], "op_names": ["conv1"]}], client=client)
    pruner(model)
    model(images())
    unchanged(model, images(), masks=whole, match="masks are given, and the Net is compressed")
    quantizer = NaiveQuantizer(NAIVE, client=client)
    quantizer(model)
    model(images())
    unchanged(model, images(), match="is quantized; shrink the model first")
    pruner.close()
    quantizer.close()


@needs_torch_2
def test_a_model_that_cannot_be_traced_is_refused():
    for between, match in (
        (Function(lambda x: x.detach()), "takes? part in the model's output"),
        (Function(lambda x: x.detach().requires_grad_()), "output"),
    ):
        model = zero(Between(between, last=nn.Linear(8, 3)), first=[1])
        small = shrink(model, torch.randn(2, 4))
        assert "does not take part" in reasons(small)["first"], match

    class NoGradient(Between):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    unchanged(
        zero(NoGradient(nn.ReLU()), first=[1]),
        torch.randn(2, 4),
        match="no output of the NoGradient has a gradient",
    )


@needs_torch_2
def test_a_model_of_random_outputs_is_refused_where_they_cannot_be_compared():
    model = zero(Between(Function(lambda x: x + torch.rand_like(x[:1, :1]))), first=[1])
    unchanged(model, torch.randn(2, 4), match="give different outputs")


@needs_torch_2
def test_a_layer_all_of_whose_weights_are_zero_is_left_alone():
    model = zero(Net(), fc1=range(32), conv1=[0])
    small = shrink(model, images())
    assert reasons(small) == {"fc1": "all of its weights are zero"}
    assert small.shrink_report.removed == {"conv1": (0,)} or small.shrink_report.carriers
    assert_equal(small, model, images())
