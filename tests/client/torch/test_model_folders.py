"""Folders that compressionctl has compressed, loaded by transformers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
reason = "not packaged by Debian; part torch of tests/run.sh has it"
pytest.importorskip("compressed_tensors", reason=reason)
transformers = pytest.importorskip("transformers", reason=reason)

import servers  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
BINARY = os.environ.get("COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl")
TOKENS = torch.arange(10).reshape(1, 10)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def llama() -> Any:
    """In bfloat16, with lm_head tied to the embeddings."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


def compress(
    server: servers.ServerProcess, folder: Path, command: str, rule: dict[str, Any], *flags: str
) -> Path:
    """The folder of the result, without its embeddings."""
    embeddings = {"exclude": True, "op_names": [f"{e}.weight" for e in EMBEDDINGS]}
    rules = folder.parent / "rules.json"
    rules.write_text(json.dumps([{**rule, "op_types": ["default"]}, embeddings]))
    out = folder.parent / "out"
    algorithm = "level" if command == "prune" else "qat"
    subprocess.run(
        [BINARY, f"--server={server.address}", command, f"--algorithm={algorithm}",
         f"--config={rules}", folder, "-o", out, *flags],
        check=True, timeout=120,
    )  # fmt: skip
    return out


EMBEDDINGS = [
    "model.embed_tokens",
    *(f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")),
]


def load(model: Any, folder: Path) -> Any:
    """By the class that the folder names, with every tensor found."""
    generic = transformers.AutoModelForCausalLM
    loader = generic if hasattr(model, "lm_head") else transformers.AutoModel
    loaded, info = loader.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    return loaded


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS)[0].float()


@pytest.mark.parametrize("make", [llama, bert])
@pytest.mark.parametrize("shard_size", ["40KB", "5GB"])
def test_a_pruned_model_is_loaded_and_computes_with_the_zeros(
    server: servers.ServerProcess, tmp_path: Path, make: Any, shard_size: str
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "model", max_shard_size=shard_size)
    assert (tmp_path / "model/model.safetensors.index.json").exists() == (shard_size == "40KB")
    out = compress(server, tmp_path / "model", "prune", {"sparsity": 0.5})
    assert (out / "config.json").read_text() == (tmp_path / "model/config.json").read_text()
    loaded = load(model, out)
    model = load(model, tmp_path / "model")  # whose buffers have the types that loading gives them
    pruned = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer = name.rpartition(".")[0]
            if parameter.dim() < 2 or layer in EMBEDDINGS:
                continue
            order = parameter.abs().flatten().argsort(stable=True)
            parameter.view(-1)[order[: parameter.numel() // 2]] = 0
            pruned += 1
    assert pruned == (14 if make is llama else 13)
    for name, parameter in loaded.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("make", [llama, bert])
@pytest.mark.parametrize(
    ("bits", "scheme", "layout"),
    [
        (8, "per_channel_symmetric", "int-quantized"),
        (8, "per_tensor_affine", "int-quantized"),
        (8, "per_channel_symmetric", "pack-quantized"),
        (4, "per_channel_symmetric", "pack-quantized"),
    ],
)
def test_a_quantized_model_is_loaded_and_computes_with_the_values(
    server: servers.ServerProcess, tmp_path: Path, make: Any, bits: int, scheme: str, layout: str
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    rule = {"quant_bits": bits, "quant_scheme": scheme}
    flags = ["--format=compressed-tensors", f"--option=layout={layout}", "--shard_size=8KB"]
    out = compress(server, tmp_path / "model", "quantize", rule, *flags)
    assert (out / "model.safetensors.index.json").exists()
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["format"] == layout
    assert config == json.loads((tmp_path / "model/config.json").read_text())
    loaded = load(model, out)
    found = outputs(loaded)
    # The same weights as plain numbers.
    codes = out.rename(tmp_path / "codes")
    plain = load(model, compress(server, tmp_path / "model", "quantize", rule))
    torch.testing.assert_close(found, outputs(plain), atol=1e-6 if make is bert else 0.02, rtol=0)
    dense, plain_weights = model.state_dict(), plain.state_dict()
    changed = {name for name, value in plain_weights.items() if not torch.equal(value, dense[name])}
    assert len(changed) == (14 if make is llama else 13)
    weights = loaded.state_dict()  # floats since the first forward pass
    rounding = 0 if make is bert else 2**-7  # scales become bfloat16, too
    for name, value in plain_weights.items():
        torch.testing.assert_close(weights[name], value, atol=1e-7, rtol=rounding, msg=name)

    # As another class: without its head, or with one.
    other = transformers.AutoModel if make is llama else transformers.AutoModelForMaskedLM
    hidden = []
    for folder in (codes, out):
        with torch.no_grad():
            result = other.from_pretrained(folder)(TOKENS, output_hidden_states=True)
        hidden.append(result.hidden_states[-1].float())
    torch.testing.assert_close(*hidden, atol=1e-6 if make is bert else 0.05, rtol=0)
