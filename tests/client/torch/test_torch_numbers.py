"""The adapter's weights against independent formulas, bit for bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
)
from nni_compression.torch.rounding import HALF_EVEN, Parameters
from torch_helpers import (
    AGP,
    COMPRESSED,
    DOREFA,
    NAIVE,
    QAT,
    Net,
    dense,
    images,
    lowest_k_mask,
    nni_level_mask,
    train_step,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
FLOAT32_SCHEMES = [
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
]


def layer_with(weight: torch.Tensor) -> nn.Module:
    """A module of one linear layer with this weight, of any shape."""
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(weight)
    return nn.ModuleDict({"layer": module})


def random_weight(generator: np.random.Generator, dtype=torch.float32) -> torch.Tensor:
    """Of a random shape and scale; sometimes with many equal magnitudes."""
    shape = tuple(generator.integers(1, 9, size=generator.integers(1, 5)))
    values = generator.normal(scale=10.0 ** generator.integers(-4, 3), size=shape)
    if generator.random() < 0.3:
        values = np.round(values / np.abs(values).max() * 4)
    return torch.from_numpy(values).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channel_axis", "group_size"), [(None, 0), (1, 0), (0, 3)])
def test_values_and_what_was_not_clamped_are_the_same_together(dtype, channel_axis, group_size):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e4, -1e4])
    slices = 1 if channel_axis is None else weight.numel() // 3 if group_size else 6
    scale = torch.linspace(0.05, 0.2, slices)
    zero_point = torch.arange(slices, dtype=torch.int32)
    if channel_axis is None:
        scale, zero_point = scale[0], zero_point[0]
    parameters = Parameters(
        *("affine", HALF_EVEN, 4, 0, 15, scale, zero_point, channel_axis, group_size)
    )
    values, inside = parameters.quantize_and_inside(weight)
    assert torch.equal(values.nan_to_num(99), parameters.quantize(weight).nan_to_num(99))
    assert torch.equal(inside, parameters.inside(weight))
    assert 0 < inside.sum() < inside.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(10))
def test_level_prunes_exactly_k_and_agrees_with_nni_where_no_tie_crosses(client, dtype, seed):
    generator = np.random.default_rng(seed)
    weight = random_weight(generator, dtype)
    sparsity = float(generator.choice([0.0, 1.0, generator.random(), generator.random()]))
    pruner = LevelPruner([{"sparsity": sparsity, "op_names": ["layer"]}], client=client)
    model = pruner(layer_with(weight.clone()))
    mask = pruner.masks["layer"]
    k = int(weight.numel() * sparsity)
    assert int((~mask).sum()) == k
    assert torch.equal(mask, lowest_k_mask(weight, k))
    ordered = weight.double().abs().reshape(-1).sort()[0]
    if 0 < k < weight.numel() and ordered[k - 1] != ordered[k]:
        assert torch.equal(mask, nni_level_mask(weight, sparsity))
    assert torch.equal(model["layer"].weight, weight * mask)


def test_of_equal_magnitudes_the_first_go(client):
    pruner = LevelPruner([{"sparsity": 0.1, "op_names": ["layer"]}], client=client)
    pruner(layer_with(torch.ones(10)))
    assert pruner.masks["layer"].tolist() == [False] + [True] * 9


def test_agp_prunes_by_its_table_while_the_model_trains(client):
    pruner = AGPPruner(AGP, client=client)
    model = pruner(layer_with(torch.arange(1.0, 101.0).reshape(10, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    zeros = []
    for epoch in range(13):
        pruner.update_epoch(epoch)
        loss = model["layer"](torch.ones(1, 10)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        zeros.append(int(model["layer"].weight.eq(0).sum()))
    assert zeros == [0, 23, 42, 56, 66, 72, 77, 79, 79, 80, 80, 80, 80]


@pytest.mark.parametrize("seed", range(5))
def test_agp_follows_its_formula_and_revives_nothing(client, seed):
    generator = np.random.default_rng(seed)
    start, frequency = int(generator.integers(0, 3)), int(generator.integers(1, 3))
    end = start + int(generator.integers(frequency + 1, 9))
    initial, final = sorted(generator.random(2))
    rule = {
        "initial_sparsity": initial,
        "final_sparsity": final,
        "start_epoch": start,
        "end_epoch": end,
        "frequency": frequency,
        "op_types": ["default"],
    }
    pruner = AGPPruner([rule], client=client)
    model = pruner(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    span = (end - start - 1) // frequency * frequency
    pruned = torch.zeros_like(dense(model.fc1), dtype=torch.bool)
    for epoch in range(end + 2):
        pruner.update_epoch(epoch)
        train_step(model, optimizer)
        mask = pruner.masks["fc1"]
        if epoch >= start and (epoch - start) % frequency == 0:
            target = final
            if epoch < end:
                target = final + (initial - final) * (1 - (epoch - start) / span) ** 3
            target = min(max(target, initial), final)
            assert int((~mask).sum()) == max(int(mask.numel() * target), int(pruned.sum()))
        else:
            assert torch.equal(~mask, pruned)
        assert not mask[pruned].any()
        pruned = ~mask


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize("scheme", FLOAT32_SCHEMES)
@pytest.mark.parametrize("seed", range(6))
def test_qat_is_bit_identical_to_torchs_fake_quantization(client, scheme, transfer, seed):
    generator = np.random.default_rng(seed)
    weight = random_weight(generator)
    bits = int(generator.integers(2, 9))
    rule = {"quant_bits": bits, "quant_scheme": scheme, "op_names": ["layer"]}
    quantizer = QATQuantizer([rule], client=client, transfer=transfer)
    model = quantizer(layer_with(weight.clone()))
    quantized = model["layer"].weight
    found = quantizer.calibration["layer"]
    low, high, scale, zero_point = expected_parameters(weight, bits, scheme)
    assert torch.equal(found["weight_scale"], scale)
    assert torch.equal(found["weight_zero_point"], zero_point)
    reference = weight.clone().requires_grad_()
    if scheme.startswith("per_channel"):
        expected = torch.fake_quantize_per_channel_affine(
            reference, scale, zero_point, 0, low, high
        )
    else:
        expected = torch.fake_quantize_per_tensor_affine(
            reference, scale.item(), int(zero_point), low, high
        )
    assert torch.equal(quantized, expected)
    slope = torch.randn(weight.shape)
    (quantized * slope).sum().backward()
    (expected * slope).sum().backward()
    assert torch.equal(dense(model["layer"]).grad, reference.grad)


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize("scheme", ["per_channel_affine", "per_channel_symmetric"])
@pytest.mark.parametrize(("shape", "group_size"), [((6, 20), 5), ((4, 3, 2, 2), 6)])
def test_groups_are_torchs_fake_quantization_of_each(client, shape, group_size, scheme, transfer):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    rule = {"quant_bits": 4, "quant_scheme": scheme, "group_size": group_size}
    quantizer = QATQuantizer([{**rule, "op_names": ["layer"]}], client=client, transfer=transfer)
    model = quantizer(layer_with(weight.clone()))
    quantized = model["layer"].weight
    found = quantizer.calibration["layer"]
    assert found["group_size"] == group_size
    reference = weight.clone().requires_grad_()
    low, high, scale, zero_point = expected_parameters(
        weight.reshape(-1, group_size), 4, "per_channel_" + scheme.rsplit("_", 1)[1]
    )
    assert torch.equal(found["weight_scale"], scale)
    assert torch.equal(found["weight_zero_point"], zero_point)
    expected = torch.fake_quantize_per_channel_affine(
        reference.reshape(-1, group_size), scale, zero_point, 0, low, high
    ).reshape(shape)
    assert torch.equal(quantized, expected)
    slope = torch.randn(shape)
    (quantized * slope).sum().backward()
    (expected * slope).sum().backward()
    assert torch.equal(dense(model["layer"]).grad, reference.grad)


def expected_parameters(weight, bits, scheme):
    """code_min, code_max, scale, zero_point by the formulas, in float32."""
    rows = weight.reshape(weight.shape[0], -1) if "channel" in scheme else weight.reshape(1, -1)
    low = torch.clamp(rows.min(dim=1)[0], max=0)
    high = torch.clamp(rows.max(dim=1)[0], min=0)
    if scheme.endswith("symmetric"):
        top = 2 ** (bits - 1) - 1
        scale = torch.maximum(-low, high) / top
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        code_min, code_max = -top, top
    else:
        code_min, code_max = 0, 2**bits - 1
        scale = (high - low) / code_max
        scale = torch.where(high == low, torch.ones_like(scale), scale)
        zero_point = torch.round(-low / scale).clamp(0, code_max).to(torch.int32)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    if "channel" in scheme:
        return code_min, code_max, scale, zero_point
    return code_min, code_max, scale[0], zero_point[0]


def dorefa_codes(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Real numbers that round to DoReFa's codes, in double."""
    squashed = torch.tanh(weight.double())
    return (squashed / (2 * squashed.abs().max()) + 0.5) * (2**bits - 1)


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize("seed", range(10))
def test_dorefa_is_within_one_code_of_its_formula(client, transfer, seed):
    generator = np.random.default_rng(seed)
    weight = random_weight(generator)
    bits = int(generator.integers(1, 9))
    rule = {"quant_bits": bits, "op_names": ["layer"]}
    model = DoReFaQuantizer([rule], client=client, transfer=transfer)(layer_with(weight.clone()))
    levels = 2**bits - 1
    codes = (model["layer"].weight.double() + 1) / 2 * levels
    assert (codes - codes.round()).abs().max() < 1e-3
    assert (codes.round() - dorefa_codes(weight, bits)).abs().max() <= 0.5 + 1e-3


