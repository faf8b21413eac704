"""Modules that take another module's place after the model was bound."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import LevelPruner, NaiveQuantizer, QATQuantizer
from torch_helpers import LEVEL, NAIVE

OUTPUTS = [{"quant_types": ["weight", "output"], "op_types": ["default"]}]
COMPRESSORS = [(LevelPruner, LEVEL), (NaiveQuantizer, NAIVE), (QATQuantizer, OUTPUTS)]
REPLACED = r"layers \['2'\] are no longer those that were bound.*rebind\(\)"


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def ask(model: nn.Module) -> torch.Tensor:
    return model(torch.ones(2, 16))


def new_head(model: nn.Sequential, outputs: int) -> None:
    model[2] = nn.Linear(32, outputs)


def new_parameter(model: nn.Sequential, outputs: int) -> None:
    model[2].weight = nn.Parameter(torch.ones(outputs, 32))
    model[2].bias = None


def no_head(model: nn.Sequential, outputs: int) -> None:
    model[2] = nn.Identity()


def swapped(model: nn.Sequential, outputs: int) -> None:
    model.add_module("extra", model[2])
    model[2] = nn.Linear(32, outputs)


@pytest.mark.parametrize("replace", [new_head, new_parameter, no_head, swapped])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_every_call_that_would_use_the_old_module_tells(
    client: nc.Client, tmp_path: Path, make, config_list, replace
) -> None:
    compressor = make(config_list, client=client)
    model = compressor(network())
    ask(model)
    compressor.step()
    replace(model, 7)
    for call in (
        lambda: compressor.update_epoch(0),
        compressor.step,
        compressor.refresh,
        compressor.state_dict,
    ):
        # What is sent of a parameter of another shape the server refuses.
        with pytest.warns(UserWarning, match=REPLACED), suppress(nc.InvalidArgumentError):
            call()
    for write in (
        lambda: compressor.export(tmp_path),
        lambda: compressor.export_model(str(tmp_path / "model.pth")),
        compressor.compressed_state_dict,
    ):
        with pytest.raises(nc.FailedPreconditionError, match=REPLACED):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outputs", [4, 7])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_a_new_head_is_taken_in_and_exported(
    client: nc.Client, tmp_path: Path, make, config_list, outputs: int, recwarn
) -> None:
    compressor = make(config_list, client=client)
    model = compressor(network())
    ask(model)
    compressor.step()
    new_head(model, outputs)
    recwarn.clear()
    compressor.rebind()
    dropped = [str(w.message) for w in recwarn if "dropped" in str(w.message)]
    assert len(dropped) == (outputs != 4)
    assert all("['2']" in text and "['0']" not in text for text in dropped)
    ask(model)
    path, *_ = compressor.export(tmp_path, "pth")
    with torch.no_grad():
        assert torch.equal(torch.load(path)["2.weight"], model[2].weight.detach())
        assert not torch.equal(model[2].weight, model[2]._parameters["weight"])


def test_a_weight_of_another_shape_is_not_read_with_the_old_mask(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(network())
    ask(model)
    new_parameter(model, 7)
    with pytest.raises(RuntimeError, match=r"'2' has shape \[7, 32\].*bound with \[4, 32\]"):
        ask(model)
    with pytest.warns(UserWarning, match=r"dropped.*masks\['2'\]"):
        pruner.rebind()
    assert ask(model).shape == (2, 7)
    assert int((~pruner.masks["2"]).sum()) == 112


def test_what_is_remembered_of_a_removed_layer_is_dropped_with_a_warning(
    client: nc.Client,
) -> None:
    quantizer = NaiveQuantizer(NAIVE, client=client)
    model = quantizer(network())
    ask(model)
    no_head(model, 0)
    with pytest.warns(UserWarning, match=r"dropped.*memory\['2'\]"):
        quantizer.rebind()
    assert list(quantizer.calibration) == ["0"]


def test_a_new_head_of_another_shape_is_told_of_when_its_checkpoint_is_loaded(
    client: nc.Client,
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    ask(pruner(network()))
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    model = network()
    new_head(model, 7)
    other = LevelPruner(LEVEL, client=client)
    other.load_state_dict(torch.load(file))
    with pytest.raises(ValueError, match=r"masks\['2'\] \(of shape \[4, 32\].* \[7, 32\]\)"):
        other(model)


class _Adapter(nn.Module):
    """As LoRA's: takes a layer's place and runs it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)


