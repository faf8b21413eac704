"""Outputs and inputs of PyTorch modules are quantized in the forward pass."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
import servers
from nni_compression.torch import LevelPruner, QATQuantizer, quantize
from torch_helpers import Net, calls, images, train_step

OUTPUTS = [{"quant_types": ["output"], "op_types": ["default"]}]
ALL = [{"quant_types": ["weight", "output", "input"], "op_types": ["default"]}]
F = np.float32


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def inputs(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))


def parameters(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Scale and zero point of a range, as the formula has them."""
    low, high = min(F(0), F(low)), max(F(0), F(high))
    scale = (high - low) / F(2**bits - 1)
    return float(scale), int(np.clip(np.rint(-low / scale), 0, 2**bits - 1))


def test_outputs_pass_unchanged_until_the_first_step_then_they_are_torchs_fake_quantized(client):
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    expected = plain(inputs(1))
    assert torch.equal(model(inputs(1)), expected)
    quantizer.step()
    scale, zero_point = parameters(expected.min().item(), expected.max().item())
    x = inputs(2, scale=3)
    wanted = torch.fake_quantize_per_tensor_affine(plain(x), scale, zero_point, 0, 255)
    assert torch.equal(model(x), wanted)
    # quant_types does not name weights.
    assert torch.equal(model.weight, plain.weight)


def test_inputs_are_quantized_before_the_layer_and_outputs_after_it(client):
    plain, model = linear(), linear()
    rule = [{"quant_types": ["output", "input"], "quant_bits": {"output": 8, "input": 4}}]
    quantizer = QATQuantizer(rule, client=client)
    quantizer(model)
    x = inputs(1)
    model(x)
    quantizer.step()
    scale, zero_point = parameters(x.min().item(), x.max().item(), bits=4)
    inner = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 15)
    y = plain(x)
    scale, zero_point = parameters(y.min().item(), y.max().item())
    model.eval()
    wanted = torch.fake_quantize_per_tensor_affine(plain(inner), scale, zero_point, 0, 255)
    assert torch.equal(model(x), wanted)
    found = quantizer.calibration["."]
    assert (found["input_bits"], found["output_bits"]) == (4, 8)
    assert float(found["output_scale"]) == scale


def test_each_type_has_its_own_scheme(client):
    plain, model = linear(), linear()
    schemes = {
        "weight": "per_channel_symmetric",
        "input": "per_tensor_affine",
        "output": "per_tensor_symmetric",
    }
    quantizer = QATQuantizer([{**ALL[0], "quant_scheme": schemes}], client=client)
    quantizer(model)
    x = inputs(1)
    model(x)
    quantizer.step()
    model.eval()
    scale, zero_point = parameters(x.min().item(), x.max().item())
    inner = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    scales = plain.weight.detach().abs().amax(1) / 127
    zeros = torch.zeros(4, dtype=torch.int32)
    weight = torch.fake_quantize_per_channel_affine(plain.weight, scales, zeros, 0, -127, 127)
    outputs = nn.functional.linear(x, weight, plain.bias)
    scale = float(F(outputs.abs().max().item()) / F(127))
    wanted = torch.fake_quantize_per_tensor_affine(
        nn.functional.linear(inner, weight, plain.bias), scale, 0, -127, 127
    )
    assert torch.equal(model(x), wanted)
    assert quantizer.plan.layers["."].options["quant_scheme"] == schemes


def test_a_target_chooses_the_schemes_and_refuses_others(client):
    twins = linear(), linear()
    schemes = {
        "weight": "per_channel_symmetric",
        "input": "per_tensor_affine",
        "output": "per_tensor_affine",
    }
    rules = {"target": "onnxruntime"}, {**ALL[0], "quant_scheme": schemes}
    for model, rule in zip(twins, rules):
        quantize(model, "qat", client=client, **rule)
        model(inputs(1))
        model.compressor.step()
        model.eval()
    assert torch.equal(twins[0](inputs(2)), twins[1](inputs(2)))
    with pytest.raises(nc.InvalidArgumentError, match="target") as refused:
        quantize(linear(), target="openvino", quant_scheme="per_channel_affine", client=client)
    assert 'quant_scheme is "per_channel_affine" for "weight"' in str(refused.value)
    with pytest.raises(nc.InvalidArgumentError, match="quant_scheme.input"):
        quantize(
            linear(),
            quant_types=["input"],
            quant_scheme={"input": schemes["weight"]},
            client=client,
        )