def test_naive_truncates_to_eight_bits_with_a_scale_that_only_grows(client):
    quantizer = NaiveQuantizer([{"op_names": ["layer"]}], client=client)
    model = quantizer(layer_with(torch.tensor([1.0, -0.6, 0.3, 0.0])))
    scale = np.float32(1) / np.float32(127)
    expected = np.array([127, -76, 38, 0], dtype=np.float32) * scale
    assert model["layer"].weight.tolist() == expected.tolist()
    with torch.no_grad():
        dense(model["layer"]).copy_(torch.tensor([0.5, -0.6, 0.3, 0.0]))
    expected = np.trunc(np.array([0.5, -0.6, 0.3, 0], dtype=np.float32) / scale) * scale
    assert model["layer"].weight.tolist() == expected.tolist()


QUANTIZERS = [(NaiveQuantizer, NAIVE[0]), (DoReFaQuantizer, DOREFA[0])]
QUANTIZERS += [
    (QATQuantizer, {**QAT[0], "quant_bits": bits, "quant_scheme": scheme})
    for bits in (2, 8, 16)
    for scheme in FLOAT32_SCHEMES
]
IN_GROUPS = {**QAT[0], "quant_bits": 4, "quant_scheme": "per_channel_affine", "group_size": 4}
QUANTIZERS += [(QATQuantizer, IN_GROUPS)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("make", "rule"), QUANTIZERS)
def test_both_transfers_give_the_same_bits_throughout_training(client, make, rule, dtype):
    models, quantizers = [], []
    for transfer in ("weights", "ranges"):
        torch.manual_seed(3)
        models.append(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype))
        quantizers.append(make([rule], client=client, transfer=transfer))
        quantizers[-1](models[-1])
    generator = np.random.default_rng(0)
    for _ in range(5):
        first, second = models
        for index in (0, 2):
            close = torch.allclose if make is DoReFaQuantizer else torch.equal
            arguments = {"atol": 2 / 15 + 1e-2} if make is DoReFaQuantizer else {}
            assert close(first[index].weight, second[index].weight, **arguments)
        for index in (0, 2):
            shape = tuple(dense(first[index]).shape)
            change = torch.from_numpy(generator.normal(size=shape)).to(dtype)
            with torch.no_grad():
                for model in models:
                    dense(model[index]).add_(change, alpha=0.1)
        for quantizer in quantizers:
            quantizer.step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("make", "rule"), QUANTIZERS)
