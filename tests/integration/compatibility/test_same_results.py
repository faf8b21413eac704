"""Masks, codes and exports of a fixed set of models have the SHA-256 that they had before.

A change that keeps the formulas keeps every bit. One that changes a formula on purpose writes the
digests again: run as a program, with client/python/src and tests/testing/python on PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from servers import ServerProcess

DIGESTS = Path(__file__).with_name("same_results.json")
SHAPES = {"conv": (32, 16, 3, 3), "deep": (300, 511), "wide": (64, 1024), "bias_like": (7,)}
DTYPES = ("float32", "float16", "bfloat16", "float64")
KINDS = ("dense", "ties")
PRUNERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "level 0": ("level", {"sparsity": 0}, 0),
    "level 0.37": ("level", {"sparsity": 0.37}, 0),
    "level 0.9": ("level", {"sparsity": 0.9}, 0),
    "level 1": ("level", {"sparsity": 1}, 0),
    "agp 3": ("agp", {"final_sparsity": 0.8, "end_epoch": 10}, 3),
    "agp 10": ("agp", {"initial_sparsity": 0.1, "final_sparsity": 0.8, "end_epoch": 10}, 10),
}
QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("naive", {}),
    **{f"dorefa {bits}": ("dorefa", {"quant_bits": bits}) for bits in (1, 2, 4, 8)},
    **{
        f"qat {bits} {scheme}": ("qat", {"quant_bits": bits, "quant_scheme": scheme})
        for bits in (2, 4, 8, 16)
        for scheme in (
            "per_tensor_affine",
            "per_tensor_symmetric",
            "per_channel_affine",
            "per_channel_symmetric",
        )
    },
    "qat groups": (
        "qat",
        {"quant_bits": 4, "quant_scheme": "per_channel_symmetric", "group_size": 32},
    ),
}
GROUPED = ("wide",)  # the group size divides a channel
EXPORTS = {
    "level 0.9": ("safetensors", "pth", "sparse", "masks", "report"),
    "qat 4 per_channel_symmetric": ("safetensors", "pth", "compressed-tensors", "onnx", "report"),
    "qat 8 per_tensor_affine": ("compressed-tensors", "onnx"),
    "dorefa 4": ("safetensors", "pth"),
}


def weight(name: str, dtype: str, kind: str) -> nc.Tensor:
    """Numbers around 0, from integers alone; in "ties" most magnitudes are there many times."""
    random = np.random.RandomState(sum(map(ord, name + dtype + kind)))
    values = random.randint(-(2**20), 2**20, size=SHAPES[name]).astype(np.float64) / 2**20
    values = np.round(values * 8) / 8 if kind == "ties" else values**3
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32) >> 16
        return nc.Tensor(bits.astype(np.uint16), dtype, SHAPES[name])
    return nc.Tensor(values.astype(dtype), dtype, SHAPES[name])


def digest(*parts: Any) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, (bytes, memoryview)):
            sha256.update(part)
        else:
            array = np.asarray(part)
            sha256.update(f"{array.dtype.str} {array.shape} ".encode())
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def bound(
    client: nc.Client, algorithm: str, options: dict[str, Any], dtype: str
) -> tuple[nc.Session, list[str]]:
    names = list(GROUPED) if "group_size" in options else list(SHAPES)
    layers = [nc.Layer(name, "Linear", SHAPES[name], dtype=dtype) for name in names]
    return client.bind_model(algorithm, [options], layers, framework="pytorch"), names


def mask_digests(client: nc.Client) -> Iterator[tuple[str, str]]:
    for case, (algorithm, options, epoch) in PRUNERS.items():
        for dtype in DTYPES:
            for kind in KINDS:
                session, names = bound(client, algorithm, options, dtype)
                with session:
                    session.update_epoch(epoch)
                    masks = session.calc_mask({name: weight(name, dtype, kind) for name in names})
                bits = [masks[name].bits for name in names]
                yield f"mask, {case}, {dtype}, {kind}", digest(*bits)


def code_digests(client: nc.Client) -> Iterator[tuple[str, str]]:
    for case, (algorithm, options) in QUANTIZERS.items():
        for dtype in DTYPES:
            for kind in KINDS:
                session, names = bound(client, algorithm, options, dtype)
                weights = {name: weight(name, dtype, kind) for name in names}
                with session:
                    codes = session.quantize_weight(weights)
                    values = session.quantize_weight(weights, reply="values")
                parts: list[Any] = []
                for name in names:
                    q = codes[name]
                    parts += [q.codes, q.bits, values[name].values]
                    parts += [x for x in (q.scale, q.zero_point) if x is not None]
                yield f"codes, {case}, {dtype}, {kind}", digest(*parts)


def export_digests(client: nc.Client, folder: Path) -> Iterator[tuple[str, str]]:
    for case, formats in EXPORTS.items():
        algorithm, options = (PRUNERS.get(case) or QUANTIZERS[case])[:2]
        for dtype in ("float32", "bfloat16"):
            for format in formats:
                layers = [nc.Layer("deep", "Linear", SHAPES["deep"], dtype=dtype)]
                weights = {"deep": weight("deep", dtype, "dense")}
                with client.bind_model(algorithm, [options], layers) as session:
                    if algorithm == "level":
                        session.calc_mask(weights)
                    else:
                        session.quantize_weight(weights, reply="parameters")
                    if format == "masks":
                        weights = {}
                    if format in ("safetensors", "pth", "compressed-tensors"):
                        weights["bias"] = weight("bias_like", "float32", "dense")
                    named = {"names": {"deep": "deep.weight"}} if weights else None
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)
                        paths = session.export(
                            folder / f"{case} {dtype} {format}", weights, format, options=named
                        )
                    content = [
                        part
                        for path in sorted(paths)
                        for part in (path.name.encode(), path.read_bytes())
                    ]
                yield f"export, {case}, {dtype}, {format}", digest(*content)


def digests() -> dict[str, str]:
    with (
        ServerProcess() as server,
        nc.Client(server.address, timeout=60) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        return {
            **dict(mask_digests(client)),
            **dict(code_digests(client)),
            **dict(export_digests(client, Path(folder))),
        }


@pytest.fixture(scope="module")
def now() -> dict[str, str]:
    return digests()


def test_every_result_has_the_bits_it_had(now: dict[str, str]) -> None:
    recorded = json.loads(DIGESTS.read_text())
    assert recorded.keys() == now.keys()
    assert [case for case in recorded if recorded[case] != now[case]] == []


def test_different_cases_have_different_results(now: dict[str, str]) -> None:
    """Else the digests would be of nothing: but for types, a mask of all or none is one."""
    masks = {case: value for case, value in now.items() if case.startswith("mask")}
    trivial = {case for case in masks if ", level 0," in case or ", level 1," in case}
    distinct = {value for case, value in now.items() if case not in trivial}
    assert len(distinct) > 0.9 * (len(now) - len(trivial))


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(digests(), indent=1) + "\n")