def test_an_input_that_is_given_by_its_name_is_quantized_too(client):
    plain, model = linear(), linear()
    quantizer = QATQuantizer([{"quant_types": ["input"], "quant_bits": 4}], client=client)
    quantizer(model)
    x = inputs(1)
    model(input=x)
    quantizer.step()
    assert quantizer.calibration["."]["input_range"] == (x.min().item(), x.max().item())
    scale, zero_point = parameters(x.min().item(), x.max().item(), bits=4)
    inner = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 15)
    model.eval()
    assert torch.equal(model(input=x), plain(inner))
    assert torch.equal(model(input=x), model(x))


def test_gradients_pass_straight_through_and_are_zero_where_an_output_was_clamped(client):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    model(torch.tensor([[0.0], [1.0]]))
    quantizer.step()
    x = torch.tensor([[0.5], [7.0]], requires_grad=True)
    model(x).sum().backward()
    assert x.grad.tolist() == [[1.0], [0.0]]


def test_the_running_range_moves_by_a_hundredth_and_is_frozen_in_eval(client):
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    low, high = F(0), F(0)
    for step in range(4):
        y = plain(inputs(step, scale=step + 1))
        model(inputs(step, scale=step + 1))
        quantizer.step()
        new_low, new_high = F(y.min().item()), F(y.max().item())
        if step == 0:
            low, high = new_low, new_high
        else:
            low, high = F(0.99) * low + F(0.01) * new_low, F(0.99) * high + F(0.01) * new_high
    assert quantizer.calibration["."]["output_range"] == (float(low), float(high))
    model.eval()
    model(inputs(9, scale=1000))
    quantizer.step()
    assert quantizer.calibration["."]["output_range"] == (float(low), float(high))


def test_a_layer_that_runs_several_times_in_a_step_gives_one_range(client):
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    parts = [plain(inputs(seed)) for seed in range(3)]
    for seed in range(3):
        model(inputs(seed))
    quantizer.step()
    low, high = quantizer.calibration["."]["output_range"]
    assert low == min(y.min().item() for y in parts)
    assert high == max(y.max().item() for y in parts)


def test_before_the_start_step_ranges_are_tracked_and_outputs_pass(client):
    plain, model = linear(), linear()
    quantizer = QATQuantizer([{**OUTPUTS[0], "quant_start_step": 2}], client=client)
    quantizer(model)
    model(inputs(1))
    quantizer.step()
    assert torch.equal(model(inputs(2)), plain(inputs(2)))
    assert quantizer.calibration == {}
    quantizer.step()
    assert not torch.equal(model(inputs(2)), plain(inputs(2)))


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_a_step_is_one_call_for_all_layers(client, transfer):
    model = Net()
    quantizer = QATQuantizer(ALL, client=client, transfer=transfer)
    quantizer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_step(model, optimizer)
    quantizer.step()
    before = calls(quantizer)
    quantizer.step()
    assert calls(quantizer) == before + 1
    keys = {"output_scale", "input_scale", "weight_scale"}
    assert all(keys <= set(found) for found in quantizer.calibration.values())
    assert len(quantizer.calibration) == 4


def test_integers_pass_and_half_types_keep_their_type(client):
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    quantizer = QATQuantizer(ALL, client=client)
    quantizer(model)
    tokens = torch.tensor([0, 4, 2])
    model(tokens)
    quantizer.step()
    assert model(tokens).shape == (3, 2)
    assert "input_scale" not in quantizer.calibration["0"]

    wide = nn.Linear(3, 2).to(torch.bfloat16)
    other = QATQuantizer(OUTPUTS, client=client)
    other(wide)
    wide(inputs(1).to(torch.bfloat16))
    other.step()
    assert wide(inputs(2).to(torch.bfloat16)).dtype is torch.bfloat16


def test_tied_layers_share_their_ranges(client):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    first = model[0](inputs(1))
    second = model[1](inputs(2, scale=5))
    quantizer.step()
    low, high = quantizer.calibration["0"]["output_range"]
    assert low == min(first.min().item(), second.min().item())
    assert high == max(first.max().item(), second.max().item())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same_and_notes_nothing(client, copied):
    model = Net()
    quantizer = QATQuantizer(ALL, client=client)
    quantizer(model)
    model(images())
    quantizer.step()
    model.eval()
    twin = copied(model)
    assert torch.equal(twin(images()), model(images()))
    twin.train()
    twin(images(seed=5) * 1000)
    assert twin.fc1._weight_state.output.seen(torch.device("cpu")).isinf().all()