def test_both_transfers_saturate_at_the_largest_number_of_the_type(client, make, rule, dtype):
    top = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    weight = torch.tensor([[-0.61, 1, 0, 0.5], [1, -1, 0.25, -0.61]], dtype=torch.float64) * top
    answers = []
    for transfer in ("weights", "ranges"):
        model = layer_with(weight.to(dtype))
        quantizer = make([rule], client=client, transfer=transfer)
        answers.append(quantizer(model)["layer"].weight.detach().clone())
    if make is not DoReFaQuantizer:
        assert torch.equal(*answers)
    assert all(torch.isfinite(answer).all() for answer in answers)


@pytest.mark.parametrize("make", [NaiveQuantizer, QATQuantizer, DoReFaQuantizer])
@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_a_weight_of_zeros_stays_zero_and_trains(client, make, transfer):
    model = make([{"op_names": ["layer"]}], client=client, transfer=transfer)(
        layer_with(torch.zeros(3, 4))
    )
    assert torch.equal(model["layer"].weight, torch.zeros(3, 4))
    model["layer"](torch.ones(1, 4)).sum().backward()
    assert torch.equal(dense(model["layer"]).grad, torch.ones(3, 4))
    assert not torch.signbit(model["layer"].weight).any()
    with torch.no_grad():
        dense(model["layer"]).add_(torch.linspace(-1, 1, 12).reshape(3, 4))
    assert (model["layer"].weight - dense(model["layer"])).abs().max() < 0.35


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_are_widened_quantized_and_rounded_back(client, dtype):
    weight = random_weight(np.random.default_rng(4), dtype)
    model = QATQuantizer([{"op_names": ["layer"]}], client=client)(layer_with(weight.clone()))
    _, _, scale, zero_point = expected_parameters(weight.float(), 8, "per_tensor_affine")
    expected = torch.fake_quantize_per_tensor_affine(
        weight.float(), scale.item(), int(zero_point), 0, 255
    )
    assert torch.equal(model["layer"].weight, expected.to(dtype))


