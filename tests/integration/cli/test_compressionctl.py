"""compressionctl as a shell sees it: real binaries, files on disk, exit status, standard error."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nni_compression as nc
import servers
from safetensors_files import Tensors, read_safetensors, write_safetensors

ROOT = Path(__file__).resolve().parents[3]
BINARY = Path(
    os.environ.get("COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl")
)
LEVEL = [{"sparsity": 0.8, "op_types": ["default"]}]


def ctl(*arguments: object, server: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs compressionctl; without `server` the environment says where it is."""
    command = [str(BINARY), *([f"--server={server}"] if server else []), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run_json(*arguments: object) -> Any:
    """Runs a command that has to work, with --json."""
    done = ctl("--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _server(server_address: str) -> None:
    """Every test here has a server."""


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Tensors]:
    """A checkpoint with weights of two types and with what must pass through as it is."""
    random = np.random.default_rng(0)
    tensors: Tensors = {
        "norm.running_mean": ("F32", random.standard_normal(7).astype(np.float32)),
        "norm.num_batches_tracked": ("I64", np.array(12, np.int64)),
        "half.weight": ("F16", random.standard_normal((3, 5)).astype(np.float16)),
        "fc.bias": ("F32", np.ones(3, np.float32)),
        "fc.weight": ("F32", random.standard_normal((700, 1001)).astype(np.float32)),
        "norm.weight": ("F32", np.full(7, 2, np.float32)),
        "empty": ("F32", np.empty((0, 4), np.float32)),
        "ids": ("U32", np.arange(3, dtype=np.uint32)),
        "flag": ("BOOL", np.array([True, False, True])),
        "conv.weight": ("F64", random.standard_normal((2, 3, 3, 3))),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    return path, tensors


def write_config(folder: Path, config_list: object) -> Path:
    """The config_list in a file."""
    path = folder / "config.json"
    path.write_text(json.dumps(config_list))
    return path


def smallest(array: np.ndarray, sparsity: float) -> np.ndarray:
    """Where the level pruner removes: exactly trunc(n * sparsity), of ties the first."""
    order = np.argsort(np.abs(array.astype(np.float64)).ravel(), kind="stable")
    removed = np.zeros(array.size, bool)
    removed[order[: int(array.size * sparsity)]] = True
    return removed.reshape(array.shape)


def assert_same(tensors: Tensors, expected: Tensors, names: set[str]) -> None:
    """The named tensors have their dtype, shape and bytes."""
    for name in names:
        assert tensors[name][0] == expected[name][0], name
        assert tensors[name][1].shape == expected[name][1].shape, name
        assert tensors[name][1].tobytes() == expected[name][1].tobytes(), name


WEIGHTS = {"fc.weight", "conv.weight", "half.weight"}


def test_prune_zeroes_exactly_the_smallest_and_leaves_all_else(model, tmp_path):
    path, tensors = model
    config = write_config(tmp_path, LEVEL)
    before = path.read_bytes()
    done = ctl("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "fc.weight" in done.stdout
    assert "80.00 %" in done.stdout
    assert done.stderr == ""  # no progress bar where there is no terminal
    result, metadata = read_safetensors(tmp_path / "out/model.safetensors")
    assert metadata["format"] == "pt"
    assert set(result) == set(tensors)
    assert_same(result, tensors, set(tensors) - WEIGHTS)
    for name in WEIGHTS:
        removed = smallest(tensors[name][1], 0.8)
        expected = np.where(removed, 0, tensors[name][1])
        assert np.array_equal(result[name][1], expected), name
    assert path.read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert run_json("sessions")["sessions"] == []


@pytest.mark.parametrize(
    ("command", "algorithm", "rule"),
    [("prune", "level", {"sparsity": 0.8}), ("quantize", "naive", {"quant_bits": 8})],
)
def test_a_rule_without_filters_leaves_biases_and_norms_as_they_are(
    model, tmp_path, command, algorithm, rule
):
    path, tensors = model
    config = write_config(tmp_path, [rule])
    flags = [f"--algorithm={algorithm}", f"--config={config}", "-o", tmp_path / "out"]
    done = ctl(command, path, *flags)
    assert done.returncode == 0, done.stderr
    vectors = {"norm.running_mean", "fc.bias", "norm.weight"}
    warning = f"{len(vectors)} weights of one dimension out"
    assert any(
        line.startswith("warning: ") and warning in line for line in done.stdout.splitlines()
    )
    result, _ = read_safetensors(tmp_path / "out/model.safetensors")
    assert_same(result, tensors, set(tensors) - WEIGHTS)
    for name in WEIGHTS:
        assert not np.array_equal(result[name][1], tensors[name][1]), name


def test_a_vector_is_compressed_when_a_rule_names_it(model, tmp_path):
    path, _ = model
    config = write_config(tmp_path, [{"sparsity": 0.5, "op_names": ["norm.running_mean"]}])
    report = run_json("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path / "o")
    assert [layer["name"] for layer in report["layers"]] == ["norm.running_mean"]


def test_tensors_that_are_decided_about_together_are_sent_in_one_call(tmp_path):
    """More than the weights whose answers are kept in memory elsewhere, in several files."""
    random = np.random.default_rng(1)
    shapes = {f"{i}.weight": (8_000 + i, 1_500) for i in range(7)}  # 48 MB each
    arrays = {
        name: (10.0**i * random.standard_normal(shape, dtype=np.float32))
        for i, (name, shape) in enumerate(shapes.items())
    }
    folder = tmp_path / "model"
    folder.mkdir()
    shard_of = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(arrays)
    }
    for shard in set(shard_of.values()):
        inside = {n: ("F32", a) for n, a in arrays.items() if shard_of[n] == shard}
        write_safetensors(folder / shard, inside, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": shard_of})
    )
    config = write_config(tmp_path, [{"sparsity": 0.5}])
    out = tmp_path / "out"
    flags = ["--algorithm=global_magnitude", "--config", config, "-o", out, "--format=masks"]
    report = run_json("prune", folder, *flags)
    magnitudes = np.concatenate([np.abs(array).ravel() for array in arrays.values()])
    threshold = np.partition(magnitudes, magnitudes.size // 2)[magnitudes.size // 2]
    pruned = {
        layer["name"]: round(layer["achieved_sparsity"] * arrays[layer["name"]].size)
        for layer in report["layers"]
    }
    assert sum(pruned.values()) == magnitudes.size // 2
    for name, array in arrays.items():
        assert abs(pruned[name] - int((np.abs(array) < threshold).sum())) <= 1000  # ties


def test_a_bad_weight_fails_all_that_are_decided_about_with_it(model, tmp_path):
    path, tensors = model
    tensors["fc.weight"][1][3, 7] = np.nan
    write_safetensors(path, tensors, {"format": "pt"})
    config = write_config(tmp_path, LEVEL)
    flags = ["--algorithm=global_magnitude", "--config", config, "-o", tmp_path / "out"]
    done = ctl("prune", path, *flags)
    assert done.returncode == 1
    assert 'layer "fc.weight": element 3010 is nan' in done.stderr
    assert not (tmp_path / "out").exists()


def test_rounds_end_where_the_last_one_begins(model, tmp_path):
    path, _ = model
    rule = {"sparsity": 0.8, "rounds": 3, "frequency": 2, "start_epoch": 1}
    for schedule in (rule, {**rule, "schedule_unit": "step", "start_step": 5}):
        schedule = dict(schedule)
        if "schedule_unit" in schedule:
            del schedule["start_epoch"]
        config = write_config(tmp_path, [schedule])
        report = run_json(
            "prune", path, "--algorithm=lottery_ticket", "--config", config,
            "-o", tmp_path / "out", "--overwrite",
        )  # fmt: skip
        (layer,) = [layer for layer in report["layers"] if layer["name"] == "fc.weight"]
        assert layer["achieved_sparsity"] == pytest.approx(0.8, abs=1e-4)


def test_prune_reports_json(model, tmp_path):
    path, _ = model
    config = write_config(
        tmp_path, [*LEVEL, {"exclude": True, "op_names": ["fc.weight", "no.such"]}]
    )
    report = run_json("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path / "o")
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert set(layers) == WEIGHTS - {"fc.weight"}
    assert layers["conv.weight"]["shape"] == [2, 3, 3, 3]
    assert layers["conv.weight"]["target_sparsity"] == 0.8
    assert layers["conv.weight"]["achieved_sparsity"] == 43 / 54
    assert report["files"] == [str(tmp_path / "o/model.safetensors")]
    assert any("no.such" in warning for warning in report["warnings"])


def test_prune_writes_masks(model, tmp_path):
    path, tensors = model
    config = write_config(tmp_path, LEVEL)
    done = ctl(
        "prune", "--algorithm=level", f"--config={config}", path, "-o", tmp_path / "masks",
        "--format=masks",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "masks")) == [
        "masks.packed.safetensors",
        "masks.safetensors",
    ]
    masks, _ = read_safetensors(tmp_path / "masks/masks.safetensors")
    assert set(masks) == WEIGHTS
    for name, (_, mask) in masks.items():
        assert np.array_equal(mask == 0, smallest(tensors[name][1], 0.8)), name


def test_prune_writes_kept_weights_only(model, tmp_path):
    path, tensors = model
    config = write_config(tmp_path, LEVEL)
    done = ctl(
        "prune", "--algorithm=level", f"--config={config}", path, "-o", tmp_path / "out",
        "--format=sparse",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = tmp_path / "out/model.sparse.safetensors"
    assert result.stat().st_size < 0.24 * path.stat().st_size
    loaded = nc.load_sparse(result)
    assert set(loaded) == set(tensors)
    for name, (_, array) in tensors.items():
        expected = array.copy()
        if name in WEIGHTS:
            expected[smallest(array, 0.8)] = 0
        assert isinstance(loaded[name], np.ndarray), name
        assert loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == expected.tobytes(), name


def test_prune_of_a_large_checkpoint_takes_little_memory_in_the_client(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((4, 4096, 2048), dtype=np.float32)
    write_safetensors(path, {f"{i}.weight": ("F32", part) for i, part in enumerate(weight)})
    config = write_config(tmp_path, LEVEL)
    command = [
        BINARY, "prune", "--algorithm=level", f"--config={config}", path, "-o", tmp_path / "out",
        "--format=sparse",
    ]  # fmt: skip
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
    assert process.returncode == 0
    assert 0 < peak < weight.nbytes / 2
    assert (tmp_path / "out/model.sparse.safetensors").stat().st_size < 0.24 * weight.nbytes


def test_prune_writes_a_state_dict(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((30, 40), dtype=np.float32)
    steps = np.array(12, np.int64)
    write_safetensors(path, {"fc.weight": ("F32", weight), "steps": ("I64", steps)})
    config = write_config(tmp_path, LEVEL)
    flags = ["--algorithm=level", f"--config={config}", "-o", tmp_path / "o", "--format=pth"]
    run_json("prune", path, *flags)
    state = torch.load(tmp_path / "o/model.pth", weights_only=True)
    removed = smallest(weight, 0.8)
    assert np.array_equal(state["fc.weight"].numpy(), np.where(removed, 0, weight))
    assert state["steps"].item() == 12
    assert state["steps"].shape == ()
    masks = torch.load(tmp_path / "o/masks.pth", weights_only=True)
    assert np.array_equal(masks["fc.weight"]["weight"].numpy() == 0, removed)


def test_a_state_dict_of_types_that_the_service_lacks_is_refused(model, tmp_path):
    path, _ = model
    config = write_config(tmp_path, LEVEL)
    flags = ["--algorithm=level", f"--config={config}", "-o", tmp_path / "o", "--format=pth"]
    done = ctl("prune", path, *flags)
    assert done.returncode == 1
    assert "use the format safetensors or sparse" in done.stderr
    assert not (tmp_path / "o").exists()


def test_prune_and_quantize_write_reports(model, tmp_path):
    path, _ = model
    for command, algorithm, rule in [
        ("prune", "level", {"sparsity": 0.8}),
        ("quantize", "qat", {"quant_bits": 4}),
    ]:
        config = write_config(tmp_path, [{**rule, "op_types": ["default"]}])
        out = tmp_path / command
        flags = [f"--algorithm={algorithm}", f"--config={config}", "-o", out, "--format=report"]
        run_json(command, path, *flags)
        report = json.loads((out / "report.json").read_text())
        assert {e["name"] for e in report["layers"] if e["compressed"]} == WEIGHTS
        assert "<!doctype html>" in (out / "report.html").read_text()


def test_quantize_writes_packed_codes_and_what_was_not_quantized(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((30, 64), dtype=np.float32)
    bias = np.ones(30, np.float32)
    write_safetensors(path, {"fc.weight": ("F32", weight), "fc.bias": ("F32", bias)})
    config = write_config(tmp_path, [{"quant_bits": 4, "op_types": ["default"]}])
    out = tmp_path / "out"
    flags = ["--algorithm=qat", f"--config={config}", "-o", out, "--format=compressed-tensors"]
    run_json("quantize", path, *flags)
    content = (out / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    assert header["fc.weight_packed"]["shape"] == [30, 8]
    assert "fc.weight" not in header
    first, last = header["fc.bias"]["data_offsets"]
    assert content[begin + first : begin + last] == bias.tobytes()
    assert json.loads((out / "config.json").read_text())["quantization_config"]


def test_a_trainers_session_is_exported(tmp_path, server_address):
    weight = np.random.default_rng(0).standard_normal((30, 40), dtype=np.float32)
    path = tmp_path / "model.safetensors"
    bias = np.ones(30, np.float32)
    write_safetensors(path, {"fc.weight": ("F32", weight), "fc.bias": ("F32", bias)})
    layer = nc.Layer(name="fc", op_type="Linear", shape=weight.shape)
    with (
        nc.Client(server_address) as client,
        client.bind_model("level", [{"sparsity": 0.5}], [layer]) as session,
    ):
        mask = session.calc_mask({"fc": weight})["fc"].to_numpy()
        flags = [f"--session={session.id}", "-o", tmp_path / "out"]
        for format in ("safetensors", "sparse"):
            run_json("export", path, *flags, f"--format={format}")
        run_json("export", *flags, "--format=masks")
        assert session.info().state == "active"
    result, _ = read_safetensors(tmp_path / "out/model.safetensors")
    assert set(result) == {"fc.weight", "fc.bias"}
    assert np.array_equal(result["fc.weight"][1], np.where(mask, weight, 0))
    loaded = nc.load_sparse(tmp_path / "out/model.sparse.safetensors")
    assert np.array_equal(loaded["fc.weight"], result["fc.weight"][1])
    assert np.array_equal(loaded["fc.bias"], bias)
    assert (tmp_path / "out/masks.safetensors").exists()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((1000, 1000), dtype=np.float32)
    write_safetensors(path, {"fc.weight": ("F32", weight)})
    config = write_config(tmp_path, LEVEL)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("old")

    def no_room() -> None:
        """As a full disk: writes beyond a size fail, without the signal that would kill."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    flags = ["--algorithm=level", f"--config={config}", "-o", out, "--overwrite"]
    done = subprocess.run(
        [BINARY, "prune", path, *flags],
        capture_output=True, text=True, timeout=120, check=False, preexec_fn=no_room,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert os.listdir(out) == ["model.safetensors"]
    assert (out / "model.safetensors").read_text() == "old"


def test_files_of_an_earlier_result_are_replaced_only_on_demand(tmp_path):
    """So that shards of a model, one after the other, do not take each other's place."""
    config = write_config(tmp_path, LEVEL)
    out = tmp_path / "out"
    for shard, overwrite, status in ((1, [], 0), (2, [], 1), (2, ["--overwrite"], 0)):
        path = tmp_path / f"model-{shard}-of-2.safetensors"
        weight = np.random.default_rng(shard).standard_normal((30, 40), dtype=np.float32)
        write_safetensors(path, {f"{shard}.weight": ("F32", weight)})
        before = {file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else {}
        done = ctl("prune", path, "--algorithm=level", f"--config={config}", "-o", out, *overwrite)
        assert done.returncode == status, done.stderr
        if status == 1:
            assert f"{out}/model.safetensors already exists; choose another" in done.stderr
            assert "--overwrite" in done.stderr
            assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        else:
            tensors, _ = read_safetensors(out / "model.safetensors")
            assert list(tensors) == [f"{shard}.weight"]
        assert os.listdir(out) == ["model.safetensors"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_models_own_config_stays(tmp_path, overwrite):
    path = tmp_path / "dense.safetensors"
    weight = np.random.default_rng(0).standard_normal((30, 64), dtype=np.float32)
    write_safetensors(path, {"fc.weight": ("F32", weight)})
    rules = write_config(tmp_path, [{"quant_bits": 8, "op_types": ["default"]}])
    out = tmp_path / "model"
    out.mkdir()
    own = json.dumps({"model_type": "bert", "quantization_config": {"quant_method": "mine"}})
    (out / "config.json").write_text(own)
    flags = ["--algorithm=qat", f"--config={rules}", "-o", out, "--format=compressed-tensors"]
    done = ctl("quantize", path, *flags, *overwrite)
    assert done.returncode == 1
    assert f"{out}/config.json already exists" in done.stderr
    assert (out / "config.json").read_text() == own
    assert os.listdir(out) == ["config.json"]


def test_what_a_runtime_does_not_load_is_a_warning(tmp_path):
    path = tmp_path / "dense.safetensors"
    weight = np.random.default_rng(0).standard_normal((30, 64), dtype=np.float32)
    write_safetensors(path, {"fc.weight": ("F32", weight)})
    for bits, scheme, warned in (
        (8, "per_tensor_affine", ["vLLM"]),
        (4, "per_channel_affine", ["transformers"]),
        (4, "per_channel_symmetric", []),
    ):
        rule = {"quant_bits": bits, "quant_scheme": scheme, "op_types": ["default"]}
        config = write_config(tmp_path, [rule])
        flags = ["--algorithm=qat", f"--config={config}", "-o", tmp_path / "o", "--overwrite"]
        report = run_json("quantize", path, *flags, "--format=compressed-tensors")
        assert [w.split(": ")[1].split()[0] for w in report["warnings"]] == warned


def test_json_that_is_not_an_index_is_a_clear_error(tmp_path):
    config = write_config(tmp_path, LEVEL)
    index = tmp_path / "model.safetensors.index.json"
    for content, message in (
        ('{"metadata": {}, "weight_map": {"a": "b"}}', 'weight_map["a"] is "b"'),
        ('\n  {"weight_map": {}}', "it is JSON, but not the index of a checkpoint"),
        ("{}", "it is JSON, but not the index of a checkpoint"),
        (
            '[{"op_types": ["default"]}]',
            "it is a list in JSON, not a checkpoint or its index; a co",
        ),
        (' [{"sparsity": 0.5}]', "it is a list in JSON, not a checkpoint or its index; a config"),
    ):
        index.write_text(content)
        done = ctl("prune", index, "--algorithm=level", f"--config={config}", "-o", tmp_path / "o")
        assert done.returncode == 1
        assert f"{index}: {message}" in done.stderr
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", "."])
def test_a_name_with_slashes_or_dots_writes_no_file_elsewhere(tmp_path, name):
    path = tmp_path / "in/model.safetensors"
    path.parent.mkdir()
    weight = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    write_safetensors(path, {f"{name}.weight": ("F32", weight)})
    config = write_config(tmp_path, LEVEL)
    out = tmp_path / "outer/out"
    out.parent.mkdir()
    written = set()
    for format in ("safetensors", "sparse", "pth", "masks", "report"):
        flags = ["--algorithm=level", f"--config={config}", "-o", out, f"--format={format}"]
        written |= set(run_json("prune", path, *flags)["files"])
    assert written == {str(file) for file in out.iterdir()}
    assert list(out.parent.iterdir()) == [out]
    with zipfile.ZipFile(out / "model.pth") as archive:
        assert all(entry.startswith("archive/") for entry in archive.namelist())
        assert not any(".." in entry for entry in archive.namelist())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "in", "outer"]


@pytest.mark.parametrize(("epoch", "zeros"), [(None, 80), (0, 0), (3, 56), (10, 80)])
def test_agp_takes_the_epoch_or_goes_to_the_end(tmp_path, epoch, zeros):
    path = tmp_path / "model.safetensors"
    write_safetensors(
        path, {"a.weight": ("F32", np.arange(1, 101, dtype=np.float32).reshape(10, 10))}
    )
    config = write_config(
        tmp_path, [{"final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}]
    )
    flags = [] if epoch is None else [f"--epoch={epoch}"]
    run_json("prune", "--algorithm=agp", "--config", config, path, "-o", tmp_path / "o", *flags)
    result, _ = read_safetensors(tmp_path / "o/model.safetensors")
    assert np.count_nonzero(result["a.weight"][1] == 0) == zeros


@pytest.mark.parametrize(
    ("algorithm", "rule"),
    [
        ("qat", {"quant_types": ["weight"], "quant_bits": 8, "quant_start_step": 100}),
        ("naive", {}),
        ("dorefa", {"quant_bits": 4}),
    ],
)
def test_quantize_leaves_few_values(model, tmp_path, algorithm, rule):
    path, tensors = model
    config = write_config(tmp_path, [{**rule, "op_types": ["default"]}])
    report = run_json(
        "quantize", f"--algorithm={algorithm}", "--config", config, path, "-o", tmp_path / "o"
    )
    bits = 4 if algorithm == "dorefa" else 8
    assert {layer["bits"] for layer in report["layers"]} == {bits}
    result, _ = read_safetensors(tmp_path / "o/model.safetensors")
    assert_same(result, tensors, set(tensors) - WEIGHTS)
    values = result["fc.weight"][1]
    assert 1 < len(np.unique(values)) <= 2**bits
    if algorithm != "dorefa":  # which squashes
        weight = tensors["fc.weight"][1]
        step = max(np.ptp(weight) / 255, np.abs(weight).max() / 127)
        assert np.abs(values - weight).max() <= step


def test_a_bad_weight_fails_and_nothing_is_written(model, tmp_path):
    path, tensors = model
    weight = tensors["fc.weight"][1].copy()
    weight.ravel()[4321] = np.nan
    write_safetensors(path, {**tensors, "fc.weight": ("F32", weight)})
    config = write_config(tmp_path, LEVEL)
    done = ctl("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "INVALID_ARGUMENT" in done.stderr
    assert "fc.weight" in done.stderr
    assert "4321" in done.stderr
    assert "wrote" not in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "algorithm", "config_list", "message"),
    [
        ("prune", "level", [{"sparsity": 1.3}], "config_list[0].sparsity is 1.3"),
        ("prune", "level", [{"sparsity": 0.5, "op_name": ["x"]}], "op_names"),
        ("prune", "level", {"sparsity": 0.5}, "not a list of rules"),
        ("prune", "lvel", LEVEL, "level"),
        ("prune", "naive", [{}], "use `compressionctl quantize`"),
        ("quantize", "level", LEVEL, "use `compressionctl prune`"),
        ("prune", "level", [{"sparsity": 0.5, "op_types": ["Conv2d"]}], 'must be "default"'),
        ("prune", "level", [{"sparsity": 0.5, "op_names": ["x"]}], "no tensor is compressed"),
        (
            "prune",
            "movement",
            [{"final_sparsity": 0.5, "end_epoch": 4}],
            "by its statistic weight_gradient, which a training makes",
        ),
    ],
)
def test_a_bad_configuration_is_a_clear_error(
    model, tmp_path, command, algorithm, config_list, message
):
    path, _ = model
    config = write_config(tmp_path, config_list)
    done = ctl(command, "--algorithm", algorithm, "--config", config, path, "-o", tmp_path / "o")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "o").exists()
    error = json.loads(
        ctl(
            "--json", command, "--algorithm", algorithm, "--config", config, path,
            "-o", tmp_path / "o",
        ).stderr
    )  # fmt: skip
    assert message in error["error"]["message"]


def test_a_broken_checkpoint_is_a_clear_error(tmp_path):
    config = write_config(tmp_path, LEVEL)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a.weight": ("F32", np.ones((4, 4), np.float32))})
    content = path.read_bytes()
    for spoilt, message in [
        (content[:-1], "truncated"),
        (content + b"x", "after its tensors"),
        (b"\xff" * 4 + content, "header's length is"),
        (b"PK\x03\x04" + content, "is a file of torch.save"),
        (b"", "0 bytes"),
    ]:
        path.write_bytes(spoilt)
        done = ctl("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path / "o")
        assert done.returncode == 1
        assert str(path) in done.stderr
        assert message in done.stderr


def test_the_output_never_replaces_the_input(model, tmp_path):
    path, _ = model
    config = write_config(tmp_path, LEVEL)
    before = path.read_bytes()
    done = ctl("prune", "--algorithm=level", "--config", config, path, "-o", tmp_path)
    assert done.returncode == 1
    assert "would replace the input" in done.stderr
    assert path.read_bytes() == before


def test_an_older_result_is_replaced_in_one_piece(model, tmp_path):
    path, _ = model
    config = write_config(tmp_path, LEVEL)
    (tmp_path / "o").mkdir()
    (tmp_path / "o/model.safetensors").write_text("old")
    flags = ["--algorithm=level", f"--config={config}", "-o", tmp_path / "o", "--overwrite"]
    run_json("prune", path, *flags)
    read_safetensors(tmp_path / "o/model.safetensors")
    assert os.listdir(tmp_path / "o") == ["model.safetensors"]


def test_information_commands(server_address):
    health = run_json("health")
    assert health == {"server": server_address, "status": "serving"}
    names = [algorithm["name"] for algorithm in run_json("algorithms")["algorithms"]]
    assert {"level", "agp", "naive", "qat", "dorefa"} <= set(names)
    text = ctl("algorithms").stdout
    assert "(only with scope global)" in text
    assert "quant_bits (q_bits)" in text
    assert "example:" in text


def test_sessions_are_listed_shown_and_closed():
    import nni_compression as nc

    client = nc.Client()
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 10), dtype="float32")]
    session = client.bind_model(
        "level",
        LEVEL,
        layers=layers,
        framework="pytorch",
        labels={"run": "ctl", "nasty": "\x1b[2J"},
    )
    session.calc_mask({"fc": np.arange(100, dtype=np.float32).reshape(10, 10)})
    (listed,) = run_json("sessions", "--label=run=ctl")["sessions"]
    assert listed["id"] == session.id
    assert run_json("sessions", "--label=run=other")["sessions"] == []
    text = ctl("sessions").stdout
    assert session.id in text
    assert "80.00 %" in text
    assert "\x1b" not in text
    shown = run_json("session", session.id)["session"]
    assert shown["layers"][0]["achieved_sparsity"] == 0.8
    assert "fc" in ctl("session", session.id).stdout
    assert run_json("close", session.id)["status"] == "closed"
    assert run_json("sessions", "--label=run=ctl")["sessions"] == []
    assert run_json("session", session.id)["session"]["state"] == "SESSION_STATE_CLOSED"
    missing = ctl("--json", "session", "0" * 32)
    assert missing.returncode == 1
    assert json.loads(missing.stderr)["error"]["code"] == "NOT_FOUND"


def test_ended_sessions_are_listed_on_request():
    with nc.Client() as client:
        layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 10))]
        with client.bind_model("level", LEVEL, layers, labels={"run": "all"}) as ended:
            ended.report(accuracy=0.9, loss=0.125)
        with client.bind_model("level", LEVEL, layers, labels={"run": "all"}) as live:
            (listed,) = run_json("sessions", "--label=run=all")["sessions"]
            assert listed["id"] == live.id
            assert listed["results"] == {}
            first, second = run_json("sessions", "--all", "--label=run=all")["sessions"]
            assert first["id"] == ended.id
            assert first["state"] == "SESSION_STATE_CLOSED"
            assert first["results"] == {"accuracy": 0.9, "loss": 0.125}
            assert second["id"] == live.id
            head, closed, active = ctl("sessions", "--all", "--label=run=all").stdout.splitlines()
            assert {"ENDED", "RESULTS"} <= set(head.split())
            assert "accuracy=0.9,loss=0.125" in closed
            assert re.search(r"20\d\d-", closed)
            assert "active" in active
            assert "ENDED" not in ctl("sessions", "--label=run=all").stdout
    shown = ctl("session", ended.id).stdout
    assert "accuracy=0.9,loss=0.125" in shown
    assert "ended:" in shown
    assert run_json("session", ended.id)["session"]["config_list"] == LEVEL


def test_top_shows_the_busiest_sessions_first():
    import nni_compression as nc

    client = nc.Client()
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 10))]
    idle, busy = (
        client.bind_model("level", LEVEL, layers, labels={"top": "ctl", "nasty": "\x1b[2J"})
        for _ in range(2)
    )
    busy.calc_mask({"fc": np.arange(100, dtype=np.float32).reshape(10, 10)})
    shown = run_json("top", "--once", "--label=top=ctl")
    assert [session["id"] for session in shown["sessions"]] == [busy.id, idle.id]
    first, second = shown["sessions"]
    assert first["received_bytes_per_second"] > first["sent_bytes_per_second"] > 0
    assert first["compute_threads"] > 0 == second["compute_threads"]
    assert shown["total"]["state_bytes"] == first["state_bytes"] + second["state_bytes"] > 0
    text = ctl("top", "--once", "--label=top=ctl").stdout
    assert "2 sessions" in text
    assert text.index(busy.id) < text.index(idle.id)
    assert "\x1b" not in text
    assert ctl("top", "--interval=1ms").returncode == 2
    for session in (idle, busy):
        session.close()


def test_top_goes_on_until_it_is_killed():
    arguments = [BINARY, "--json", "--interval=100ms", "top", "--label=top=none"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as top:
        for _ in range(3):
            assert json.loads(top.stdout.readline())["sessions"] == []
        top.terminate()
    assert top.returncode == -signal.SIGTERM


def test_an_experiments_sessions_are_listed_and_ended_together():
    import nni_compression as nc

    client = nc.Client()
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 10))]
    sessions = [
        client.bind_model("level", LEVEL, layers, labels={"nni_experiment": e, "nni_trial": t})
        for e, t in (("x", "a"), ("x", "b"), ("y", "a"))
    ]
    head, *lines = ctl("sessions", "--label=nni_experiment=x").stdout.splitlines()
    assert {"STATE", "EPOCH", "SPARSITY", "MEMORY", "IDLE"} <= set(head.split())
    assert len(lines) == 2
    assert all("active" in line for line in lines)
    assert "closed" in ctl("close", "--label=nni_experiment=x,nni_trial=b").stdout
    assert run_json("close", "--label=nni_experiment=x")["closed"] == [sessions[0].id]
    assert run_json("close", "--label=nni_experiment=x")["closed"] == []
    assert "no live session" in ctl("close", "--label=nni_experiment=x").stdout
    for gone in sessions[:2]:
        with pytest.raises(nc.NotFoundError):
            gone.update_epoch(1)
    assert sessions[2].info().state == "active"
    sessions[2].close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no command"),
        (["close"], "close takes the ID of a session or --label, and one of them"),
        (
            ["close", "ID", "--label=a=b"],
            "close takes the ID of a session or --label, and one of them",
        ),
        (["close", "--label=x"], "it must be KEY=VALUE"),
        (["prun"], "there is no command prun; did you mean prune?"),
        (["tenant"], "tenant needs a command: add, list, revoke, quota"),
        (["tenant", "ad"], "tenant has no command ad; did you mean add?"),
        (["tenant", "quota", "us", "--tokens=f"], "tenant quota needs LIMIT"),
        (["tenant", "add", "us"], "tenant add needs --tokens"),
        (["backup", "d"], "backup needs --data_dir"),
        (["session"], "session needs ID"),
        (["session", "a", "b"], "session takes 1 argument; it was also given b"),
        (["health", "x"], "health takes no argument; it was given x"),
        (["prune", "m.safetensors"], "prune needs --algorithm"),
        (["prune", "m.safetensors", "--algorithm="], "prune needs --algorithm"),
        (["prune", "m.safetensors", "--algorithm"], "--algorithm needs a value"),
        (["sessions", "--label=x"], "it must be KEY=VALUE"),
        (["export", "m.safetensors", "-o", "o"], "export needs --session"),
        (["export", "m.safetensors", "--session=s"], "export needs -o"),
        (["export", "--session=s", "-o", "o"], "export needs MODEL unless --format is masks"),
        (["export", "--format=sprse"], "--format is sprse; it must be one of safetensors, sparse"),
        (["export", "--format=sprse"], "did you mean sparse?"),
        (["top", "--interval=2"], "--interval is 2; it must be a duration such as 2s"),
        (["top", "--interval=1ms"], "--interval is 1ms; it must be at least 100ms"),
        (["prune", "m", "--algorithm=a", "--config=c", "-o", "o", "--epoch=1.5"], "--epoch is 1.5"),
        (["--bogus", "health"], "health has no flag --bogus"),
        (["--bogus"], "there is no flag --bogus"),
        (["prune", "--algoritm=level"], "prune has no flag --algoritm; did you mean --algorithm?"),
        (["session", "ID", "--format=sparse"], "session has no flag --format"),
        (["--format=sparse", "session", "ID"], "session has no flag --format"),
        (["tenant", "add", "us", "--tokens=f", "--server=x"], "tenant add has no flag --server"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message):
    done = ctl(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "--help` shows how it is used" in done.stderr
    assert done.stdout == ""
    as_json = ctl("--json", *arguments)
    assert as_json.returncode == 2
    assert json.loads(as_json.stderr)["error"]["code"] == "INVALID_ARGUMENT"
    assert message in json.loads(as_json.stderr)["error"]["message"]


def test_flags_may_stand_before_or_after_a_command(tmp_path, server_address):
    tokens = tmp_path / "tenants"
    for arguments in (
        (f"--tokens={tokens}", "--admin", "tenant", "add", "a"),
        ("--tokens", tokens, "tenant", "--admin", "add", "b"),
        ("tenant", "add", "c", "--admin=true", "--tokens", tokens),
        ("tenant", "--tokens=/none", "add", "--admin", f"--tokens={tokens}", "--", "d"),
    ):
        done = ctl(*arguments)
        assert done.returncode == 0, done.stderr
    # A name may be that of a command.
    done = ctl(
        "tenant", "quota", "list", "calls=8", "disk=1M", "--tokens", tokens, "--without_token"
    )
    assert done.returncode == 0, done.stderr
    listed = run_json("tenant", "list", "--tokens", tokens)["tenants"]
    assert {tenant["tenant"]: tenant["admin"] for tenant in listed} == {
        **dict.fromkeys("abcd", True), "list": False,
    }  # fmt: skip


def test_help_needs_no_server():
    for arguments in (["--help"], ["-h"], ["help"]):
        done = ctl(*arguments, server="127.0.0.1:1")
        assert done.returncode == 0
        assert "prune MODEL" in done.stdout
    assert run_json("help") == {"help": done.stdout}


def test_help_of_a_command_shows_what_it_takes():
    for arguments in (["prune", "--help"], ["--help", "prune"], ["help", "prune"]):
        done = ctl(*arguments, server="127.0.0.1:1")
        assert done.returncode == 0
        assert done.stderr == ""
        assert "prune --algorithm=NAME" in done.stdout
        assert "--format=FORMAT" in done.stdout
        assert "(default: safetensors)" in done.stdout
        assert "compressed-tensors: config.json" in done.stdout
        assert "--tls_ca=FILE" in done.stdout
        assert "--session" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
    quota = ctl("tenant", "quota", "--help").stdout
    assert "tenant quota --tokens=FILE [FLAGS] NAME LIMIT..." in quota
    assert "--server" not in quota


def flags_in(help: str) -> set[str]:
    """The flags that a help lists."""
    return set(re.findall(r"^  (?:-h,)?(--?\w+)", help, re.MULTILINE))


def commands_in(help: str) -> list[str]:
    """The commands that a help lists."""
    return re.findall(r"^  ([a-z]+)(?: .*)?   ", help, re.MULTILINE)


class TestCompletion:
    def complete(self, line: str, after: str = "") -> list[str]:
        """What a bash offers at the end of the line, by the functions that Tab calls."""
        script = (
            'source <("$0" completion bash)\n'
            "COMP_LINE=$1 COMP_POINT=$2\n"
            '[[ $(complete -p compressionctl) == *"-F _compressionctl "* ]] || exit\n'
            '_compressionctl && printf "%s\\n" "${COMPREPLY[@]}"'
        )
        line = line.replace("compressionctl", str(BINARY))
        done = subprocess.run(
            ["bash", "--norc", "-c", script, BINARY, line + after, str(len(line))],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    def test_commands_are_completed(self):
        assert self.complete("compressionctl ") == commands_in(ctl("--help").stdout)
        assert self.complete("compressionctl tenant ") == ["add", "list", "revoke", "quota"]
        assert self.complete("compressionctl --server=host:1 pr") == ["prune"]
        assert self.complete("compressionctl --server host:1 --json q") == ["quantize"]
        assert self.complete("compressionctl sess", after=" --json") == ["sessions", "session"]

    def test_all_flags_of_every_command_are_completed(self):
        families = {"tenant": self.complete("compressionctl tenant ")}
        for command in self.complete("compressionctl "):
            for name in (f"{command} {one}" for one in families.get(command, [""])):
                listed = flags_in(ctl(*name.split(), "--help").stdout)
                assert set(self.complete(f"compressionctl {name.strip()} -")) == listed, name
                assert "--help" in listed
        assert self.complete("compressionctl prune model.safetensors --ov") == ["--overwrite"]
        assert self.complete("compressionctl --overw") == ["--overwrite"]
        assert self.complete("compressionctl session --overw") == []

    def test_values_from_a_fixed_set_are_completed(self):
        for line in ("--format ", "--format="):
            formats = self.complete(f"compressionctl export {line}")
            assert {"safetensors", "sparse", "compressed-tensors", "masks"} < set(formats)
            help = ctl("export", "--help").stdout
            assert all(f" {format}: " in help for format in formats)
            assert self.complete(f"compressionctl export {line}sp") == ["sparse"]
            assert self.complete(f"compressionctl {line}sp") == ["sparse"]
        assert self.complete("compressionctl completion ") == ["bash", "zsh", "fish"]

    def test_files_are_left_to_the_shell(self):
        assert self.complete("compressionctl prune ") == []
        assert self.complete("compressionctl prune --config=") == []

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_every_shell_reads_its_script(self, shell, tmp_path):
        script = tmp_path / "script"
        script.write_text(ctl("completion", shell).stdout)
        assert " __complete " in script.read_text()
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        subprocess.run([shell, "-n", script], timeout=60, check=True)


def test_a_missing_server_is_named():
    done = ctl("--connect_timeout=200ms", "health", server="127.0.0.1:1")
    assert done.returncode == 1
    assert "no compression server answers at 127.0.0.1:1" in done.stderr


def test_a_server_that_is_gone_leaves_no_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a.weight": ("F32", np.ones((400, 1000), np.float32))})
    config = write_config(tmp_path, LEVEL)
    with servers.ServerProcess() as server:
        address = server.address
        server.kill()
        done = ctl(
            "--connect_timeout=200ms", "prune", "--algorithm=level", "--config", config, path,
            "-o", tmp_path / "o", server=address,
        )  # fmt: skip
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
    assert not (tmp_path / "o").exists()


def test_shared_memory_gives_the_same_checkpoint(tmp_path):
    weight = np.random.default_rng(5).normal(size=(300, 1000)).astype(np.float32)
    model = tmp_path / "model.safetensors"
    write_safetensors(model, {"fc.weight": ("F32", weight)})
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LEVEL))
    side = tmp_path / "side"
    with servers.ServerProcess(f"--shm_socket={side}", "--log_level=debug") as server:
        written = []
        for path in ("", side, tmp_path / "nobody-listens"):
            out = tmp_path / f"out{len(written)}"
            flags = ["--algorithm=level", f"--config={config}", f"--shm_socket={path}", "-o", out]
            done = ctl("prune", model, *flags, server=server.address)
            assert done.returncode == 0, done.stderr
            written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]