def test_a_layer_within_an_adapter_is_still_the_one_that_was_bound(
    client: nc.Client, tmp_path: Path, recwarn
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(network())
    ask(model)
    model[2] = _Adapter(model[2])
    recwarn.clear()
    pruner.update_epoch(0)
    pruner.step()
    assert not list(recwarn)
    assert pruner.export(tmp_path)


class _AdapterWithBias(_Adapter):
    """One that has a parameter of a name that the layer within it has, too."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.bias = nn.Parameter(torch.full((4,), 7.0))


def put_within(model: nn.Sequential) -> None:
    model[2] = _Adapter(model[2])


def put_within_twice(model: nn.Sequential) -> None:
    model[0] = nn.Sequential(model[0], nn.Dropout())
    model[2] = nn.Sequential(nn.Dropout(), _Adapter(model[2]))


def put_within_and_wrap(model: nn.Sequential) -> None:
    put_within_twice(model)
    model[2] = nn.DataParallel(model[2])


@pytest.mark.parametrize("adapt", [put_within, put_within_twice, put_within_and_wrap])
@pytest.mark.parametrize(
    ("make", "config_list", "format"),
    [
        (make, config_list, format)
        for make, config_list in COMPRESSORS
        for format in ("safetensors", "onnx", "pth", "compressed-tensors")
        if make is not LevelPruner or format != "compressed-tensors"
    ],
)
def test_exports_with_adapters_are_those_without(
    client: nc.Client, tmp_path: Path, make, config_list, format: str, adapt
) -> None:
    compressor = make(config_list, client=client)
    model = compressor(network())
    ask(model)
    compressor.step()
    model.eval()
    before = [path.read_bytes() for path in compressor.export(tmp_path / "before", format)]
    state = compressor.compressed_state_dict()
    adapt(model)
    model.eval()
    after = [path.read_bytes() for path in compressor.export(tmp_path / "after", format)]
    assert after == before
    now = compressor.compressed_state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[key], value) for key, value in state.items())
    plain = network()
    plain.load_state_dict(now)
    assert torch.equal(ask(plain), ask(model)) or make is QATQuantizer  # it rounds outputs
    compressor.close()


def test_an_adapters_own_parameters_are_exported_next_to_the_layers(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(network())
    ask(model)
    put_within(model)
    model[2].lora_A = nn.Linear(32, 2, bias=False)
    keys = {"0.weight", "0.bias", "2.weight", "2.bias", "2.lora_A.weight"}
    assert pruner.compressed_state_dict().keys() == keys


def test_a_block_of_layers_within_another_one_has_its_names_of_before(client: nc.Client) -> None:
    inner = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
    inner[2].register_buffer("scale", torch.ones(1))
    model = nn.Sequential(inner, nn.ReLU())
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    ask(model)
    keys = list(pruner.compressed_state_dict())
    model[0] = _Adapter(inner)
    assert list(pruner.compressed_state_dict()) == keys
    assert set(pruner._torch().exported(pruner._bound())[0]) >= {
        "0.0",
        "0.2",
        "0.1.running_mean",
        "0.2.scale",
    }
    pruner.rebind()
    assert all(key.startswith("0.base_layer.") for key in pruner.compressed_state_dict())


def test_no_parameter_of_an_adapter_gets_lost_where_names_clash(
    client: nc.Client, tmp_path: Path
) -> None:
    quantizer = NaiveQuantizer(NAIVE, client=client)
    model = quantizer(network())
    ask(model)
    quantizer.step()
    bias = model[2].bias.detach().clone()
    model[2] = _AdapterWithBias(model[2])
    state = quantizer.compressed_state_dict()
    layer = {"2.base_layer.weight", "2.base_layer.bias"}
    assert state.keys() == {"0.weight", "0.bias", "2.bias", *layer}
    assert torch.equal(state["2.base_layer.bias"], bias)
    assert (state["2.bias"] == 7).all()
    (path,) = quantizer.export(tmp_path, "pth")
    assert torch.load(path).keys() == state.keys()


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_weight_of_an_adapter_is_not_taken_for_the_layers(
    client: nc.Client, tmp_path: Path, kind: str
) -> None:
    quantizer = NaiveQuantizer(NAIVE, client=client)
    model = quantizer(network())
    ask(model)
    quantizer.step()
    layer = model[2]
    model[2] = _Adapter(layer)
    nines = torch.full((4, 32), 9.0)
    if kind == "buffer":
        model[2].register_buffer("weight", nines)
    else:
        model[2].other = nn.Module()
        model[2].other.weight = nn.Parameter(nines)
    own = "2.weight" if kind == "buffer" else "2.other.weight"
    name = "2.base_layer.weight" if kind == "buffer" else "2.weight"
    (path,) = quantizer.export(tmp_path, "pth")
    state = torch.load(path)
    assert torch.equal(state[own], nines)
    assert torch.equal(state[name], layer.weight.detach())
    assert torch.equal(state[name], quantizer.compressed_state_dict()[name])
