"""`prune` and `quantize`: what they compress and leave out, and where the compressor is."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer, prune, quantize, unwrap
from torch_helpers import COMPRESSED, Net, images, train_step


class Language(nn.Module):
    """An embedding, a layer with an adapter, and an output layer that may share its weight."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.lora_A = nn.Linear(8, 2, bias=False)
        self.lora_B = nn.Linear(2, 8, bias=False)
        self.lm_head = nn.Linear(8, 20, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.lm_head(self.body(x) + self.lora_B(self.lora_A(x)))


def test_a_line_prunes_as_the_class_does(client: nc.Client) -> None:
    model = prune(Net(), "agp", final_sparsity=0.8, end_epoch=2, client=client, labels={"a": "b"})
    pruner = model.compressor
    assert type(pruner) is AGPPruner
    assert pruner.bound_model is model
    assert pruner.plan.compressed == COMPRESSED
    assert pruner.session.info().labels == {"a": "b"}
    pruner.update_epoch(2)
    model(images())
    other = AGPPruner(
        [{"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["default"]}], client=client
    )
    other(Net())
    other.update_epoch(2)
    for name, mask in other.masks.items():
        assert torch.equal(pruner.masks[name], mask)
        assert not mask.all()


def test_a_line_quantizes_as_the_class_does(client: nc.Client) -> None:
    model = quantize(Net(), "qat", quant_bits=4, transfer="ranges", client=client)
    assert type(model.compressor) is QATQuantizer
    assert model.compressor.transfer == "ranges"
    other = QATQuantizer([{"quant_bits": 4, "op_types": ["default"]}], client=client)(Net())
    assert torch.equal(model.eval()(images()), other.eval()(images()))
    assert len(model.fc1.weight.unique()) <= 16


def test_the_compressor_is_no_part_of_the_model(client: nc.Client) -> None:
    plain = Net()
    model = prune(Net(), sparsity=0.5, client=client)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    output = model.eval()(images())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    whole = {"weights_only": False} if torch.__version__ >= "2" else {}
    for copied in (copy.deepcopy(model), torch.load(file, **whole)):
        assert copied.compressor is None
        assert torch.equal(copied(images()), output)
        assert torch.equal(unwrap(copied)(images()), output)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_outputs_and_adapters_are_left_out_and_named_once(
    client: nc.Client, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "nni_compression"):
        model = prune(Language(tied), sparsity=0.5, client=client)
    assert model.compressor.plan.compressed == ("body",)
    assert model.compressor.plan.warnings == ()
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    expected = "1 embedding, 2 adapter's" if tied else "1 embedding, 2 adapter's, 1 output layer"
    assert f"left out: {expected} weights (embed, lora_A, lora_B" in line


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"op_names": ["lm_head", "lora_A"]}, ("lora_A", "lm_head")),
        ({"op_names": "embed"}, ("embed",)),
        ({"op_types": ["default", "Embedding"]}, ("embed", "body")),
        ({"op_types": "Linear"}, ("body",)),
    ],
)
def test_what_is_named_is_compressed(
    client: nc.Client, filters: dict[str, Any], expected: tuple[str, ...]
) -> None:
    model = prune(Language(tied=False), sparsity=0.5, client=client, **filters)
    assert model.compressor.plan.compressed == expected


def test_a_config_list_applies_as_it_stands(client: nc.Client) -> None:
    config_list = [{"sparsity": 0.5, "op_types": ["default"]}]
    model = prune(Language(tied=True), config_list=config_list, client=client)
    assert model.compressor.plan.compressed == ("embed", "body", "lora_A", "lora_B")
    with pytest.raises(TypeError, match=r"config_list and \['sparsity'\] are both given"):
        prune(Net(), config_list=config_list, sparsity=0.5, client=client)


def test_wrong_arguments_name_what_is_right(client: nc.Client) -> None:
    with pytest.raises(nc.InvalidArgumentError, match=r"'qat' is a quantizer; use quantize\(\)"):
        prune(Net(), "qat", client=client)
    with pytest.raises(nc.InvalidArgumentError, match=r"'agp' is a pruner; use prune\(\)"):
        quantize(Net(), "agp", client=client)
    with pytest.raises(nc.InvalidArgumentError, match="did you mean"):
        prune(Net(), "level", sparcity=0.5, client=client)
    with pytest.raises(nc.CompressionError, match="agpp"):
        prune(Net(), "agpp", sparsity=0.5, client=client)
    with pytest.raises(TypeError, match="list; it must be a torch.nn.Module"):
        prune([], sparsity=0.5, client=client)
    model = Net()
    model.compressor = nn.Linear(1, 1)
    with pytest.raises(nc.InvalidArgumentError, match="an attribute 'compressor' of its own"):
        prune(model, sparsity=0.5, client=client)


