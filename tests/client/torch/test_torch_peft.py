"""Adapters of peft over compressed models of transformers."""

from __future__ import annotations

from typing import Any

import pytest

import nni_compression as nc

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import torch
import transformers

from nni_compression.torch import LevelPruner, QATQuantizer

LINEAR = [{"op_types": ["Linear"], "sparsity": 0.5}]
QAT = [{"op_types": ["Linear"], "quant_bits": 8}]
TARGETS = ["q_proj", "up_proj"]
TOKENS = torch.arange(32).reshape(2, 16)


def language_model() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.Qwen2ForCausalLM(config)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The dense weights that adapters are added to, by the names of their layers."""
    found = {}
    for name, value in model.state_dict().items():
        layer = name.rpartition(".")[0]
        if layer.endswith(tuple(TARGETS)) and name.endswith("weight"):
            found[layer] = value.detach().clone()
    return found


@pytest.mark.parametrize("safe", [False, True], ids=["", "safe"])
@pytest.mark.parametrize(("make", "config_list"), [(LevelPruner, LINEAR), (QATQuantizer, QAT)])
def test_an_adapter_that_is_merged_is_kept(
    client: nc.Client, make: Any, config_list: Any, safe: bool
) -> None:
    model = language_model()
    compressor = make(config_list, client=client)
    compressor(model)
    logits(model)
    masks = getattr(compressor, "masks", {})
    dense = weights(model)
    read = {name: model.get_submodule(name).weight.detach().clone() for name in dense}

    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    adapted.eval()
    tuned = logits(adapted)
    changes = {
        name: adapted.base_model.model.get_submodule(name).get_delta_weight("default").detach()
        for name in dense
    }
    merged = adapted.merge_and_unload(safe_merge=safe)

    found = weights(merged)
    assert found.keys() == dense.keys()
    for name, change in changes.items():
        assert change.abs().max() > 1e-3
        before = read[name] if safe else dense[name]
        assert torch.allclose(found[name], before + change, atol=1e-6)
    if masks:
        for name, value in found.items():
            mask = masks[name]
            read_now = merged.get_submodule(name).weight
            assert torch.equal(read_now, torch.where(mask, value, torch.zeros(())))
    else:
        assert torch.allclose(logits(merged), tuned, atol=0.05)
    kept = logits(merged)
    compressor.unwrap()
    assert torch.equal(logits(merged), kept)


def test_exports_have_the_names_of_the_model_without_its_adapters(client: nc.Client) -> None:
    model = language_model()
    quantizer = QATQuantizer(QAT, client=client)
    quantizer(model)
    logits(model)
    before = quantizer.compressed_state_dict()
    peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS))
    after = quantizer.compressed_state_dict()
    added = after.keys() - before.keys()
    assert after.keys() > before.keys()
    assert all(".lora_" in key for key in added)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert len(quantizer._torch().exported(quantizer._bound())[0]) == len(after)


def test_an_adapter_is_unmerged_again(client: nc.Client) -> None:
    model = language_model()
    pruner = LevelPruner(LINEAR, client=client)
    pruner(model)
    base = logits(model)
    dense = weights(model)
    config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.merge_adapter()
    assert not torch.allclose(logits(adapted), base)
    adapted.unmerge_adapter()
    adapted.unload()
    for name, value in weights(model).items():
        assert torch.allclose(value, dense[name], atol=1e-6)
    assert torch.allclose(logits(model), base, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=TARGETS, feedforward_modules=[], init_ia3_weights=False),
        peft.LoHaConfig(r=4, target_modules=TARGETS, init_weights=False),
        peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, init_weights=False),
    ],
    ids=["ia3", "loha", "oft"],
)
def test_an_adapter_that_hands_the_weight_on_is_merged(client: nc.Client, config: Any) -> None:
    model = language_model()
    pruner = LevelPruner(LINEAR, client=client)
    pruner(model)
    logits(model)
    dense = weights(model)
    merged = peft.get_peft_model(model, config).eval().merge_and_unload()
    for name, value in weights(merged).items():
        assert not torch.equal(value, dense[name])
        masked = torch.where(pruner.masks[name], value, torch.zeros(()))
        assert torch.equal(merged.get_submodule(name).weight, masked)
