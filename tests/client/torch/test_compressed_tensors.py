"""Exports of compressed-tensors, loaded by transformers with the package of that name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
reason = "not packaged by Debian; part torch of tests/run.sh has it"
pytest.importorskip("compressed_tensors", reason=reason)
transformers = pytest.importorskip("transformers", reason=reason)

import nni_compression as nc  # noqa: E402
from nni_compression.torch import QATQuantizer  # noqa: E402

TOKENS = torch.arange(10).reshape(1, 10)


def language_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config).eval()


def add_model(folder: Path, config: Any) -> None:
    """Puts what the model is into the file that says how it is quantized."""
    path = folder / "config.json"
    quantized = json.loads(path.read_text())
    architecture = {"architectures": ["LlamaForCausalLM"]}
    path.write_text(json.dumps({**config.to_dict(), **architecture, **quantized}))


@pytest.mark.parametrize(
    ("op_type", "bits", "scheme", "options", "warned"),
    [
        ("Linear", 8, "per_tensor_affine", {}, "vLLM"),
        ("Linear", 8, "per_channel_affine", {}, "vLLM"),
        ("Linear", 8, "per_channel_symmetric", {}, "vLLM"),
        ("Linear", 8, "per_channel_symmetric", {"group_size": 16}, "vLLM"),
        ("Embedding", 8, "per_channel_symmetric", {}, "vLLM"),
        ("Linear", 8, "per_channel_symmetric", {"layout": "pack-quantized"}, ""),
        ("Linear", 4, "per_channel_symmetric", {}, ""),
        ("Linear", 4, "per_channel_symmetric", {"group_size": 16}, ""),
        ("Linear", 4, "per_tensor_affine", {}, "vLLM"),
        ("Linear", 2, "per_channel_symmetric", {}, "vLLM"),
        ("Linear", 4, "per_channel_affine", {}, "transformers"),
        ("Linear", 4, "per_channel_affine", {"group_size": 16}, "transformers"),
        ("Embedding", 4, "per_channel_symmetric", {}, "transformers"),
    ],
)
def test_transformers_computes_with_the_sessions_values(
    client: nc.Client,
    tmp_path: Path,
    op_type: str,
    bits: int,
    scheme: str,
    options: dict[str, Any],
    warned: str,
) -> None:
    model = language_model()
    rule = {"op_types": [op_type], "quant_bits": bits, "quant_scheme": scheme}
    layout = {key: value for key, value in options.items() if key == "layout"}
    grouped = {key: value for key, value in options.items() if key == "group_size"}
    quantizer = QATQuantizer([{**rule, **grouped}], client=client)
    quantizer(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantizer.export(tmp_path, "compressed-tensors", options=layout)
    said = [str(warning.message).split(": ")[1] for warning in told]
    assert [text.split()[0] for text in said] == ([warned] if warned else [])
    add_model(tmp_path, model.config)

    loading = {}
    if warned == "transformers":
        loading["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True, **loading
    )
    assert not any(info.values()), info
    with torch.no_grad():
        expected, found = model(TOKENS).logits, loaded(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    weights = quantizer.compressed_state_dict()
    for name, weight in loaded.state_dict().items():  # floats since the first forward pass
        if name in weights:
            torch.testing.assert_close(weight, weights[name], atol=0, rtol=0, msg=name)
    quantizer.close()
