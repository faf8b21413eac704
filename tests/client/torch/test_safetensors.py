"""Exports, opened by the safetensors package, which the part torch of tests/run.sh has."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import LevelPruner, QATQuantizer

pytest.importorskip("safetensors", reason="not packaged by Debian; the part torch has it")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file as load_arrays  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
LEVEL = [{"sparsity": 0.8, "op_types": ["default"]}]
CODES = {"op_types": ["default"], "quant_scheme": "per_channel_symmetric"}


def net() -> nn.Sequential:
    """A model with buffers, a scalar among them, and a half type."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    model[3].to(torch.bfloat16)
    return model


def assert_same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, types, shapes and bits."""
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        first, second = (t.contiguous().view(-1).view(torch.uint8) for t in (loaded[name], tensor))
        assert torch.equal(first, second), name


def unpacked(bitmask: Any, count: int) -> Any:
    """One boolean for each of `count` elements; bit 0 of byte 0 is the first."""
    return np.unpackbits(bitmask, bitorder="little")[:count].astype(bool)


def test_a_pruned_model_comes_back_bit_for_bit(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(net())
    (path,) = pruner.export(tmp_path)
    expected = pruner.compressed_state_dict()
    assert_same(load_file(path), expected)
    assert int((load_file(path)["3.weight"] == 0).sum()) == 38
    with safe_open(path, framework="pt") as file:
        assert file.get_slice("0.weight").get_shape() == [4, 1, 3, 3]
        assert all(isinstance(value, str) for value in (file.metadata() or {}).values())


def test_the_shards_of_a_quantized_model_hold_it_between_them(
    client: nc.Client, tmp_path: Path
) -> None:
    quantizer = QATQuantizer([{"op_types": ["default"]}], client=client)
    quantizer(net())
    quantizer.export(tmp_path, options={"max_shard_bytes": 100})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    loaded = {}
    for shard in set(index.values()):
        part = load_file(tmp_path / shard)
        assert set(part) == {name for name, file in index.items() if file == shard}
        loaded.update(part)
    assert_same(loaded, quantizer.compressed_state_dict())


def test_a_sparse_file_has_the_documented_parts(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(net())
    (path,) = pruner.export(tmp_path, "sparse")
    loaded, expected = load_file(path), pruner.compressed_state_dict()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["nni_compression.sparse"] == "1"
    shapes = json.loads(metadata["nni_compression.shapes"])
    assert set(shapes) == {"0.weight", "3.weight"}
    for name, shape in shapes.items():
        tensor = expected.pop(name)
        values, bitmask = loaded.pop(f"{name}.values"), loaded.pop(f"{name}.bitmask")
        kept = torch.from_numpy(unpacked(bitmask.numpy(), tensor.numel()))
        dense = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        dense[kept] = values
        assert torch.equal(dense.reshape(shape), tensor)
    assert_same(loaded, expected)


def test_masks_are_there_plain_and_packed(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(net())
    plain, packed = (load_arrays(path) for path in pruner.export(tmp_path, "masks"))
    assert set(plain) == set(packed) == set(pruner.masks)
    for name, mask in pruner.masks.items():
        kept = mask.numpy()
        assert np.array_equal(plain[name], kept.astype(np.uint8))
        assert np.array_equal(unpacked(packed[name], kept.size).reshape(kept.shape), kept)


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (8, {"0.weight", "0.weight_scale"}),
        (4, {"0.weight_packed", "0.weight_scale", "0.weight_shape"}),
    ],
)
def test_compressed_tensors_are_tensors_of_their_types(
    client: nc.Client, tmp_path: Path, bits: int, names: set[str]
) -> None:
    model = nn.Sequential(nn.Linear(16, 3))
    quantizer = QATQuantizer([{**CODES, "quant_bits": bits}], client=client)
    quantizer(model)
    _, path = quantizer.export(tmp_path, "compressed-tensors")
    loaded = load_arrays(path)
    assert set(loaded) == {*names, "0.bias"}
    scale = loaded["0.weight_scale"]
    if bits == 8:
        codes = loaded["0.weight"].astype(np.float32)
    else:
        assert loaded["0.weight_shape"].tolist() == [3, 16]
        words = loaded["0.weight_packed"].view(np.uint32)
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = ((words[..., None] >> shifts) & 15).reshape(3, 16).astype(np.float32) - 8
    assert np.array_equal(codes * scale, quantizer.compressed_state_dict()["0.weight"].numpy())


def test_compressionctl_prunes_what_the_package_has_written(server: Any, tmp_path: Path) -> None:
    weights = dict(net().state_dict())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(LEVEL))
    subprocess.run(
        [os.environ.get("COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl"),
         f"--server={server.address}", "prune", "--algorithm", "level", "--config", "config.json",
         "model.safetensors", "-o", "out"],
        cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert set(loaded) == set(weights)
    assert int((loaded["3.weight"] == 0).sum()) == 38
    kept = loaded["0.weight"] != 0
    assert torch.equal(loaded["0.weight"][kept], weights["0.weight"][kept])
    assert torch.equal(loaded["0.bias"], weights["0.bias"])
