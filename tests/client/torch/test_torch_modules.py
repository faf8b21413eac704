"""What binding does to a model, and what it must not do."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nni_compression.torch import (
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    unwrap,
)
from nni_compression.torch.modules import CompressedModule
from torch_helpers import (
    COMPRESSED,
    DOREFA,
    LEVEL,
    NAIVE,
    QAT,
    Net,
    calls,
    dense,
    images,
    train_step,
)

SOURCE = Path(nc.__file__).resolve().parents[1]
COMPRESSORS = [
    (LevelPruner, LEVEL),
    (QATQuantizer, QAT),
    (NaiveQuantizer, NAIVE),
    (DoReFaQuantizer, DOREFA),
]
everywhere = pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)


def load(content: bytes):
    """torch.load of a whole model."""
    arguments = {"weights_only": False} if torch.__version__ >= "2" else {}
    return torch.load(io.BytesIO(content), **arguments)


def save(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@everywhere
def test_the_dense_weight_stays_the_same_untouched_parameter(client, make, config_list):
    model = Net()
    parameters = dict(model.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    make(config_list, client=client)(model)
    model(images()).sum().backward()
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in parameters.items()
    }
    for name in COMPRESSED:
        assert dense(getattr(model, name)) is parameters[f"{name}.weight"]
        assert not torch.equal(getattr(model, name).weight, values[f"{name}.weight"])
    assert all(torch.equal(parameters[name], value) for name, value in values.items())


@everywhere
def test_masks_and_quantized_weights_take_effect_in_every_forward(client, make, config_list):
    model = make(config_list, client=client)(Net()).eval()
    plain = Net().eval()
    dense_output = plain(images())
    plain.load_state_dict({**model.state_dict(), **effective(model)}, strict=True)
    for _ in range(3):
        assert torch.equal(model(images()), plain(images()))
        assert not torch.equal(model(images()), dense_output)


def effective(model):
    return {f"{name}.weight": getattr(model, name).weight.detach() for name in COMPRESSED}


@everywhere
def test_state_dict_keys_stay_those_of_the_plain_model(client, make, config_list):
    model = make(config_list, client=client)(Net())
    expected = Net().state_dict()
    for _ in range(2):
        state = model.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        model(images())
        model.bn.load_state_dict(Net().bn.state_dict())


@everywhere
def test_a_checkpoint_loads_strictly_before_and_after_binding(client, make, config_list):
    checkpoint = Net(seed=5).state_dict()
    before = Net()
    before.load_state_dict(checkpoint, strict=True)
    make(config_list, client=client)(before)
    after = make(config_list, client=client)(Net())
    after.load_state_dict(checkpoint, strict=True)
    assert torch.equal(before.eval()(images()), after.eval()(images()))
    other = make(config_list, client=client)(Net()).eval()
    assert not torch.equal(after(images()), other(images()))


def test_a_checkpoint_loaded_after_the_mask_was_made_is_masked_with_it(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    mask = pruner.masks["fc1"]
    model.load_state_dict(Net(seed=5).state_dict(), strict=True)
    assert torch.equal(model.fc1.weight, Net(seed=5).fc1.weight * mask)


def test_a_checkpoint_of_a_compressed_model_loads_into_a_plain_one(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    model(images())
    Net(seed=3).load_state_dict(torch.load(io.BytesIO(save(model.state_dict()))), strict=True)


@everywhere
def test_deepcopy_pickle_and_torch_save_give_models_that_compute_the_same(
    client, make, config_list
):
    compressor = make(config_list, client=client)
    model = compressor(Net()).eval()
    output = model(images())
    made = calls(compressor)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        pickle.loads(pickle.dumps(model, protocol=0)),
        load(save(model)),
        copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(model)))),
    ]
    for each in copies:
        assert torch.equal(each(images()), output)
        assert list(each.state_dict()) == list(model.state_dict())
        each(images()).sum().backward()
    assert calls(compressor) == made


def test_a_copy_is_independent_of_the_original(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net()).eval()
    output = model(images())
    other = copy.deepcopy(model)
    with torch.no_grad():
        dense(other.fc1).zero_()
    assert torch.equal(model(images()), output)
    pruner.unwrap()
    assert isinstance(other.conv1, CompressedModule)
    assert other.conv1.weight.eq(0).sum() == 36


def test_a_model_copied_before_its_first_forward_is_compressed_too(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    other = copy.deepcopy(model)
    assert other.fc1.weight.eq(0).sum() == 2048
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_a_copy_masks_its_own_weights_when_they_change(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    other = copy.deepcopy(model)
    with torch.no_grad():
        dense(other.fc1).fill_(3.0)
    assert torch.equal(other.fc1.weight, 3.0 * other.fc1.weight_mask)
    assert other.fc1.weight.eq(0).sum() == 2048


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_a_copy_rounds_its_own_weights_with_the_parameters_that_were_in_force(client, transfer):
    quantizer = QATQuantizer(QAT, client=client, transfer=transfer)
    model = quantizer(Net())
    other = copy.deepcopy(model)
    scale = quantizer.calibration["fc1"]["weight_scale"].item()
    zero_point = quantizer.calibration["fc1"]["weight_zero_point"].item()
    with torch.no_grad():
        dense(other.fc1).mul_(0.5)
    expected = torch.fake_quantize_per_tensor_affine(dense(other.fc1), scale, zero_point, 0, 255)
    assert torch.equal(other.fc1.weight, expected)


@everywhere
def test_a_copy_can_be_unwrapped_alone(client, make, config_list):
    model = make(config_list, client=client)(Net()).eval()
    output = model(images())
    other = unwrap(copy.deepcopy(model))
    assert type(other.conv1) is nn.Conv2d
    assert torch.equal(other(images()), output)
    with pytest.raises(RuntimeError, match="bound to a session"):
        unwrap(model)


def test_a_copy_can_be_bound_again(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    other = copy.deepcopy(model)
    LevelPruner([{"sparsity": 0.25, "op_types": ["Linear"]}], client=client)(other)
    assert other.fc2.weight.eq(0).sum() == 80
    assert model.fc2.weight.eq(0).sum() == 160


def test_a_saved_model_loads_in_another_process(client, tmp_path):
    model = QATQuantizer(QAT, client=client)(nn.Sequential(nn.Linear(8, 4)))
    inputs = torch.randn(2, 8)
    torch.save({"model": model, "inputs": inputs, "output": model(inputs)}, tmp_path / "model.pt")
    program = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
import torch
arguments = {{"weights_only": False}} if torch.__version__ >= "2" else {{}}
saved = torch.load({str(tmp_path / "model.pt")!r}, **arguments)
assert torch.equal(saved["model"](saved["inputs"]), saved["output"])
print(saved["model"])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "CompressedLinear(in_features=8, out_features=4, bias=True)" in result.stdout


def test_modules_stay_instances_of_their_class_and_have_readable_names(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.conv1, CompressedModule)
    assert type(model.conv1) is type(model.conv2)
    assert type(model.bn) is nn.BatchNorm2d
    assert repr(model.conv1).startswith("CompressedConv2d(1, 8, kernel_size=(3, 3)")


def test_masks_are_neither_saved_nor_sent_between_ranks_as_buffers_are(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    model(images())
    assert model.conv1.weight_mask.dtype is torch.bool
    assert [name for name, _ in model.named_buffers()] == [
        name for name, _ in Net().named_buffers()
    ]


def test_a_pickled_mask_takes_one_bit_a_weight(client):
    model = LevelPruner(LEVEL, client=client)(nn.Sequential(nn.Linear(256, 256, bias=False)))
    weight = 4 * 256 * 256
    assert len(pickle.dumps(model)) < weight + 256 * 256 / 8 + 4000


@everywhere
def test_unwrap_gives_the_plain_model_back_with_the_same_parameters(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net()).eval()
    parameters = [id(p) for p in model.parameters()]
    buffers = [name for name, _ in Net().named_buffers()]
    output = model(images())
    assert compressor.unwrap() is model
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]
    assert [id(p) for p in model.parameters()] == parameters
    assert [name for name, _ in model.named_buffers()] == buffers
    assert set(vars(model.conv1)) == set(vars(Net().conv1))
    assert torch.equal(model(images()), output)
    model(images()).sum().backward()


def test_unwrap_right_after_binding_asks_for_the_answers_first(client):
    model = Net()
    LevelPruner(LEVEL, client=client)(model)
    pruner = LevelPruner(LEVEL, client=client)
    other = pruner(Net())
    pruner.unwrap()
    assert other.fc1.weight.eq(0).sum() == 2048


def test_an_optimizer_made_before_or_after_binding_trains_the_same(client):
    losses = []
    for before in (True, False):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters()) if before else None
        LevelPruner(LEVEL, client=client)(model)
        optimizer = optimizer or torch.optim.Adam(model.parameters())
        losses.append([train_step(model, optimizer, seed) for seed in range(4)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][3]


def test_a_pruned_weight_gets_no_gradient_and_the_others_get_all_of_it(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    plain = copy.deepcopy(model)
    unwrap(plain)
    model(images()).square().sum().backward()
    plain(images()).square().sum().backward()
    for name in COMPRESSED:
        gradient = dense(getattr(model, name)).grad
        mask = pruner.masks[name]
        assert torch.equal(gradient, getattr(plain, name).weight.grad * mask)
        assert gradient.count_nonzero() > 0


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[1:])
def test_the_gradient_goes_straight_through_a_quantizer(client, make, config_list, transfer):
    model = make(config_list, client=client, transfer=transfer)(Net())
    plain = unwrap(copy.deepcopy(model))
    model(images()).square().sum().backward()
    plain(images()).square().sum().backward()
    for name in COMPRESSED:
        expected = getattr(plain, name).weight.grad
        assert torch.equal(dense(getattr(model, name)).grad, expected)


def test_the_qat_gradient_is_zero_outside_the_clamping_range(client):
    quantizer = QATQuantizer(QAT, client=client)
    model = quantizer(nn.Sequential(nn.Linear(4, 1, bias=False)))
    with torch.no_grad():
        dense(model[0]).copy_(torch.tensor([[-1.0, 0.5, 0.25, 1.0]]))
    model(torch.ones(1, 4))
    quantizer.close()  # the range stays what it was when the weights move on
    with torch.no_grad():
        dense(model[0]).copy_(torch.tensor([[-3.0, 0.5, 2.0, 1.0]]))
    model(torch.ones(1, 4)).sum().backward()
    assert dense(model[0]).grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize("pruner_first", [True, False])
@pytest.mark.parametrize("unwrap_pruner_first", [True, False])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[1:])
def test_a_quantizer_and_a_pruner_on_one_model_quantize_first_then_mask(
    client, make, config_list, transfer, pruner_first, unwrap_pruner_first
):
    model = Net().eval()
    pruner = LevelPruner(LEVEL, client=client)
    quantizer = make(config_list, client=client, transfer=transfer)
    for compressor in (pruner, quantizer) if pruner_first else (quantizer, pruner):
        compressor(model)
    quantized = make(config_list, client=client)(Net())
    for name in COMPRESSED:
        mask = pruner.masks[name]
        expected = torch.where(mask, getattr(quantized, name).weight, torch.zeros(()))
        assert torch.equal(getattr(model, name).weight, expected)
    output = model(images())
    other = copy.deepcopy(model)
    for compressor in (pruner, quantizer) if unwrap_pruner_first else (quantizer, pruner):
        compressor.unwrap()
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]
    assert torch.equal(model(images()), output)
    assert torch.equal(other(images()), output)


@everywhere
def test_a_tied_weight_is_sent_once_and_compressed_everywhere(client, make, config_list):
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(4, 6))
    model[1].weight = model[0].weight
    compressor = make(config_list, client=client)
    compressor(model)
    assert list(compressor.plan.layers) == ["0", "2"]
    assert torch.equal(model[0].weight, model[1].weight)
    assert not torch.equal(model[1].weight, dense(model[1]))
    assert dense(model[0]) is dense(model[1])
    model[1](model[0](torch.tensor([1, 2]))).square().sum().backward()
    other = copy.deepcopy(model)
    assert dense(other[0]) is dense(other[1])
    assert torch.equal(other[0].weight, other[1].weight)
    expected = model[0].weight.detach().clone()
    compressor.unwrap()
    assert torch.equal(model[1].weight, expected)
    assert model[0].weight is model[1].weight


def test_a_rule_for_any_name_of_a_tied_weight_matches(client):
    model = nn.ModuleDict({"encode": nn.Embedding(6, 4), "decode": nn.Linear(4, 6, bias=False)})
    model["decode"].weight = model["encode"].weight
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["decode"]}], client=client)
    pruner(model)
    assert pruner.plan.compressed == ("encode",)
    assert model["decode"].weight.eq(0).sum() == 12


def test_a_module_used_under_two_names_is_one_layer(client):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["2"]}], client=client)
    pruner(model)
    assert list(pruner.plan.layers) == ["0"]
    assert shared.weight.eq(0).sum() == 8
    assert pruner.unwrap()[2] is shared


@everywhere
def test_a_model_that_is_one_bare_layer_is_compressed(client, make, config_list):
    layer = nn.Linear(6, 4)
    compressor = make(config_list, client=client)
    compressor(layer)
    assert list(compressor.plan.layers) == ["."]
    assert not torch.equal(layer.weight, dense(layer))
    assert torch.equal(compressor.compressed_state_dict()["weight"], layer.weight)
    expected = layer.weight.detach().clone()
    assert torch.equal(compressor.unwrap().weight, expected)


LAYERS = [
    (nn.Conv1d(4, 6, 3), torch.randn(2, 4, 8)),
    (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3), torch.randn(2, 4, 8)),
    (nn.ConvTranspose2d(4, 6, 3), torch.randn(2, 4, 8, 8)),
    (nn.ConvTranspose3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4)),
    (nn.Linear(5, 3), torch.randn(2, 5)),
    (nn.PReLU(6), torch.randn(2, 6)),
    (nn.Embedding(9, 4), torch.tensor([1, 8])),
    (nn.Embedding(9, 4, sparse=True), torch.tensor([1, 8, 8])),
    (nn.EmbeddingBag(9, 4), torch.tensor([[1, 8]])),
    (nn.EmbeddingBag(9, 4, sparse=True, mode="sum"), torch.tensor([[1, 8]])),
]


@everywhere
@pytest.mark.parametrize(("layer", "inputs"), LAYERS, ids=lambda x: type(x).__name__)
def test_every_default_layer_computes_with_its_compressed_weight(
    client, make, config_list, layer, inputs
):
    layer = copy.deepcopy(layer)
    if isinstance(layer, nn.PReLU):
        nn.init.uniform_(layer.weight, -1, 1)
    model = nn.Sequential(layer)
    make(config_list, client=client)(model)
    plain = unwrap(copy.deepcopy(model))
    output = model(inputs)
    assert torch.equal(output, plain(inputs))
    output.square().sum().backward()
    plain(inputs).square().sum().backward()
    gradient, expected = dense(model[0]).grad, plain[0].weight.grad
    assert gradient.is_sparse == expected.is_sparse
    if make is LevelPruner:
        expected = expected.to_dense() * model[0].weight_mask
    assert torch.equal(gradient.to_dense(), expected.to_dense())


def test_a_bilinear_layer_is_compressed(client):
    layer = nn.Bilinear(3, 4, 2)
    model = nn.ModuleList([layer])
    LevelPruner(LEVEL, client=client)(model)
    first, second = torch.randn(2, 3), torch.randn(2, 4)
    output = layer(first, second)
    assert layer.weight.eq(0).sum() == 12
    weight = dense(layer) * layer.weight_mask
    assert torch.equal(output, F.bilinear(first, second, weight, layer.bias))


def test_attention_reads_its_output_projection_through_the_mask(client):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention})
    config_list = [{"sparsity": 0.5, "op_names": ["attention.out_proj"]}]
    pruner = LevelPruner(config_list, client=client)
    pruner(model)
    plain = unwrap(copy.deepcopy(attention))
    inputs = torch.randn(2, 5, 8)
    assert plain.out_proj.weight.eq(0).sum() == 32
    for mode in (attention.train, attention.eval):
        mode()
        plain.train(attention.training)
        assert torch.equal(attention(inputs, inputs, inputs)[0], plain(inputs, inputs, inputs)[0])
    with torch.no_grad():
        assert torch.equal(attention(inputs, inputs, inputs)[0], plain(inputs, inputs, inputs)[0])


@everywhere
def test_the_fast_path_of_a_transformer_layer_in_evaluation_is_compressed(
    client, make, config_list
):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    config_list = [
        {**rule, "op_types": ["Linear", "NonDynamicallyQuantizableLinear"]} for rule in config_list
    ]
    make(config_list, client=client)(layer)
    plain = unwrap(copy.deepcopy(layer)).eval()
    inputs = torch.randn(2, 5, 16)
    layer.eval()
    with torch.no_grad():
        fast = layer(inputs)
        assert torch.equal(fast, plain(inputs))
    assert torch.allclose(fast, layer.train()(inputs), atol=1e-5)


def test_a_weight_that_is_read_elsewhere_is_compressed_there_too(client):
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(self.embed(tokens), self.embed.weight)

    model = LevelPruner(LEVEL, client=client)(Decoder())
    plain = unwrap(copy.deepcopy(model))
    assert torch.equal(model(torch.tensor([1, 5])), plain(torch.tensor([1, 5])))
    assert plain.embed.weight.eq(0).sum() == 12


def test_a_submodule_called_directly_is_compressed(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    inputs = torch.randn(3, 32)
    expected = F.linear(inputs, model.fc2.weight, model.fc2.bias)
    assert torch.equal(model.fc2(inputs), expected)
    assert model.fc2.weight.eq(0).sum() == 160


@everywhere
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_float_dtype_are_compressed(client, make, config_list, dtype):
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8)).to(dtype)
    compressor = make(config_list, client=client)
    compressor(model)
    assert model[0].weight.dtype is dtype
    assert compressor.plan.compressed == ("0", "1")
    wide = copy.deepcopy(model).float()
    for narrow_layer, wide_layer in zip(model, wide):
        assert not torch.equal(narrow_layer.weight, dense(narrow_layer))
        assert torch.allclose(narrow_layer.weight.float(), wide_layer.weight, atol=0.02)
    if make is LevelPruner:
        assert model[0].weight.eq(0).sum() == 64


@everywhere
@pytest.mark.parametrize("forward_first", [True, False])
@pytest.mark.parametrize(
    ("bound", "later"),
    [
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
)
def test_a_model_may_change_its_dtype_after_binding(
    client, make, config_list, bound, later, forward_first
):
    model = nn.Sequential(nn.Linear(16, 8)).to(bound)
    compressor = make(config_list, client=client)
    compressor(model)
    if forward_first:
        assert not torch.equal(model[0].weight, dense(model[0]))
    model.to(later)
    assert model[0].weight.dtype is later
    if make is LevelPruner:
        assert model[0].weight.eq(0).sum() == 64
        assert torch.equal(model[0].weight, dense(model[0]) * compressor.masks["0"])
    else:
        with torch.no_grad():
            dense(model[0]).mul_(1.5)
        plain = nn.Sequential(nn.Linear(16, 8)).to(later)
        plain[0].load_state_dict(model[0].state_dict())
        fresh = make(config_list, client=client)(plain)
        assert torch.equal(model[0].weight, fresh[0].weight)


def test_autocast_uses_the_masked_weight(client):
    model = LevelPruner(LEVEL, client=client)(Net()).eval()
    plain = unwrap(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images())
        assert torch.equal(output, plain(images()))
        output.float().sum().backward()
    assert dense(model.fc1).grad is not None


@everywhere
def test_answers_that_came_in_inference_mode_can_be_trained_with(client, make, config_list):
    model = make(config_list, client=client)(Net())
    with torch.inference_mode():
        model(images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer)
    assert dense(model.fc1).grad.count_nonzero() > 0


@everywhere
def test_evaluation_mode_computes_the_same_weights(client, make, config_list):
    model = make(config_list, client=client)(Net())
    before = model.fc1.weight.detach().clone()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.fc1.weight, before)


@everywhere
def test_frozen_weights_are_compressed_and_get_no_gradient(client, make, config_list):
    model = Net()
    for parameter in model.conv1.parameters():
        parameter.requires_grad_(False)
    make(config_list, client=client)(model)
    model(images()).sum().backward()
    assert dense(model.conv1).grad is None
    assert not torch.equal(model.conv1.weight, dense(model.conv1))
    assert dense(model.fc1).grad is not None


def test_a_new_parameter_put_into_a_compressed_module_is_compressed(client):
    quantizer = QATQuantizer(QAT, client=client)
    model = quantizer(Net())
    model(images())
    weight = nn.Parameter(torch.randn(10, 32))
    model.fc2.weight = weight
    assert dense(model.fc2) is weight
    scale = (weight.max() - weight.min()) / 255
    assert (model.fc2.weight - weight).abs().max() <= scale
    with pytest.raises(TypeError):
        model.fc2.weight = torch.zeros(10, 32)


def test_a_failure_while_reading_a_weight_never_gives_out_the_dense_one(client):
    model = LevelPruner(LEVEL, client=client)(Net())
    del model.fc1.__dict__["_weight_state"]
    with pytest.raises(RuntimeError, match="cannot be read"):
        _ = model.fc1.weight


@everywhere
def test_the_replicas_of_dataparallel_compute_with_compressed_weights(client, make, config_list):
    model = make(config_list, client=client)(nn.Sequential(nn.Linear(8, 4)))
    replica = model[0]._replicate_for_data_parallel()
    copied = dense(model[0]).detach().clone().requires_grad_()
    replica.weight = copied  # what torch.nn.parallel.replicate does
    replica.bias = model[0].bias.detach()
    inputs = torch.randn(2, 8)
    assert torch.equal(replica(inputs), model(inputs))
    replica(inputs).sum().backward()
    assert copied.grad.count_nonzero() > 0


def test_dataparallel_on_the_cpu_trains(client):
    model = nn.DataParallel(LevelPruner(LEVEL, client=client)(Net()))
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.module.fc1.weight.eq(0).sum() == 2048


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")
def test_functional_calls_compress_the_parameters_they_are_given(client):
    model = QATQuantizer(QAT, client=client)(nn.Sequential(nn.Linear(8, 4, bias=False)))
    inputs = torch.randn(2, 8)
    doubled = {"0.weight": dense(model[0]).detach() * 2}
    output = torch.func.functional_call(model, doubled, (inputs,))
    assert torch.allclose(output, 2 * model(inputs), atol=1e-6)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.compile came with PyTorch 2.0")
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[:2])
def test_a_compiled_model_follows_the_masks_and_the_weights(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net()).eval()
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(3):
        assert torch.allclose(compiled(images()), model(images()), atol=1e-5)
        with torch.no_grad():
            dense(model.fc1).mul_(1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@everywhere
def test_cuda_weights_get_their_answers_on_their_device(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net().cuda()).eval()
    host = make(config_list, client=client)(Net()).eval()
    for name in COMPRESSED:
        weight = getattr(model, name).weight
        assert weight.is_cuda
        assert torch.allclose(weight.cpu(), getattr(host, name).weight, atol=1e-6)
    model.cpu()
    assert torch.equal(model(images()), host(images()))
    model.cuda()
    inputs = images().cuda()
    model(inputs).sum().backward()
    assert dense(model.fc1).grad.is_cuda
