"""Exports, opened by the software that they are meant for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import AGPPruner, L1FilterPruner, LevelPruner, QATQuantizer

LEVEL = [{"sparsity": 0.8, "op_types": ["default"]}]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Weights, the same for the same seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def net() -> nn.Sequential:
    """A model with buffers, a scalar among them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


class TestSparse:
    def test_a_model_comes_back_bit_for_bit_from_less_than_a_quarter(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weight, half = normal(300, 1000), normal(11, 13, seed=1).astype(np.float16)
        weight[:2, :4] = [[-0.0, 0.0, -0.0, 0.0], [np.float32(1e-45), -3e38, 3e38, -1e-45]]
        others = {
            "bias": normal(7),
            "steps": np.array(12, np.int64),
            "flags": np.array([True, False]),
        }
        layers = [
            nc.Layer(name="fc", op_type="Linear", shape=weight.shape),
            nc.Layer(name="half", op_type="Linear", shape=half.shape, dtype="float16"),
        ]
        with client.bind_model("level", LEVEL, layers) as session:
            masks = session.calc_mask({"fc": weight, "half": half})
            kept = np.ones(weight.shape, bool)
            kept.flat[: weight.size * 4 // 5] = False
            kept[0, :2] = True  # -0.0 is kept as it is
            masks["fc"] = session.set_mask({"fc": kept})["fc"]
            tensors = {"fc": weight, "half": half, **others}
            names = {"fc": "fc.weight"}
            (path,) = session.export(tmp_path, tensors, "sparse", options={"names": names})
        assert path.stat().st_size < 0.24 * (weight.nbytes + half.nbytes)
        loaded = nc.load_sparse(path)
        assert set(loaded) == {"fc.weight", "half", *others}
        for name, given, mask in [
            ("fc.weight", weight, masks["fc"]),
            ("half", half, masks["half"]),
        ]:
            expected = np.where(mask.to_numpy(), given, given.dtype.type(0))
            array = loaded[name]
            assert isinstance(array, np.ndarray)
            assert (array.dtype, array.shape) == (given.dtype, given.shape)
            assert array.tobytes() == expected.tobytes()
        for name, given in others.items():
            array = loaded[name]
            assert isinstance(array, np.ndarray)
            assert (array.dtype, array.shape) == (given.dtype, given.shape)
            assert array.tobytes() == given.tobytes()

    def test_a_pytorch_model_keeps_its_keys_and_loads_again(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = net().to(torch.bfloat16)
        pruner = LevelPruner(LEVEL, client=client)
        pruner(model)
        (path,) = pruner.export(tmp_path, "sparse")
        expected = pruner.compressed_state_dict()
        loaded = nc.load_sparse(path)
        assert set(loaded) == set(expected)
        for name, tensor in expected.items():
            array = loaded[name]
            if tensor.dtype is torch.bfloat16:
                assert isinstance(array, nc.Tensor)
                assert array.shape == tuple(tensor.shape)
                assert bytes(array.data) == tensor.view(torch.int16).numpy().tobytes()
            else:
                assert isinstance(array, np.ndarray)
                assert array.tobytes() == tensor.numpy().tobytes()

    def test_a_damaged_file_is_refused(self, client: nc.Client, tmp_path: Path) -> None:
        weight = normal(10, 20)
        layer = nc.Layer(name="fc", op_type="Linear", shape=weight.shape)
        with client.bind_model("level", LEVEL, [layer]) as session:
            session.calc_mask({"fc": weight})
            (path,) = session.export(tmp_path, {"fc": weight}, "sparse")
            (dense,) = session.export(tmp_path, {"fc": weight})
        content = path.read_bytes()
        damaged = tmp_path / "damaged"
        for bad in (
            b"",
            content[:4],
            content[:100],
            content[:-1],
            b"\xff" * 8 + content[8:],
            content[:8] + b"[" * 50 + content[58:],
            content.replace(b"[10,20]", b"[10,99]").replace(b"[10, 20]", b"[10, 99]"),
            content.replace(b"[10,20]", b"[-1,20]"),
            content[:-1] + bytes([content[-1] ^ 1]),
        ):
            damaged.write_bytes(bad)
            with pytest.raises(nc.DataLossError, match="damaged"):
                nc.load_sparse(damaged)
        with pytest.raises(nc.DataLossError, match="format sparse"):
            nc.load_sparse(dense)


class TestPth:
    def test_torch_loads_weights_only_and_the_model_takes_them(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = net().double()
        pruner = LevelPruner(LEVEL, client=client)
        pruner(model)
        paths = pruner.export(tmp_path, "pth")
        assert [path.name for path in paths] == ["model.pth", "masks.pth"]
        state = torch.load(paths[0], weights_only=True)
        expected = pruner.compressed_state_dict()
        assert list(state) == list(expected)
        for name, tensor in expected.items():
            assert state[name].dtype is tensor.dtype
            assert torch.equal(state[name], tensor)
        net().double().load_state_dict(state, strict=True)
        masks = torch.load(paths[1], weights_only=True)
        assert set(masks) == {"0", "3"}
        for name, mask in pruner.masks.items():
            assert masks[name]["bias"] is None
            assert masks[name]["weight"].dtype is torch.float64
            assert torch.equal(masks[name]["weight"], mask.double())

    def test_a_model_that_is_pruned_and_quantized_exports_as_one(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = net().eval()
        quantizer = QATQuantizer([{"op_types": ["default"], "quant_bits": 4}], client=client)
        pruner = LevelPruner(LEVEL, client=client)
        quantizer(model)
        pruner(model)
        images = torch.rand(2, 1, 4, 4)
        for format, load in (("pth", torch.load), ("sparse", nc.load_sparse)):
            state = load(pruner.export(tmp_path, format)[0])
            plain = net().eval()
            plain.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
            assert torch.equal(plain(images), model(images))
        assert plain[3].weight.unique().numel() <= 16
        assert (plain[3].weight == 0).sum() >= 38
        state = torch.load(quantizer.export(tmp_path, "pth")[0])
        for name, expected in pruner.compressed_state_dict().items():
            assert state[name].numpy().tobytes() == expected.numpy().tobytes(), name
        for format in ("sparse", "masks"):
            with pytest.raises(nc.FailedPreconditionError, match="session of the model's pruner"):
                quantizer.export(tmp_path, format)
        with pytest.raises(nc.FailedPreconditionError, match="session of the model's quantizer"):
            pruner.export(tmp_path, "compressed-tensors")

    def test_every_dtype_travels_and_the_archive_is_sound(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weight = normal(3, 5)
        tensors: dict[str, Any] = {
            dtype: np.arange(5).astype(dtype)
            for dtype in ("f2", "f4", "f8", "u1", "i1", "i2", "i4", "i8", "?")
        }
        tensors["naïve 名"] = np.array(3.5)
        with client.bind_model(
            "qat", [{}], [nc.Layer(name="fc", op_type="Linear", shape=weight.shape)]
        ) as session:
            values = session.quantize_weight({"fc": weight})["fc"].dequantize()
            bfloat16 = nc.Tensor(np.array([0x3F80], np.uint16), "bfloat16", (1,))
            (path,) = session.export(
                tmp_path, {"fc": weight, **tensors, "bfloat16": bfloat16}, "pth"
            )
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        state = torch.load(path, weights_only=True)
        assert state["fc"].numpy().tobytes() == values.tobytes()
        for name, array in tensors.items():
            assert state[name].numpy().dtype == array.dtype
            assert state[name].numpy().tobytes() == array.tobytes()
            assert tuple(state[name].shape) == array.shape
        assert torch.equal(state["bfloat16"], torch.ones(1, dtype=torch.bfloat16))

    def test_tensors_begin_at_multiples_of_64_bytes(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weight = normal(3, 5)
        layer = nc.Layer(name="fc", op_type="Linear", shape=weight.shape)
        with client.bind_model("qat", [{}], [layer]) as session:
            (path,) = session.export(tmp_path, {"fc": weight, "b": normal(7)}, "pth")
        content = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name, extra = (
                    content[entry.header_offset + 26 :][:2],
                    content[entry.header_offset + 28 :][:2],
                )
                begin = entry.header_offset + 30
                begin += int.from_bytes(name, "little") + int.from_bytes(extra, "little")
                assert begin % 64 == 0, entry.filename


class TestShards:
    def test_shards_have_an_index_and_hold_all_tensors(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        quantizer = QATQuantizer([{"op_types": ["default"]}], client=client)
        quantizer(net())
        paths = quantizer.export(tmp_path, options={"max_shard_bytes": 200})
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        expected = quantizer.compressed_state_dict()
        assert set(index["weight_map"]) == set(expected)
        assert sorted({*index["weight_map"].values(), "model.safetensors.index.json"}) == sorted(
            path.name for path in paths
        )
        for name, tensor in expected.items():
            content = (tmp_path / index["weight_map"][name]).read_bytes()
            begin = 8 + int.from_bytes(content[:8], "little")
            entry = json.loads(content[8:begin])[name]
            first, last = entry["data_offsets"]
            assert content[begin + first : begin + last] == tensor.numpy().tobytes()


class TestReport:
    @staticmethod
    def export(client: nc.Client, folder: Path) -> tuple[Path, Path]:
        """The report of a model that AGP prunes."""
        rules = [
            {"op_types": ["default"], "final_sparsity": 0.8, "end_epoch": 10},
            {"op_names": ["5"], "exclude": True},
        ]
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Flatten(), nn.Linear(128, 512), nn.ReLU(),
                              nn.Linear(512, 64), nn.Linear(64, 10))  # fmt: skip
        pruner = AGPPruner(rules, client=client)
        pruner(model)
        pruner.update_epoch(6)
        data, page = pruner.export(folder, "report")
        return data, page

    def test_it_says_what_became_of_each_layer(self, client: nc.Client, tmp_path: Path) -> None:
        data, page = self.export(client, tmp_path)
        assert (data.name, page.name) == ("report.json", "report.html")
        report = json.loads(data.read_text())
        layers = {layer["name"]: layer for layer in report["layers"]}
        assert set(layers) == {"0", "2", "4", "5"}
        assert not layers["5"]["compressed"]
        fc = layers["2"]
        assert (fc["op_type"], fc["shape"], fc["rule"]) == ("Linear", [512, 128], 0)
        assert fc["achieved_sparsity"] == pytest.approx(fc["target_sparsity"], abs=1e-4)
        assert sum(fc["histogram"]["before"]) == sum(fc["histogram"]["after"]) == 512 * 128
        assert fc["mse"] > 0
        assert fc["sqnr_db"] > 0
        assert report["curves"][0]["targets"][6] == fc["target_sparsity"]
        assert report["totals"]["bytes_after"] < report["totals"]["bytes_before"]

    def test_it_says_which_filters_stay(self, client: nc.Client, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        rules = [{"op_names": ["0"], "sparsity": 0.25}]
        with L1FilterPruner(model, rules, client=client) as pruner:
            pruner.compress()
            data, page = pruner.export(tmp_path, "report")
        first, second = json.loads(data.read_text())["layers"]
        assert (first["filters"], first["removed_filters"]) == (8, 2)
        assert "filters" not in second
        shown = self.shown(page, tmp_path)
        assert '<th class="n">filters</th>' in shown
        assert "6 of 8" in shown
        assert "2 filters are removed" in shown

    def test_without_removed_filters_it_has_no_column_of_them(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        pruner = LevelPruner([{"sparsity": 0.25, "op_types": ["default"]}], client=client)
        pruner(nn.Sequential(nn.Linear(32, 8)))
        data, page = pruner.export(tmp_path, "report")
        [layer] = json.loads(data.read_text())["layers"]
        assert layer["removed_filters"] == 0
        assert '<th class="n">filters</th>' not in self.shown(page, tmp_path)

    def test_it_says_how_outputs_and_inputs_are_quantized(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
        rules = [
            {"op_names": ["0"], "quant_types": ["weight", "output", "input"]},
            {"op_names": ["1"], "quant_bits": 4},
        ]
        quantizer = QATQuantizer(rules, client=client)
        quantizer(model)
        model(torch.tensor([[-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]]))
        quantizer.step()
        data, page = quantizer.export(tmp_path, "report")
        first, second = json.loads(data.read_text())["layers"]
        assert first["input"]["bits"] == 8
        assert (first["input"]["minimum"], first["input"]["maximum"]) == (-1, 4)
        assert first["input"]["scale"] == pytest.approx(5 / 255)
        found = quantizer.calibration["0"]
        assert first["output"]["scale"] == found["output_scale"].item()
        assert first["output"]["zero_point"] == found["output_zero_point"].item()
        assert "input" not in second
        assert "output" not in second
        shown = self.shown(page, tmp_path)
        assert "8 bits, -1 … 4, scale 0.01961, zero 51" in shown
        quantizer.close()

    @staticmethod
    def shown(page: Path, folder: Path) -> str:
        """The page as a browser has built it."""
        chromium = shutil.which("chromium")
        assert chromium is not None, "deploy/install-dependencies.sh installs it"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
        return subprocess.run(
            [chromium, *flags, "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip

    def test_a_browser_shows_it(self, client: nc.Client, tmp_path: Path) -> None:
        _, page = self.export(client, tmp_path)
        shown = self.shown(page, tmp_path)
        rows = shown[shown.index('<table id="layers">') : shown.index("What gets smaller")]
        assert rows.count("<tr") == 1 + 4
        assert rows.count("<svg") == 3
        assert "512 × 128" in rows
        assert "not compressed" in rows
        assert "Sparsity over the epochs" in shown
        assert "layers compressed" in shown


def read_compressed_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a directory, by the format's description."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["quantization_status"] == "compressed"
    content = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    dtypes = {"F32": "<f4", "I8": "i1", "I32": "<i4", "I64": "<i8"}
    stored = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            raw = np.frombuffer(content[begin + first : begin + last], dtypes[entry["dtype"]])
            stored[name] = raw.reshape(entry["shape"])

    def unpack(words: np.ndarray[Any, Any], bits: int, rows: int, columns: int) -> Any:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = (words.view(np.uint32)[..., None] >> shifts) & (2**bits - 1)
        return codes.reshape(rows, -1)[:, :columns].astype(np.int32) - 2 ** (bits - 1)

    weights = {}
    for group in config["config_groups"].values():
        assert group["format"] == config["format"]
        scheme = group["weights"]
        bits = scheme["num_bits"]
        for prefix in group["targets"]:
            scale = stored[f"{prefix}.weight_scale"]
            point = stored.get(f"{prefix}.weight_zero_point")
            assert scheme["symmetric"] == (point is None)
            if config["format"] == "pack-quantized":
                rows, columns = stored[f"{prefix}.weight_shape"]
                codes = unpack(stored[f"{prefix}.weight_packed"], bits, rows, columns)
                if point is not None and scheme["strategy"] != "tensor":
                    turned = np.ascontiguousarray(point.T)  # packed down the columns
                    point = unpack(turned, bits, turned.shape[0], rows).T
            else:
                codes = stored[f"{prefix}.weight"].astype(np.int32)
            if scheme["strategy"] == "group":
                assert scale.shape[1] * scheme["group_size"] == codes.shape[1]
                scale = scale.repeat(scheme["group_size"], axis=1)
                point = None if point is None else point.repeat(scheme["group_size"], axis=1)
            if point is not None:
                codes = codes - point.astype(np.int32)
            weights[prefix] = codes.astype(np.float32) * scale
    return weights


class TestCompressedTensors:
    @pytest.mark.parametrize("scheme", ["affine", "symmetric"])
    @pytest.mark.parametrize("strategy", ["per_tensor", "per_channel", "per_group"])
    @pytest.mark.parametrize(
        ("bits", "layout"), [(2, "auto"), (4, "auto"), (8, "auto"), (8, "pack-quantized")]
    )
    def test_a_reader_of_the_format_gets_our_values(
        self, client: nc.Client, tmp_path: Path, bits: int, layout: str, strategy: str, scheme: str
    ) -> None:
        weights = {"model.a": normal(13, 40), "b": normal(3, 5, seed=1)}
        rule = {"quant_bits": bits, "quant_scheme": f"{strategy}_{scheme}"}
        if strategy == "per_group":
            rule |= {"quant_scheme": f"per_channel_{scheme}", "group_size": 5}
        layers = [
            nc.Layer(name=name, op_type="Linear", shape=weight.shape)
            for name, weight in weights.items()
        ]
        with client.bind_model("qat", [rule], layers) as session:
            quantized = session.quantize_weight(weights)
            names = {name: f"{name}.weight" for name in weights}
            session.export(
                tmp_path, {**weights, "a.bias": normal(13)}, "compressed-tensors",
                options={"names": names, "layout": layout},
            )  # fmt: skip
        config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
        packed = bits < 8 or layout == "pack-quantized"
        assert config["format"] == ("pack-quantized" if packed else "int-quantized")
        read = read_compressed_tensors(tmp_path)
        assert set(read) == set(weights)
        for name, values in read.items():
            assert np.array_equal(values, quantized[name].dequantize()), name

    def test_the_weights_of_a_pytorch_model_take_an_eighth(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = nn.Sequential(nn.Linear(256, 512, bias=False))
        rule = {"op_types": ["default"], "quant_bits": 4, "quant_scheme": "per_channel_symmetric"}
        quantizer = QATQuantizer([rule], client=client)
        quantizer(model)
        quantizer.export(tmp_path, "compressed-tensors")
        assert (tmp_path / "model.safetensors").stat().st_size < 0.14 * 4 * 256 * 512
        expected = quantizer.compressed_state_dict()["0.weight"].numpy()
        assert np.array_equal(read_compressed_tensors(tmp_path)["0"], expected)

    @pytest.mark.parametrize("group_size", [0, 8])
    @pytest.mark.parametrize("scheme", ["affine", "symmetric"])
    def test_a_model_that_is_pruned_too_has_codes_of_zeros(
        self, client: nc.Client, tmp_path: Path, scheme: str, group_size: int
    ) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
        rule = {"op_types": ["default"], "quant_bits": 4, "quant_scheme": f"per_channel_{scheme}"}
        quantizer = QATQuantizer([{**rule, "group_size": group_size}], client=client)
        pruner = LevelPruner([{"op_names": ["0"], "sparsity": 0.75}], client=client)
        quantizer(model)
        pruner(model)
        removed = ~pruner.masks["0"]
        with torch.no_grad():  # what was removed has the largest number now, and decides the scale
            model[0]._parameters["weight"][removed] *= 50
        quantizer.export(tmp_path, "compressed-tensors")
        read = read_compressed_tensors(tmp_path)
        for name in ("0", "1"):
            expected = quantizer.compressed_state_dict()[f"{name}.weight"].numpy()
            assert np.array_equal(read[name], expected)
        assert not read["0"][removed.numpy()].any()
        quantizer.export(tmp_path, "report")
        layers = json.loads((tmp_path / "report.json").read_text())["layers"]
        assert [layer["achieved_sparsity"] for layer in layers] == [0.75, 0]
        pruner.unwrap()  # and the masks with it: zeros are written into the weight
        quantizer.export(tmp_path, "compressed-tensors")
        read = read_compressed_tensors(tmp_path)
        expected = quantizer.compressed_state_dict()["0.weight"].numpy()
        assert np.array_equal(read["0"], expected)

    def test_masks_come_with_bind_model_or_later(self, client: nc.Client, tmp_path: Path) -> None:
        weight, kept = normal(8, 16), normal(8, 16, seed=1) > 0
        layers = [nc.Layer("fc", "Linear", (8, 16))]
        for at_once in (True, False):
            given = {"fc": kept} if at_once else None
            with client.bind_model("naive", [{}], layers, masks=given) as session:
                if not at_once:
                    session.set_mask({"fc": kept})
                values = session.quantize_weight({"fc": weight})["fc"].dequantize()
                session.export(
                    tmp_path, {"fc": weight}, "compressed-tensors",
                    options={"names": {"fc": "fc.weight"}},
                )  # fmt: skip
                with pytest.raises(nc.FailedPreconditionError, match="not a pruner"):
                    session.calc_mask({"fc": weight})
            assert np.array_equal(
                read_compressed_tensors(tmp_path)["fc"], np.where(kept, values, 0)
            )

    @pytest.mark.parametrize(
        ("algorithm", "rule", "shape", "message"),
        [
            ("qat", {"quant_bits": 3}, (4, 4), "has 3 bits"),
            ("qat", {}, (4, 4, 3, 3), r"has the shape \[4, 4, 3, 3\]"),
            ("dorefa", {}, (4, 4), "DoReFa"),
        ],
    )
    def test_what_the_format_cannot_hold_is_refused(
        self,
        client: nc.Client,
        tmp_path: Path,
        algorithm: str,
        rule: dict[str, Any],
        shape: tuple[int, ...],
        message: str,
    ) -> None:
        weight = normal(*shape)
        layer = nc.Layer(name="fc.weight", op_type="Linear", shape=shape)
        with client.bind_model(algorithm, [rule], [layer]) as session:
            session.quantize_weight({"fc.weight": weight})
            with pytest.raises(nc.InvalidArgumentError, match=message):
                session.export(tmp_path, {"fc.weight": weight}, "compressed-tensors")
        assert list(tmp_path.iterdir()) == []


class TestOwnFiles:
    RULES = ({"op_types": ["default"], "quant_bits": 8},)

    @pytest.mark.parametrize(
        "own", ['{"model_type": "bert"}', '{"quantization_config": {"quant_method": "x"}}', "[", ""]
    )
    def test_a_models_config_stays(self, client: nc.Client, tmp_path: Path, own: str) -> None:
        quantizer = QATQuantizer(list(self.RULES), client=client)
        quantizer(nn.Sequential(nn.Linear(4, 8)))
        (tmp_path / "config.json").write_text(own)
        (tmp_path / "model.safetensors").write_text("old")
        for _ in range(2):
            with pytest.raises(nc.AlreadyExistsError, match="config.json already exists"):
                quantizer.export(tmp_path, "compressed-tensors")
        assert (tmp_path / "config.json").read_text() == own
        assert (tmp_path / "model.safetensors").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
        quantizer.close()

    def test_an_exports_config_is_replaced(self, client: nc.Client, tmp_path: Path) -> None:
        for scheme in ("per_tensor_affine", "per_channel_symmetric"):
            quantizer = QATQuantizer([{**self.RULES[0], "quant_scheme": scheme}], client=client)
            quantizer(nn.Sequential(nn.Linear(4, 8)))
            with pytest.warns(UserWarning, match="vLLM"):
                path, _ = quantizer.export(tmp_path, "compressed-tensors")
            groups = json.loads(path.read_text())["quantization_config"]["config_groups"]
            assert groups["group_0"]["weights"]["symmetric"] == ("symmetric" in scheme)
            quantizer.close()


def read_onnx_bundle(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What is told of the compressed weights, and all tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["nni_compression.onnx"] == "1"
    dtypes = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F32": "<f4"}
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(content[begin:end], dtypes[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return json.loads(metadata["nni_compression.weights"]), tensors


class TestOnnx:
    @pytest.mark.parametrize("bits", [2, 8, 16])
    @pytest.mark.parametrize(
        ("scheme", "group_size"),
        [("per_tensor_affine", 0), ("per_channel_symmetric", 0), ("per_channel_symmetric", 3)],
    )
    def test_codes_and_numbers_give_the_values(
        self, client: nc.Client, tmp_path: Path, scheme: str, group_size: int, bits: int
    ) -> None:
        weights = {"a": normal(6, 9), "b": normal(4, 3, 2, 2, seed=1)}
        layers = [nc.Layer(name, "Conv2d", w.shape) for name, w in weights.items()]
        rule = {"quant_bits": bits, "quant_scheme": scheme, "group_size": group_size}
        with client.bind_model("qat", [rule], layers) as session:
            quantized = session.quantize_weight(weights)
            (path,) = session.export(tmp_path, {**weights, "bias": normal(13)}, "onnx")
        told, tensors = read_onnx_bundle(path)
        symmetric = "symmetric" in scheme
        axis = 0 if symmetric else None
        size = group_size or None
        entry = {"axis": axis, "group_size": size, "output": None, "input": None}
        assert told == dict.fromkeys(weights, entry)
        np.testing.assert_array_equal(tensors.pop("bias"), normal(13))
        assert len(tensors) == 6
        for name, weight in weights.items():
            codes = tensors[f"{name}.codes"]
            assert codes.dtype.kind == ("i" if symmetric else "u")
            assert codes.dtype.itemsize == (1 if bits <= 8 else 2)
            shape = (-1,) + (1,) * (weight.ndim - 1) if symmetric else (1,)
            if group_size:
                codes, shape = codes.reshape(-1, group_size), (-1, 1)
            zero = tensors[f"{name}.zero_point"].astype(np.int32).reshape(shape)
            levels = (codes.astype(np.int32) - zero).astype(np.float32)
            values = levels * tensors[f"{name}.scale"].reshape(shape)
            expected = quantized[name].dequantize()
            np.testing.assert_array_equal(values.reshape(weight.shape), expected)

    @pytest.mark.parametrize(("algorithm", "rule"), [("level", {"sparsity": 0.5}), ("dorefa", {})])
    def test_what_has_no_affine_codes_has_values(
        self, client: nc.Client, tmp_path: Path, algorithm: str, rule: dict[str, Any]
    ) -> None:
        weight = normal(8, 6)
        with client.bind_model(algorithm, [rule], [nc.Layer("a", "Linear", (8, 6))]) as session:
            if algorithm == "level":
                expected = np.where(session.calc_mask({"a": weight})["a"].to_numpy(), weight, 0)
            else:
                expected = session.quantize_weight({"a": weight})["a"].dequantize()
            (path,) = session.export(tmp_path, {"a": weight}, "onnx")
        told, tensors = read_onnx_bundle(path)
        assert told == {"a": {"axis": None, "group_size": None, "output": None, "input": None}}
        np.testing.assert_array_equal(tensors["a"], expected)

    def test_encodings_of_outputs_and_inputs(self, client: nc.Client, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4))
        kinds = ["weight", "output", "input"]
        quantizer = QATQuantizer([{"op_types": ["default"], "quant_types": kinds}], client=client)
        quantizer(model)
        inputs = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 3.0, 4.1]])
        model(inputs)
        quantizer.step()
        (path,) = quantizer.export(tmp_path, "onnx")
        encoding = read_onnx_bundle(path)[0]["0.weight"]["input"]
        assert encoding == {
            "bits": 8,
            "minimum": -1,
            "maximum": float(np.float32(4.1)),
            "scale": float(np.float32(np.float32(5.1) / np.float32(255))),
            "zero_point": 50,
            "code_min": 0,
            "code_max": 255,
        }
        quantizer.close()


class TestExportModel:
    def test_it_writes_an_onnx_model_with_the_compressed_weights(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        model = net().train()
        quantizer = QATQuantizer([{"op_types": ["default"], "quant_bits": 4}], client=client)
        pruner = LevelPruner(LEVEL, client=client)
        quantizer(model)
        pruner(model)
        paths = [str(tmp_path / name) for name in ("model.pth", "mask.pth", "model.onnx")]
        pruner.export_model(*paths, input_shape=(1, 1, 4, 4))
        assert model.training
        state = torch.load(paths[0], weights_only=True)
        assert state["3.weight"].numpy().tobytes() in Path(paths[2]).read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "mask.pth",
            "model.onnx",
            "model.pth",
        ]

    def test_without_onnx_the_graph_has_the_values_and_a_warning_says_so(
        self, client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        monkeypatch.delitem(sys.modules, "nni_compression.onnx", raising=False)
        monkeypatch.delattr(nc, "onnx", raising=False)
        quantizer = QATQuantizer([{"op_types": ["default"], "quant_bits": 4}], client=client)
        quantizer(net())
        path = tmp_path / "model.onnx"
        with pytest.warns(UserWarning, match="onnx_path gets the quantized weights as plain"):
            quantizer.export_model(
                str(tmp_path / "model.pth"), onnx_path=str(path), input_shape=(1, 1, 4, 4)
            )
        values = quantizer.compressed_state_dict()["3.weight"].numpy()
        assert values.tobytes() in path.read_bytes()

    def test_a_failure_leaves_the_old_files_and_nothing_else(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        pruner = LevelPruner(LEVEL, client=client)
        pruner(net())
        (tmp_path / "model.pth").write_text("old")
        path = str(tmp_path / "model.pth")
        with pytest.raises(nc.InvalidArgumentError, match="input_shape"):
            pruner.export_model(path, onnx_path=str(tmp_path / "model.onnx"))
        with pytest.raises((OSError, RuntimeError), match="no-such"):
            pruner.export_model(path, str(tmp_path / "no-such" / "mask.pth"))
        assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
        assert (tmp_path / "model.pth").read_text() == "old"

    def test_the_masks_of_an_export_begin_a_session_that_revives_nothing(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weight = normal(20, 30)
        layer = nc.Layer(name="fc", op_type="Linear", shape=weight.shape)
        with client.bind_model("level", [{"sparsity": 0.5}], [layer]) as session:
            first = session.calc_mask({"fc": weight})["fc"]
            session.export(tmp_path, {"fc": weight}, "pth")
        mask = torch.load(tmp_path / "masks.pth", weights_only=True)["fc"]["weight"].bool().numpy()
        rules = [{"final_sparsity": 0.8, "end_epoch": 2}]
        given = {"fc": nc.Mask.from_numpy(mask)}
        with client.bind_model("agp", rules, [layer], masks=given) as session:
            session.update_epoch(2)
            second = session.calc_mask({"fc": normal(20, 30, seed=1)})["fc"]
        assert second.sparsity == 0.8
        assert not (second.to_numpy() & ~first.to_numpy()).any()