def test_a_model_of_transformers_is_pruned_but_for_its_embeddings(client: nc.Client) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))
    prune(model, sparsity=0.5, client=client)
    block = "transformer.h.0"
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert model.compressor.plan.compressed == tuple(f"{block}.{part}" for part in parts)


def test_adapters_of_peft_are_left_out_whatever_their_kind(client: nc.Client) -> None:
    peft = pytest.importorskip("peft")
    for config in (
        peft.LoraConfig(r=2, target_modules=["fc1"]),
        peft.LoHaConfig(r=2, target_modules=["fc1"]),
        peft.VeraConfig(r=2, target_modules=["fc1"]),
    ):
        model = peft.get_peft_model(Net(), config)
        prune(model, sparsity=0.5, client=client)
        expected = ("conv1", "conv2", "fc1.base_layer", "fc2")
        assert (
            tuple(
                name.replace("base_model.model.", "") for name in model.compressor.plan.compressed
            )
            == expected
        )


def test_a_with_statement_ends_the_session(client: nc.Client) -> None:
    with LevelPruner([{"sparsity": 0.5, "op_types": ["default"]}], client=client) as pruner:
        model = pruner(Net())
        output = model.eval()(images())
        session = pruner.session.id
    assert client.session_info(session).state == "closed"
    assert torch.equal(model(images()), output)


def test_a_with_statement_that_fails_ends_the_session_too(client: nc.Client) -> None:
    pruner = prune(Net(), sparsity=0.5, client=client).compressor

    def fail() -> None:
        with pruner:
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail)
    assert client.session_info(pruner.session.id).state == "closed"


def test_metrics_of_a_pruner(client: nc.Client) -> None:
    model = prune(
        Net(), "agp", final_sparsity=0.5, end_epoch=2, op_names=["fc1", "fc2"], client=client
    )
    pruner = model.compressor
    assert pruner.metrics()["sparsity"] == 0
    pruner.update_epoch(2)
    model(images())
    before = pruner.stats.calls
    found = pruner.metrics()
    assert all(type(value) is float for value in found.values())
    masks = pruner.masks
    removed = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert found["sparsity/fc1"] == pytest.approx(removed["fc1"] / masks["fc1"].numel())
    elements = sum(mask.numel() for mask in masks.values())
    assert found["sparsity"] == pytest.approx(sum(removed.values()) / elements)
    assert found["coverage"] == pruner.plan.coverage.share
    assert (found["epoch"], found["step"]) == (2, 0)
    assert found["calls"] == before == pruner.stats.calls
    assert found["bytes_sent"] > 4 * elements
    assert found["seconds_waiting"] > 0
    pruner.unwrap()
    assert pruner.metrics()["sparsity"] == found["sparsity"]


def test_metrics_of_a_quantizer(client: nc.Client) -> None:
    rule = {"quant_types": ["weight", "output"], "quant_bits": {"weight": 4, "output": 8}}
    model = quantize(Net(), "qat", op_types=["Linear"], client=client, **rule)
    quantizer = model.compressor
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer)
    quantizer.step()
    model(images())
    found = quantizer.metrics(sqnr=True)
    assert all(type(value) is float for value in found.values())
    assert (found["bits"], found["bits/fc1"], found["step"]) == (4, 4, 1)
    calibration = quantizer.calibration["fc1"]
    assert found["weight_scale/fc1"] == pytest.approx(float(calibration["weight_scale"]))
    assert found["output_scale/fc1"] == pytest.approx(float(calibration["output_scale"]))
    dense = dict(model.named_parameters())["fc1.weight"].detach().double()
    noise = (dense - model.fc1.weight.detach().double()).square().sum()
    assert found["sqnr/fc1"] == pytest.approx(float(10 * torch.log10(dense.square().sum() / noise)))
    assert not any(key.startswith("sqnr") for key in quantizer.metrics())
