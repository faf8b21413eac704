"""Models in Hugging Face's folders, compressed by compressionctl from folder to folder."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
import servers
from nni_compression.values import plan
from safetensors_files import Tensors, read_safetensors, write_safetensors

ROOT = Path(__file__).resolve().parents[3]
BINARY = os.environ.get("COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl")
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
CODES = [
    {"quant_bits": 4, "quant_scheme": "per_channel_symmetric", "op_types": ["default"]},
    {"exclude": True, "op_names": ["model.embed_tokens.weight"]},
]
INDEX = "model.safetensors.index.json"
EMBEDDINGS = "model.embed_tokens.weight"
# Python writes numbers that JSON lacks, and digits that a double lacks.
CONFIG = (
    '{\n  "model_type": "llama",\n  "b": [1e-05, 10000.0, Infinity, "NaN \\" {"],\n'
    '  "a": 1000000000000000019884624838656\n}\n'
)
OTHERS = {
    "config.json": CONFIG,
    "tokenizer.json": "{}",
    "modeling_mine.py": "x = 1",
    ".gitattributes": "*.bin",
    "training_args.bin": "no weights",
    "modules.json": '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
    "1_Pooling/config.json": "{}",
    "2_Dense/pytorch_model.bin": "of a module",
}
STALE = {
    "pytorch_model.bin": "old",
    "pytorch_model.bin.index.json": "{}",
    "tf_model.h5": "old",
    "onnx/model.onnx": "old",
    ".git/objects/pack": "old",
    "checkpoint-500/optimizer.pt": "old",
    "extra/model.gguf": "old",
}


def ctl(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(BINARY), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **options
    )


def run_json(*arguments: object) -> Any:
    """Runs a command that has to work, with --json."""
    done = ctl("--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _server(server_address: str) -> None:
    """Every test here has a server."""


def bf16(values: np.ndarray) -> np.ndarray:
    """The bits of the numbers, cut to bfloat16."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def tensors_of(layers: int = 4, rows: int = 64, columns: int = 96) -> Tensors:
    """A language model in bfloat16, whose lm_head is tied to its embeddings."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> tuple[str, np.ndarray]:
        return "BF16", bf16(random.standard_normal(shape))

    tensors: Tensors = {EMBEDDINGS: weight(160, columns)}
    for i in range(layers):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = weight(rows, columns)
        tensors[f"model.layers.{i}.norm.weight"] = ("F32", np.ones(columns + 1, np.float32))
        tensors[f"model.layers.{i}.mlp.up_proj.bias"] = weight(rows + 1)
        tensors[f"model.layers.{i}.steps"] = ("I64", np.array(i, np.int64))
    return tensors


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_shards(folder: Path, tensors: Tensors, count: int = 3) -> dict[str, Any]:
    """Shards and their index, as transformers writes them; returns the index."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for s in range(count):
        file = f"model-{s + 1:05}-of-{count:05}.safetensors"
        part = names[len(names) * s // count : len(names) * (s + 1) // count]
        part.sort(key=lambda name: -tensors[name][1].itemsize)  # aligned
        write_safetensors(folder / file, {name: tensors[name] for name in part}, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(array.nbytes for _, array in tensors.values())
    index = {"metadata": {"total_parameters": 7, "total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return index


def read_model(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """All tensors of the shards of a folder, which its index describes, and the index."""
    index = json.loads((folder / INDEX).read_text())
    tensors: Tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        part, metadata = read_safetensors(folder / file)
        assert metadata["format"] == "pt"
        assert {name: index["weight_map"][name] for name in part} == dict.fromkeys(part, file)
        tensors.update(part)
    total = sum(array.nbytes for _, array in tensors.values())
    assert index["metadata"]["total_size"] == total
    return tensors, index


def pruned(tensors: Tensors, names: set[str], sparsity: float = 0.5) -> Tensors:
    """The tensors with zeros for exactly trunc(n * sparsity) of the smallest of each weight."""
    result = dict(tensors)
    for name in names:
        dtype, bits = tensors[name]
        magnitude = (bits.astype(np.uint32) << 16).view(np.float32)
        order = np.argsort(np.abs(magnitude).ravel(), kind="stable")
        flat = bits.ravel().copy()
        flat[order[: int(flat.size * sparsity)]] = 0
        result[name] = (dtype, flat.reshape(bits.shape))
    return result


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, (dtype, array) in expected.items():
        assert found[name][0] == dtype, name
        assert found[name][1].shape == array.shape, name
        assert found[name][1].tobytes() == array.tobytes(), name


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rules(folder: Path, config_list: object) -> str:
    """--config with the config_list in a file."""
    path = folder / "rules.json"
    path.write_text(json.dumps(config_list))
    return f"--config={path}"


def weights_of(tensors: Tensors) -> set[str]:
    return {n for n, (_, a) in tensors.items() if n.endswith(".weight") and a.ndim > 1}


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Tensors]:
    """A folder with three shards, and all that such folders have in them."""
    folder = tmp_path / "model"
    tensors = tensors_of()
    write_shards(folder, tensors)
    write_files(folder, {**OTHERS, **STALE})
    return folder, tensors


def test_a_folder_with_shards_becomes_one(model, tmp_path):
    folder, tensors = model
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    out = tmp_path / "out"
    report = run_json("prune", "--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", out)
    found, index = read_model(out)
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert index["metadata"]["total_parameters"] == 7
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    assert names_in(out) == {*shards, INDEX, *OTHERS}
    for name, text in OTHERS.items():
        assert (out / name).read_text() == text, name
    assert set(report["files"]) == {str(out / name) for name in (*shards, INDEX)}
    assert set(report["copied"]) == set(OTHERS)
    assert report["not_copied"] == [
        ".git/", "checkpoint-500/", "extra/model.gguf", "onnx/", "pytorch_model.bin",
        "pytorch_model.bin.index.json", "tf_model.h5",
    ]  # fmt: skip
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == before


def test_what_is_written_copied_and_left_out_is_told(model, tmp_path):
    folder, _ = model
    out = tmp_path / "out"
    done = ctl("prune", "--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", f"{out}/")
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}/model-00001-of-" in done.stdout
    assert "copied .gitattributes, 1_Pooling/config.json, " in done.stdout
    assert "not copied, since they may hold the old weights: .git/, checkpoint-500/" in done.stdout
    assert "5 of 5 weights, " in done.stdout


def test_the_index_stands_for_its_folder(model, tmp_path):
    folder, tensors = model
    flags = ["--algorithm=level", rules(tmp_path, LEVEL)]
    done = ctl("prune", *flags, INDEX, "-o", "../out", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, _ = read_model(tmp_path / "out")
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert (tmp_path / "out/tokenizer.json").exists()


def test_a_folder_with_one_file_stays_one(tmp_path):
    folder = tmp_path / "model"
    tensors = tensors_of()
    write_files(folder, OTHERS)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    run_json("prune", "--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", tmp_path / "out")
    found, metadata = read_safetensors(tmp_path / "out/model.safetensors")
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert metadata["format"] == "pt"
    assert names_in(tmp_path / "out") == {"model.safetensors", *OTHERS}


@pytest.mark.parametrize("single", [False, True])
def test_shards_have_at_most_the_size_that_is_given(model, tmp_path, single):
    folder, tensors = model
    source = folder
    if single:
        source = tmp_path / "some.safetensors"
        write_safetensors(source, tensors, {"format": "pt"})
    out = tmp_path / "out"
    flags = ["--algorithm=level", rules(tmp_path, LEVEL), "-o", out]
    run_json("prune", *flags, source, "--shard_size=20KB")
    found, index = read_model(out)
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert (out / "config.json").exists() != single
    for file in set(index["weight_map"].values()):
        part, _ = read_safetensors(out / file)
        assert sum(array.nbytes for _, array in part.values()) <= 20_000 or len(part) == 1
    assert len(set(index["weight_map"].values())) >= 5


@pytest.mark.parametrize("where", ["file", "index"])
def test_names_that_are_tied_stay_in_the_index(tmp_path, where):
    """As save_model writes them: the index has a name, and metadata the tensor that is stored."""
    folder = tmp_path / "model"
    tensors = tensors_of()
    index = write_shards(folder, tensors)
    first = index["weight_map"][EMBEDDINGS]
    index["weight_map"]["lm_head.weight"] = first
    tied = {"lm_head.weight": EMBEDDINGS}
    if where == "index":
        index["metadata"].update(tied)
    else:
        part, _ = read_safetensors(folder / first)
        write_safetensors(folder / first, part, {"format": "pt", **tied})
    (folder / INDEX).write_text(json.dumps(index))
    out = tmp_path / "out"
    run_json("prune", "--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", out)
    found, written = read_model(out)
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert written["weight_map"]["lm_head.weight"] == written["weight_map"][EMBEDDINGS]


def test_the_config_says_how_the_model_is_quantized_and_keeps_the_rest(model, tmp_path):
    folder, _ = model
    out = tmp_path / "out"
    flags = ["--algorithm=qat", rules(tmp_path, CODES), "-o", out, "--format=compressed-tensors"]
    report = run_json("quantize", folder, *flags, "--option=layout=pack-quantized")
    text = (out / "config.json").read_text()
    assert text.startswith(CONFIG[:-3] + ',\n  "quantization_config": {\n    "')
    quantization = json.loads(text)["quantization_config"]
    assert quantization["format"] == "pack-quantized"
    assert quantization["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    assert set(OTHERS) < names_in(out)
    for name, text in OTHERS.items():
        assert name == "config.json" or (out / name).read_text() == text
    assert "config.json" not in report["copied"]


def test_quantized_values_may_be_in_shards_too(model, tmp_path):
    folder, tensors = model
    out = tmp_path / "out"
    flags = ["--algorithm=qat", rules(tmp_path, CODES), "-o", out, "--format=compressed-tensors"]
    run_json("quantize", folder, *flags, "--shard_size=10KB")
    found, _ = read_model(out)
    packed = {n for n in found if n.endswith(".weight_packed")}
    assert packed == {f"{n}_packed" for n in weights_of(tensors) - {EMBEDDINGS}}
    for name in packed:
        prefix = name.rpartition("_packed")[0]
        assert found[f"{prefix}_shape"][1].tolist() == [64, 96]
        words = found[name][1].view(np.uint32)
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        codes = ((words[..., None] >> shifts) & 15).reshape(64, 96).astype(np.float32) - 8
        weight = (tensors[prefix][1].astype(np.uint32) << 16).view(np.float32)
        scale = found[f"{prefix}_scale"][1]
        assert np.abs(codes * scale - weight).max() <= 0.5 * scale.max() + 1e-6


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--option=layout=zip"], 1, 'options.layout is "zip"; it must be one of'),
        (["--option=layot=auto"], 1, "layot"),
        (["--option=layout"], 2, "--option is layout; it must be NAME=VALUE"),
        (["--option=max_shard_bytes=5"], 2, "there is --shard_size"),
        (["--shard_size=two"], 2, "--shard_size is two; it must be a number of bytes"),
        (["--shard_size=0"], 2, "--shard_size is 0"),
        (["--shard_size=1GB", "--format=report"], 2, "--shard_size is for the formats"),
    ],
)
def test_a_wrong_option_is_refused(model, tmp_path, arguments, status, message):
    folder, _ = model
    out = tmp_path / "out"
    flags = ["--algorithm=qat", rules(tmp_path, CODES), "-o", out, "--format=compressed-tensors"]
    done = ctl("quantize", folder, *flags, *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert not out.exists()


def edit_index(folder: Path, **entries: str | None) -> None:
    """Sets or removes entries of the weight_map."""
    index = json.loads((folder / INDEX).read_text())
    for name, file in entries.items():
        index["weight_map"][name] = file
        if file is None:
            del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def spoil_shard(folder: Path, *, add: str = "", remove: str = "") -> None:
    """Adds a tensor to the second shard, or removes one."""
    path = folder / "model-00002-of-00003.safetensors"
    tensors, metadata = read_safetensors(path)
    if add:
        tensors[add] = ("U8", np.zeros(1, np.uint8))
    if remove:
        del tensors[remove]
    write_safetensors(path, tensors, metadata)


SECOND = "model.layers.1.norm.weight"  # is in the second shard
SPOILT = {
    "above": (
        lambda f: edit_index(f, x="../model-00001-of-00003.safetensors"),
        'weight_map["x"] is "../model-00001-of-00003.safetensors"; it must be the name',
    ),
    "absolute": (
        lambda f: edit_index(f, x="/tmp/x.safetensors"),
        'weight_map["x"] is "/tmp/x.safetensors"',
    ),
    "not weights": (lambda f: edit_index(f, x="config.json"), 'weight_map["x"] is "config.json"'),
    "missing shard": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "is model-00002-of-00003.safetensors, and there is no such file",
    ),
    "link out": (
        lambda f: (f / "vocab.txt").symlink_to("/etc/hostname"),
        "vocab.txt is a link to /etc/hostname, which is not in the folder",
    ),
    "shard link out": (
        lambda f: (
            shutil.move(f / "model-00002-of-00003.safetensors", f.parent / "x.safetensors"),
            (f / "model-00002-of-00003.safetensors").symlink_to("../x.safetensors"),
        ),
        "model-00002-of-00003.safetensors is a link to ",
    ),
    "link to a folder": (lambda f: (f / "loop").symlink_to("."), "loop is a link to a folder"),
    "missing tensor": (
        lambda f: spoil_shard(f, remove=SECOND),
        f"model-00002-of-00003.safetensors: tensor {SECOND} is missing",
    ),
    "duplicate tensor": (
        lambda f: spoil_shard(f, add=EMBEDDINGS),
        f"model-00002-of-00003.safetensors: tensor {EMBEDDINGS} is in "
        "model-00001-of-00003.safetensors, too",
    ),
    "unknown tensor": (
        lambda f: spoil_shard(f, add="x"),
        "model-00002-of-00003.safetensors: tensor x is not in the index's weight_map",
    ),
    "wrong file": (
        lambda f: edit_index(f, **{SECOND: "model-00003-of-00003.safetensors"}),
        f"tensor {SECOND} is in model-00003-of-00003.safetensors according to the index",
    ),
    "truncated shard": (
        lambda f: os.truncate(f / "model-00002-of-00003.safetensors", 5000),
        "model-00002-of-00003.safetensors: the file is truncated",
    ),
    "no weights": (
        lambda f: [path.unlink() for path in f.glob("model*")],
        "has neither model.safetensors nor model.safetensors.index.json, but pytorch_model.bin",
    ),
    "two models": (
        lambda f: write_safetensors(f / "model.safetensors", tensors_of()),
        "has model.safetensors and model.safetensors.index.json",
    ),
    "quantized already": (
        lambda f: (f / "config.json").write_text('{"quantization_config": {"quant_method": "q"}}'),
        "config.json: its quantization_config says that the model is quantized already, by q",
    ),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json: parse error"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_broken_folder_is_a_clear_error_and_leaves_nothing(model, tmp_path, case):
    folder, _ = model
    spoil, message = SPOILT[case]
    spoil(folder)
    flags = ["--algorithm=qat", rules(tmp_path, CODES), "--format=compressed-tensors"]
    before = names_in(tmp_path)
    done = ctl("quantize", folder, *flags, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == before


def test_what_is_private_or_executable_stays_so(model, tmp_path):
    folder, _ = model

    def modes(path: Path) -> dict[str, int]:
        return {n: (path / n).stat().st_mode & 0o7777 for n in (*names_in(path), ".", "1_Pooling")}

    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    (folder / "modeling_mine.py").chmod(0o4755)
    (folder / "tokenizer.json").chmod(0o444)
    for options in [], ["--shard_size=20KB"]:
        out = tmp_path / f"out{len(options)}"
        run_json("prune", "--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", out, *options)
        special = {
            ".": 0o700, "1_Pooling": 0o700, "modeling_mine.py": 0o755, "tokenizer.json": 0o444
        }  # fmt: skip
        assert modes(out) == {**dict.fromkeys(names_in(out), 0o600), **special}
    out = tmp_path / "quantized"
    flags = ["--algorithm=qat", rules(tmp_path, CODES), "--format=compressed-tensors"]
    run_json("quantize", *flags, folder, "-o", out)
    assert modes(out)["config.json"] == 0o600


def test_a_shard_alone_is_not_put_into_a_models_folder(model, tmp_path):
    folder, _ = model
    shard = "model-00001-of-00003.safetensors"
    (tmp_path / "copy").mkdir()
    (tmp_path / "link").symlink_to(folder)
    shutil.copy(folder / shard, tmp_path / "copy" / shard)
    flags = ["--algorithm=level", rules(tmp_path, LEVEL)]
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    for source, out, message in (
        (folder, folder, f"{folder} has the index of a model, {INDEX}, which"),
        (folder, tmp_path / "link", f"{tmp_path}/link has the index of a model"),
        (tmp_path / "copy", folder, f"{folder} has the index of a model, {INDEX}, which"),
    ):
        for overwrite in [], ["--overwrite"]:
            done = ctl("prune", *flags, source / shard, "-o", out, *overwrite)
            assert done.returncode == 1
            assert message in done.stderr
            assert {n: (tmp_path / n).read_bytes() for n in names_in(tmp_path)} == before

    out = tmp_path / "out"
    run_json("prune", *flags, folder, "-o", out)
    before = {name: (out / name).read_bytes() for name in names_in(out)}
    flags += ["-o", out, "--overwrite", "--shard_size=10KB"]
    done = ctl("prune", *flags, min(out.glob("*.safetensors")))
    assert done.returncode == 1
    assert f"{out} has the input {out}/model-00001-of-" in done.stderr
    assert {name: (out / name).read_bytes() for name in names_in(out)} == before

    # Formats that are no model, and an earlier result in shards, which is replaced.
    run_json("prune", *flags[:2], folder / shard, "-o", folder, "--format=masks")
    flags[3] = tmp_path / "shards"
    for _ in range(2):
        run_json("prune", *flags, tmp_path / "copy" / shard)


def test_the_links_of_hugging_faces_cache_are_followed(model, tmp_path):
    folder, tensors = model
    snapshot = tmp_path / "hub/models--a--b/snapshots/0123"
    blobs = tmp_path / "hub/models--a--b/blobs"
    blobs.mkdir(parents=True)
    for i, name in enumerate(sorted(names_in(folder))):
        shutil.copy(folder / name, blobs / str(i))
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blobs / str(i), path.parent))
    out = tmp_path / "out"
    for model_path in (snapshot, snapshot / INDEX):
        flags = ["--algorithm=level", rules(tmp_path, LEVEL), "--overwrite"]
        run_json("prune", *flags, model_path, "-o", out)
        found, _ = read_model(out)
        assert_equal(found, pruned(tensors, weights_of(tensors)))
        assert not any(path.is_symlink() for path in out.rglob("*"))
        assert (out / "config.json").read_text() == CONFIG


def test_files_of_a_user_stay_and_an_earlier_result_is_replaced_on_demand(model, tmp_path):
    folder, tensors = model
    out = tmp_path / "out"
    out.mkdir()
    flags = ["--algorithm=level", folder, "-o", out]
    (out / "notes.txt").write_text("mine")
    for overwrite, message in ([], "--overwrite"), (["--overwrite"], "is not an earlier result"):
        done = ctl("prune", *flags, rules(tmp_path, LEVEL), *overwrite)
        assert done.returncode == 1
        assert f"{out} has files in it, such as notes.txt" in done.stderr
        assert message in done.stderr
        assert names_in(out) == {"notes.txt"}

    (out / "notes.txt").unlink()
    run_json("prune", *flags, rules(tmp_path, LEVEL), "--shard_size=20KB")
    first = {name: (out / name).read_bytes() for name in names_in(out)}
    assert ctl("prune", *flags, rules(tmp_path, LEVEL)).returncode == 1
    more = [{"sparsity": 0.75, "op_types": ["default"]}]
    for name in "notes.txt", "1_Pooling/notes.txt":
        (out / name).write_text("mine")
        done = ctl("prune", *flags, rules(tmp_path, more), "--overwrite")
        assert done.returncode == 1
        assert f"{out}/{name} exists, which the new result lacks" in done.stderr
        assert {n: (out / n).read_bytes() for n in names_in(out)} == {**first, name: b"mine"}
        (out / name).unlink()

    run_json("prune", *flags, rules(tmp_path, more), "--overwrite")
    found, index = read_model(out)
    assert_equal(found, pruned(tensors, weights_of(tensors), 0.75))
    assert names_in(out) == {*index["weight_map"].values(), INDEX, *OTHERS}


def test_a_model_that_is_not_a_result_is_never_replaced(model, tmp_path):
    folder, tensors = model
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    before = {name: (other / name).read_bytes() for name in names_in(other)}
    flags = ["--algorithm=level", rules(tmp_path, LEVEL), "--overwrite"]
    done = ctl("prune", *flags, folder, "-o", other)
    assert done.returncode == 1
    assert "is not an earlier result" in done.stderr
    assert {name: (other / name).read_bytes() for name in names_in(other)} == before


@pytest.mark.parametrize("inside", ["", "out", "1_Pooling"])
def test_the_result_is_not_written_into_the_model(model, tmp_path, inside):
    folder, _ = model
    before = names_in(folder)
    flags = ["--algorithm=level", rules(tmp_path, LEVEL), "--overwrite"]
    done = ctl("prune", *flags, folder, "-o", folder / inside)
    assert done.returncode == 1
    assert ("is in the model's folder" if inside else "would replace the input") in done.stderr
    assert names_in(folder) == before


def test_a_full_disk_leaves_nothing(model, tmp_path):
    folder, _ = model

    def no_room() -> None:
        """As a full disk: writes beyond a size fail, without the signal that would kill."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    flags = ["--algorithm=level", rules(tmp_path, LEVEL), "-o", tmp_path / "out"]
    done = ctl("prune", folder, *flags, preexec_fn=no_room)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_killed_leaves_no_model(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    tensors = tensors_of(layers=4, rows=1024, columns=2048)
    write_shards(folder, tensors)
    write_files(folder, OTHERS)
    flags = ["--algorithm=level", rules(tmp_path, LEVEL), folder, "-o", out]
    with servers.ServerProcess() as server:
        address = f"--server={server.address}"
        killed = False
        while not killed:  # in the middle; a run that was faster is repeated
            shutil.rmtree(out, ignore_errors=True)
            command = [BINARY, address, "prune", *flags]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while process.poll() is None and not list(out.glob(".*.partial/*")):
                    pass
                server.stand_still()
                process.kill()
            killed = process.returncode == -signal.SIGKILL
            server.go_on()
        assert all(name.startswith(".") and ".partial/" in name for name in names_in(out))
        (left,) = out.iterdir()
        run_json(address, "prune", *flags)
    shutil.rmtree(left)
    found, index = read_model(out)
    assert_equal(found, pruned(tensors, weights_of(tensors)))
    assert names_in(out) == {*index["weight_map"].values(), INDEX, *OTHERS}


def test_memory_does_not_depend_on_the_size_of_the_model(tmp_path):
    folder = tmp_path / "model"
    shards, size = 12, 16 << 20
    bits = bf16(np.random.default_rng(0).standard_normal((size // 4096, 2048)))
    vectors = ("BF16", np.zeros(size // 8, np.uint16))  # not compressed, and not sent
    tensors: Tensors = {}
    for i in range(shards):
        tensors[f"{i}.weight"] = ("BF16", bits)
        tensors[f"{i}.bias"] = vectors
    write_shards(folder, tensors, shards)
    flags = ["--algorithm=level", rules(tmp_path, LEVEL)]
    peak = 0
    run = [BINARY, "prune", folder, *flags, "-o", tmp_path / "out"]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as process:
        while process.returncode is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            lines = dict(line.split(":", 1) for line in status.splitlines())
            if "VmHWM" in lines:  # not of one that has ended
                peak = int(lines["VmHWM"].split()[0]) * 1024
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
    assert process.returncode == 0
    assert 0 < peak < sum(array.nbytes for _, array in tensors.values()) / 2


def test_embeddings_and_what_is_left_out_are_told(tmp_path):
    folder = tmp_path / "model"
    tensors = tensors_of(layers=2)
    tensors["model.experts"] = ("BF16", np.ones((2, 64, 96), np.uint16))
    tensors["fp8.weight"] = ("F8_E4M3", np.ones((4, 4), np.uint8))
    write_shards(folder, tensors)
    flags = ["--algorithm=level", folder]
    report = run_json("prune", *flags, rules(tmp_path, LEVEL), "-o", tmp_path / "1")
    (warning,) = report["warnings"]
    rule = warning[warning.index("{") : warning.index("}") + 1]
    assert json.loads(rule) == {"exclude": True, "op_names": [EMBEDDINGS]}
    coverage = report["coverage"]
    assert (coverage["compressed"], coverage["weights"]) == (3, 5)
    assert coverage["left_out"] == ["model.experts", "fp8.weight"]

    config = rules(tmp_path, [*LEVEL, json.loads(rule)])
    done = ctl("prune", *flags, config, "-o", tmp_path / "2")
    assert "warning" not in done.stdout
    compressed = 2 * 64 * 96
    share = compressed / (compressed + 160 * 96 + 2 * (97 + 65) + 2 * 64 * 96 + 16)
    percent = int(1000 * share) / 10
    assert (
        f"2 of 5 weights, {percent:g} % of the parameters, are compressed; "
        "not covered: model.experts, fp8.weight; excluded: 1\n"
    ) in done.stdout

    named = rules(tmp_path, [{"sparsity": 0.5, "op_names": [EMBEDDINGS]}])
    assert run_json("prune", *flags, named, "-o", tmp_path / "3")["warnings"] == []


def test_coverage_has_the_words_of_the_python_client(tmp_path, server_address):
    shapes = {f"layers.{i}.weight": (i + 1, 3) for i in range(10)}
    shapes.update({"norm.weight": (5,), "layers.0.bias": (7,), "experts": (2, 3, 4)})
    path = tmp_path / "model.safetensors"
    tensors: Tensors = {name: ("F32", np.ones(shape, np.float32)) for name, shape in shapes.items()}
    write_safetensors(path, tensors)
    rule = {"sparsity": 0.5, "op_names": ["re:layers.[0-4].weight", "norm.weight"]}
    config_list = [rule, {"exclude": True, "op_names": ["layers.1.weight"]}]
    done = ctl(
        "prune", "--algorithm=level", rules(tmp_path, config_list), path, "-o", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr

    layers = [nc.Layer(name=name, op_type="Linear", shape=shape) for name, shape in shapes.items()]
    with (
        nc.Client(server_address) as client,
        client.bind_model("level", config_list, layers) as session,
    ):
        plans = session.plan.layers
    parameters = [
        plan.Parameter(name, "Linear", int(np.prod(shape)), len(shape), name)
        for name, shape in shapes.items()
    ]
    # A file does not tell what types its layers have.
    line = str(plan.Coverage.of(parameters, plans)).replace(" (Linear)", "")
    assert "and 1 more; excluded: 1" in line
    assert line in done.stdout


def test_layers_with_their_outputs_in_the_last_dimension_are_told(tmp_path):
    folder = tmp_path / "model"
    name = "transformer.h.0.attn.c_attn.weight"
    tensors: Tensors = {name: ("F32", np.ones((32, 96), np.float32))}
    write_files(folder, {"config.json": '{"model_type": "gpt2"}'})
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = rules(tmp_path, [{**CODES[0], "quant_bits": 8}])
    flags = ["--algorithm=qat", config, folder]
    done = ctl("quantize", *flags, "-o", tmp_path / "o", "--format=compressed-tensors")
    assert done.returncode == 1
    assert f"weight {name}: transformers does not load compressed-tensors" in done.stderr
    assert not (tmp_path / "o").exists()
    (warning,) = run_json("quantize", *flags, "-o", tmp_path / "o")["warnings"]
    assert "the scales of channels and groups are those of the first, its inputs" in warning
    config = rules(tmp_path, [{"quant_bits": 8, "op_types": ["default"]}])
    flags = ["--algorithm=qat", config, folder]
    assert run_json("quantize", *flags, "-o", tmp_path / "p")["warnings"] == []


def test_other_formats_of_a_folder_are_files_alone(model, tmp_path):
    folder, tensors = model
    flags = ["--algorithm=level", rules(tmp_path, LEVEL), folder]
    run_json("prune", *flags, "-o", tmp_path / "masks", "--format=masks")
    assert names_in(tmp_path / "masks") == {"masks.safetensors", "masks.packed.safetensors"}
    run_json("prune", *flags, "-o", tmp_path / "sparse", "--format=sparse")
    assert names_in(tmp_path / "sparse") == {"model.sparse.safetensors", *OTHERS}
    run_json("prune", *flags, "-o", tmp_path / "report", "--format=report")
    assert names_in(tmp_path / "report") == {"report.html", "report.json"}


def test_a_trainers_session_is_applied_to_a_folder(model, tmp_path, server_address):
    folder, tensors = model
    layer = "model.layers.2.mlp.up_proj"
    bits = tensors[f"{layer}.weight"][1]
    spec = nc.Layer(name=layer, op_type="Linear", shape=bits.shape, dtype="bfloat16")
    with (
        nc.Client(server_address) as client,
        client.bind_model("level", [{"sparsity": 0.5}], [spec]) as session,
    ):
        session.calc_mask({layer: nc.Tensor(bits.tobytes(), "bfloat16", bits.shape)})
        run_json("export", folder, f"--session={session.id}", "-o", tmp_path / "out")
    found, _ = read_model(tmp_path / "out")
    assert_equal(found, pruned(tensors, {f"{layer}.weight"}))
    assert (tmp_path / "out/tokenizer.json").exists()
