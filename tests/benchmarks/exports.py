"""A checkpoint through compressionctl, against copying it.

$EXPORT_GIGABYTES (2) is its size, about.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import numpy

import nni_compression as nc
from harness import Benchmark, Goal, Line, rates

GIGABYTES = float(os.environ.get("EXPORT_GIGABYTES", "2"))
SHAPE = (8192, 4096)
LAYERS = max(1, round(GIGABYTES * 1e9 / (4 * SHAPE[0] * SHAPE[1])))
SIZE = LAYERS * 4 * SHAPE[0] * SHAPE[1]
ROUNDS = 3


def run(client: nc.Client) -> list[Benchmark]:
    copied, pruned, peaks = [], [], []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        write_checkpoint(folder / "model.safetensors")
        rules = [{"sparsity": 0.8, "op_types": ["default"]}]
        (folder / "config.json").write_text(json.dumps(rules))
        for _ in range(ROUNDS):
            copied.append(copy(folder))
            elapsed, peak = prune(folder, client.server)
            pruned.append(elapsed)
            peaks.append(peak / 1e6)
        share = (folder / "out/model.sparse.safetensors").stat().st_size / SIZE
    peak_name = "the client's peak of anonymous memory"
    return [
        Benchmark(
            f"A checkpoint of {SIZE / 1e9:.1f} GB through `compressionctl prune --format sparse`",
            [
                *rates(
                    {"copying the file": copied, "pruning it": pruned}, "copying the file", SIZE
                ),
                Line(peak_name, "MB", peaks),
                Line("size of the result", "x", [share]),
            ],
            note="Copying ends, as pruning does, when the bytes are on the disk.",
            goals=[Goal("E1", peak_name, 300, peaks, at_least=False, unit="MB")],
        )
    ]


def write_checkpoint(path: Path) -> None:
    """Writes a .safetensors file of SIZE bytes and a header."""
    size = SIZE // LAYERS
    header = {
        f"{i}.weight": {"dtype": "F32", "shape": SHAPE, "data_offsets": [i * size, (i + 1) * size]}
        for i in range(LAYERS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i in range(LAYERS):
            file.write(numpy.random.default_rng(i).standard_normal(SHAPE, numpy.float32))


def copy(folder: Path) -> float:
    """Seconds."""
    start = time.perf_counter()
    subprocess.run(["cp", folder / "model.safetensors", folder / "copy"], check=True)
    subprocess.run(["sync", folder / "copy"], check=True)
    elapsed = time.perf_counter() - start
    (folder / "copy").unlink()
    return elapsed


def prune(folder: Path, server: str) -> tuple[float, int]:
    """Seconds, and the largest RssAnon of the client in bytes."""
    command = [
        os.environ["COMPRESSIONCTL_BINARY"], f"--server={server}", "prune", "--algorithm=level",
        f"--config={folder / 'config.json'}", folder / "model.safetensors", "-o", folder / "out",
        "--format=sparse", "--overwrite",
    ]  # fmt: skip
    peak = 0
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.005)
    if process.returncode != 0:
        raise RuntimeError("compressionctl failed")
    return time.perf_counter() - start, peak
