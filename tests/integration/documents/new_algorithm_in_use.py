"""The pruner of docs/adding-an-algorithm.md in use, through a server that was built with it.

Run by adding_an_algorithm_test.sh, with the built programs named in the environment. A PyTorch
model is pruned by it, and a file by compressionctl, which is a user of the C++ client.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "client/python/src"), str(ROOT / "tests/testing/python")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import servers  # noqa: E402
from documents import blocks  # noqa: E402
from safetensors_files import read_safetensors, write_safetensors  # noqa: E402

CONFIG_LIST: list[dict[str, Any]] = [{"cutoff": 0.5, "op_types": ["default"]}]


def ctl(address: str, *arguments: object) -> Any:
    binary = os.environ["COMPRESSIONCTL_BINARY"]
    command = [binary, f"--server={address}", "--json", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def mask_from_torch(address: str, weight: np.ndarray) -> np.ndarray:
    names: dict[str, Any] = {}
    (_, page_block) = blocks(ROOT / "docs/adding-an-algorithm.md", "python")[0]
    exec(page_block, names)
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight.data.copy_(torch.from_numpy(weight))
    pruner = names["CutoffPruner"](CONFIG_LIST, server=address)
    pruner(model)
    try:
        pruner.update_epoch(0)
        return (model[0].weight != 0).detach().numpy()
    finally:
        pruner.close()


def mask_from_compressionctl(address: str, weight: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_safetensors(folder / "model.safetensors", {"0.weight": ("F32", weight)})
        (folder / "config.json").write_text(json.dumps(CONFIG_LIST))
        ctl(
            address,
            "prune",
            "--algorithm=cutoff",
            f"--config={folder / 'config.json'}",
            folder / "model.safetensors",
            "-o",
            folder / "out",
        )
        tensors, _ = read_safetensors(folder / "out" / "model.safetensors")
    return tensors["0.weight"][1] != 0


def main() -> None:
    weight = np.random.default_rng(1).standard_normal((20, 30), dtype=np.float32)
    with servers.ServerProcess() as server:
        listed = {entry["name"]: entry for entry in ctl(server.address, "algorithms")["algorithms"]}
        assert {option["name"] for option in listed["cutoff"]["options"]} == {"cutoff"}
        kept = np.abs(weight) >= 0.5
        np.testing.assert_array_equal(mask_from_torch(server.address, weight), kept)
        np.testing.assert_array_equal(mask_from_compressionctl(server.address, weight), kept)


if __name__ == "__main__":
    main()