def test_the_optimizer_moves_float_weights_by_less_than_a_code(client):
    quantizer = QATQuantizer([{**QAT[0], "quant_bits": 2}], client=client)
    model = quantizer(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: dense(getattr(model, name)).detach().clone() for name in COMPRESSED}
    train_step(model, optimizer)
    for name in COMPRESSED:
        assert not torch.equal(dense(getattr(model, name)), before[name])
        assert getattr(model, name).weight.unique().numel() <= 4
    model(images())


class Conv1D(nn.Module):
    """A linear layer whose weight is [inputs, outputs], as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 6))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value @ self.weight


Conv1D.__module__ = "transformers.pytorch_utils"


class SubclassedConv1D(Conv1D):
    """As somebody may have one."""


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize(
    ("module", "axis"),
    [
        (nn.ConvTranspose1d(4, 6, 3), 1),
        (nn.ConvTranspose2d(4, 6, 3), 1),
        (nn.ConvTranspose3d(4, 6, 2), 1),
        (Conv1D(), 1),
        (SubclassedConv1D(), 1),
        (nn.Conv2d(4, 6, 3), 0),
        (nn.Linear(4, 6), 0),
        (nn.Bilinear(2, 3, 6), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_channels_are_those_of_the_outputs(client, module, axis, transfer):
    model = copy.deepcopy(module)
    rule = [{"quant_scheme": "per_channel_affine"}]
    quantizer = QATQuantizer(rule, client=client, transfer=transfer)
    quantizer(model)
    found = quantizer.calibration["."]
    assert found["channel_axis"] == axis
    assert found["weight_scale"].shape == (6,)
    wanted = torch.fake_quantize_per_channel_affine(
        module.weight, found["weight_scale"], found["weight_zero_point"], axis, 0, 255
    )
    assert torch.equal(model.weight, wanted)
    quantizer.close()


def test_transformers_own_conv1d_has_its_outputs_last(client):
    utilities = pytest.importorskip("transformers.pytorch_utils")
    model = utilities.Conv1D(6, 12)
    quantizer = QATQuantizer([{"quant_scheme": "per_channel_symmetric"}], client=client)
    quantizer(model)
    assert quantizer.calibration["."]["channel_axis"] == 1
    assert quantizer.calibration["."]["weight_scale"].shape == (6,)