def test_unwrap_gives_plain_outputs_and_keeps_the_calibration(client):
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    model(inputs(1))
    quantizer.step()
    before = quantizer.calibration["."]["output_range"]
    plain = quantizer.unwrap()
    assert type(plain) is nn.Linear
    assert torch.equal(plain(inputs(2)), linear()(inputs(2)))
    assert quantizer.calibration["."]["output_range"] == before


def test_a_pruner_and_a_quantizer_of_outputs_work_on_one_model(client):
    model = linear()
    pruner = LevelPruner([{"sparsity": 0.5}], client=client)
    quantizer = QATQuantizer(ALL, client=client)
    pruner(model)
    quantizer(model)
    model(inputs(1))
    quantizer.step()
    assert int((model.weight == 0).sum()) >= 6
    assert quantizer.calibration["."]["output_bits"] == 8


@pytest.mark.parametrize("session_lives", [True, False])
def test_a_resumed_quantizer_goes_on_with_the_running_range(client, session_lives, tmp_path):
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    for step in range(3):
        model(inputs(step))
        quantizer.step()
    torch.save(quantizer.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth")
    before = quantizer.calibration["."]
    if not session_lives:
        quantizer.session.close()

    later = linear()
    resumed = QATQuantizer(OUTPUTS, client=client)
    resumed.load_state_dict(state)
    resumed(later)
    model.eval(), later.eval()
    assert resumed.steps == 3
    assert resumed.calibration["."]["output_range"] == before["output_range"]
    assert torch.equal(later(inputs(8)), model(inputs(8)))
    later.train()
    later(inputs(4, scale=10))
    resumed.step()
    y = linear()(inputs(4, scale=10))
    wanted = F(0.99) * F(before["output_range"][1]) + F(0.01) * F(y.max().item())
    assert resumed.calibration["."]["output_range"][1] == float(wanted)


def test_a_lost_session_is_replaced_with_the_running_range():
    model = linear()
    with servers.ServerProcess() as first:
        client = nc.Client(first.address, timeout=30)
        quantizer = QATQuantizer(OUTPUTS, client=client)
        quantizer(model)
        model(inputs(1))
        quantizer.step()
        before = quantizer.calibration["."]["output_range"]
        port = first.port
    with servers.ServerProcess(port=port):
        quantizer.step()
        assert quantizer.calibration["."]["output_range"] == before
        quantizer.close()
        client.close()


def test_an_output_that_is_not_finite_is_an_error_that_names_the_layer(client):
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    model(torch.full((1, 3), float("nan")))
    with pytest.raises(nc.InvalidArgumentError, match=r"range of layer \"\.\".*at epoch 0, step 1"):
        quantizer.step()
    model(inputs(1))
    quantizer.step()
    assert quantizer.calibration["."]["output_bits"] == 8


def test_an_output_that_is_not_finite_may_be_passed_over(client):
    model = linear()
    rule = [{"quant_types": ["weight", "output"]}]
    quantizer = QATQuantizer(rule, client=client, on_bad_weight="keep")
    quantizer(model)
    model(inputs(1))
    quantizer.step()
    before = quantizer.calibration["."]["output_range"]
    model(torch.full((1, 3), float("nan")))
    quantizer.step()
    assert quantizer.calibration["."]["output_range"] == before


def test_the_servers_report_has_the_encodings(client):
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    model(inputs(1))
    quantizer.step()
    (layer,) = quantizer.session.info().layers
    assert layer.bits is None
    assert layer.input is None
    assert layer.output.scale == float(quantizer.calibration["."]["output_scale"])


def _rank(rank: int, folder: str, address: str, results: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = linear()
    with nc.Client(address, timeout=60) as client:
        quantizer = QATQuantizer(OUTPUTS, client=client)
        quantizer(model)
        model(inputs(rank, scale=1 + 9 * rank))
        quantizer.step()
        torch.save(quantizer.calibration["."]["output_range"], f"{results}/{rank}")
        quantizer.close()
    torch.distributed.destroy_process_group()


def test_ranks_reduce_their_ranges_among_themselves(server, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.multiprocessing.spawn(
        _rank, args=(str(tmp_path), server.address, str(tmp_path)), nprocs=2
    )
    parts = [linear()(inputs(rank, scale=1 + 9 * rank)) for rank in range(2)]
    wanted = (min(p.min().item() for p in parts), max(p.max().item() for p in parts))
    assert [torch.load(tmp_path / str(rank)) for rank in range(2)] == [wanted, wanted]
