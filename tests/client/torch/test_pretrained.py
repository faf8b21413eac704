"""Folders of compressed models of transformers, and the warning about dense ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

from nni_compression.torch import LevelPruner, QATQuantizer, prune, quantize
from torch_helpers import Net

TOKENS = torch.arange(12).reshape(2, 6)


def language_model(tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.generation_config.max_length = 9
    return model.eval()


def loaded(folder: Path, kind: Any = transformers.LlamaForCausalLM, **arguments: Any) -> Any:
    model, problems = kind.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(problems.values()), problems
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [None, 30_000])
def test_a_folder_loads_with_the_compressed_weights(
    client: nc.Client,
    tmp_path: Path,
    dtype: torch.dtype,
    max_shard_bytes: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = prune(language_model(dtype=dtype), sparsity=0.5, client=client)
    folder = tmp_path / "made/for/this"
    arguments: Any = {"tokenizer": tokenizer(), "max_shard_bytes": max_shard_bytes}
    files = model.compressor.save_pretrained(folder, **arguments)
    assert files == sorted(folder.iterdir())
    names = {file.name for file in files}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert ("model.safetensors.index.json" in names) == (max_shard_bytes is not None)
    found = loaded(folder, transformers.AutoModelForCausalLM, dtype="auto")
    assert found.dtype == dtype
    state = model.compressor.compressed_state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, state[name])
    if dtype == torch.float32:  # what else the model has is always loaded as such
        assert torch.equal(logits(found), logits(model))
    assert found.generation_config.max_length == 9
    weight = found.model.layers[1].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("b") == 1
    assert not [r for r in caplog.records if "dense weights" in r.getMessage()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_of_codes_loads_as_the_model_computes(
    client: nc.Client, tmp_path: Path, tied: bool, bits: int
) -> None:
    pytest.importorskip("compressed_tensors")
    rule = {"quant_bits": bits, "quant_scheme": "per_channel_symmetric", "group_size": 32}
    model = quantize(language_model(tied), "qat", client=client, **rule)
    model.compressor.save_pretrained(
        tmp_path, format="compressed-tensors", options={"layout": "pack-quantized"}
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert not hasattr(model.config, "quantization_config")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(found), logits(model))


def test_a_pruner_and_a_quantizer_are_in_one_folder(client: nc.Client, tmp_path: Path) -> None:
    model = prune(language_model(), sparsity=0.5, client=client)
    pruner = model.compressor
    quantize(model, quant_bits=4, client=client)
    pruner.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_nothing_is_overwritten_unless_that_is_asked_for(client: nc.Client, tmp_path: Path) -> None:
    pruner = prune(language_model(), sparsity=0.5, client=client).compressor
    pruner.save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(nc.AlreadyExistsError, match=r"has config\.json, .*set overwrite=True"):
        pruner.save_pretrained(tmp_path)
    other = prune(language_model(), sparsity=0.75, client=client)
    with pytest.raises(nc.AlreadyExistsError, match=r"model\.safetensors"):
        other.compressor.save_pretrained(tmp_path, max_shard_bytes=30_000)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    # An old model.safetensors would be loaded in place of the new shards.
    other.compressor.save_pretrained(tmp_path, max_shard_bytes=30_000, overwrite=True)
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(loaded(tmp_path)), logits(other))


def test_only_weights_that_would_be_loaded_are_removed(client: nc.Client, tmp_path: Path) -> None:
    pruner = prune(language_model(), sparsity=0.5, client=client).compressor
    kept = ("teacher.safetensors", "my.index.json", "pytorch_model_ema.bin", "model-b.safetensors")
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    for name in (*kept, *old):
        (tmp_path / name).write_text("{}")
    with pytest.raises(nc.AlreadyExistsError, match=r"has model-00001-of"):
        pruner.save_pretrained(tmp_path)
    files = pruner.save_pretrained(tmp_path, overwrite=True)
    assert set(tmp_path.iterdir()) == {*files, *(tmp_path / name for name in kept)}
    assert torch.equal(logits(loaded(tmp_path)), logits(pruner.bound_model))
    assert all((tmp_path / name).read_text() == "{}" for name in kept)


def test_a_tokenizer_may_write_folders(client: nc.Client, tmp_path: Path) -> None:
    pruner = prune(language_model(), sparsity=0.5, client=client).compressor
    given = tokenizer()
    given.chat_template = {"default": "plain", "tool_use": "with tools"}
    files = pruner.save_pretrained(tmp_path, tokenizer=given)
    template = tmp_path / "additional_chat_templates/tool_use.jinja"
    assert template in files
    assert files == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found.chat_template == given.chat_template
    with pytest.raises(nc.AlreadyExistsError):
        pruner.save_pretrained(tmp_path, tokenizer=given)
    pruner.save_pretrained(tmp_path, tokenizer=given, overwrite=True)
    assert template.read_text() == "with tools"


def test_a_folder_in_the_place_of_a_file_leaves_all_unchanged(
    client: nc.Client, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").mkdir()
    pruner = prune(language_model(), sparsity=0.5, client=client).compressor
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors"):
        pruner.save_pretrained(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_cannot_be_written_is_refused(client: nc.Client, tmp_path: Path) -> None:
    pruner = prune(language_model(), sparsity=0.5, client=client).compressor
    with pytest.raises(nc.InvalidArgumentError, match="format is 'pth'"):
        pruner.save_pretrained(tmp_path, format="pth")
    with pytest.raises(nc.InvalidArgumentError, match="safetensors has no options"):
        pruner.save_pretrained(tmp_path, options={"layout": "auto"})
    with pytest.raises(nc.CompressionError):
        pruner.save_pretrained(tmp_path, format="compressed-tensors")
    with pytest.raises(TypeError, match="a Net has no save_pretrained"):
        prune(Net(), sparsity=0.5, client=client).compressor.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_has_to_be_merged_first(client: nc.Client, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(language_model(), config)
    prune(model, sparsity=0.5, client=client)
    with pytest.raises(nc.InvalidArgumentError, match="has an adapter"):
        model.compressor.save_pretrained(tmp_path)


def warnings_in(caplog: pytest.LogCaptureFixture) -> int:
    return sum("dense weights of the compressed Llama" in r.getMessage() for r in caplog.records)


def test_the_models_own_folder_is_dense_and_it_says_so_once(
    client: nc.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = language_model()
    pruner = LevelPruner([{"op_types": ["Linear"], "sparsity": 0.5}], client=client)
    pruner(model)
    quantizer = QATQuantizer([{"op_types": ["Linear"]}], client=client)
    quantizer(model)
    with caplog.at_level(logging.WARNING, "nni_compression"):
        model.state_dict()
        assert warnings_in(caplog) == 0
        for name in ("a", "b"):
            model.save_pretrained(tmp_path / name)
        assert warnings_in(caplog) == 1
        pruner.unwrap(), quantizer.unwrap()
        caplog.clear()
        model.save_pretrained(tmp_path / "c")
        assert warnings_in(caplog) == 0
    assert not model._state_dict_hooks
    assert torch.equal(logits(loaded(tmp_path / "c")), logits(model))


def test_the_trainer_says_so_too(
    client: nc.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("accelerate")

    class Plain(nn.Module):  # not a model of transformers
        def __init__(self) -> None:
            super().__init__()
            self.llama = nn.Linear(2, 2)

    def save(model: nn.Module, name: str) -> int:
        caplog.clear()
        arguments = {"use_cpu": True, "report_to": []}
        args = transformers.TrainingArguments(output_dir=str(tmp_path / name), **arguments)
        with caplog.at_level(logging.WARNING, "nni_compression"):
            transformers.Trainer(model, args).save_model()
        return sum("dense weights" in r.getMessage() for r in caplog.records)

    assert save(prune(language_model(), sparsity=0.5, client=client), "a") == 1
    assert save(prune(Plain(), sparsity=0.5, client=client), "b") == 1
    assert save(language_model(), "c") == 0
