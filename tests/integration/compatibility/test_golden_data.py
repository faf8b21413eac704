"""Data directories that older servers wrote still load.

Run as a program, with client/python/src and tests/testing/python on PYTHONPATH, this writes the
directory of the present version, golden/v1, once and for ever.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import nni_compression as nc
from servers import ROOT, ServerProcess

GOLDEN = ROOT / "tests/server/storage/golden"
SMALL = nc.Layer("small", "Linear", (8, 8))
LARGE = nc.Layer("large", "Linear", (512, 640))  # its mask is a file


def weight(layer: nc.Layer) -> np.ndarray:
    """1, 2, 3, ...: the front is pruned first."""
    return np.arange(1, np.prod(layer.shape) + 1, dtype=np.float32).reshape(layer.shape)


def write(directory: Path) -> None:
    """A pruner in its fourth epoch, a quantizer with a scale, a session that was closed."""
    ids = {}
    with (
        ServerProcess(f"--data_dir={directory}") as server,
        nc.Client(server.address, timeout=60) as client,
    ):
        rule = [{"final_sparsity": 0.5, "end_epoch": 4}]
        pruner = client.bind_model("agp", rule, [SMALL, LARGE], labels={"kind": "pruner"})
        pruner.update_epoch(4)
        pruner.calc_mask({layer.name: weight(layer) for layer in (SMALL, LARGE)})
        quantizer = client.bind_model("naive", [{}], [SMALL], labels={"kind": "quantizer"})
        quantizer.quantize_weight({"small": weight(SMALL)})
        closed = client.bind_model("level", [{"sparsity": 0.25}], [SMALL])
        closed.calc_mask({"small": weight(SMALL)})
        closed.close()
        ids = {"pruner": pruner.id, "quantizer": quantizer.id, "closed": closed.id}
    for name, session_id in ids.items():
        (directory / f"{name}.id").write_text(session_id + "\n")
    (directory / "lock").unlink()


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_sessions_of_every_version_go_on(version: str, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    shutil.copytree(GOLDEN / version, directory)
    ids = {path.stem: path.read_text().strip() for path in directory.glob("*.id")}
    with (
        ServerProcess(f"--data_dir={directory}") as server,
        nc.Client(server.address, timeout=60) as client,
    ):
        assert {s.id for s in client.sessions()} == {ids["pruner"], ids["quantizer"]}
        # Other weights than those that decided: the masks have to be the stored ones.
        masks = client.join(ids["pruner"]).calc_mask(
            {layer.name: -weight(layer)[::-1].copy() for layer in (SMALL, LARGE)}
        )
        for layer in (SMALL, LARGE):
            kept = masks[layer.name].to_numpy().ravel()
            assert not kept[: kept.size // 2].any()
            assert kept[kept.size // 2 :].all()
        quantized = client.join(ids["quantizer"]).quantize_weight({"small": weight(SMALL) / 2})
        assert quantized["small"].scale == np.float32(64) / np.float32(127)
        report = client.session_info(ids["closed"])
        assert report.layers[0].achieved_sparsity == 0.25


if __name__ == "__main__":
    write(GOLDEN / "v1")
